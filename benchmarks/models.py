"""Code that the benchmarks share: random Llamas with closed or open gates, measuring in turns, and
writing results.

The theoretical bounds (`Bound`): with N weights in the backbone's matrix products and n new ones, a
training token takes 4N + 6n operations if the backbone is frozen (forward, gradients of
activations, and gradients of new weights) and 6N in full fine-tuning. No gradient flows through
layers up to the first adapter, which saves 2 operations for each of their weights. Decoding with
batch size 1 reads every used weight once; a prefill uses each once per token.
"""

import argparse
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from neutral_residues import NeutralResiduesConfig, residue_layers
from neutral_residues.backbone import pick_device
from neutral_residues.results.benchmark import Benchmark, Measured, write_benchmark
from neutral_residues.results.store import provenance
from neutral_residues.tuner.beside import modules_beside
from neutral_residues.tuner.blocks import find_layers
from neutral_residues.tuner.embeddings import embeddings_layer

Bounds = Mapping[str, float | None]
NO_BOUNDS: Bounds = {}


def random_llama(
    *, width: int, layers: int, vocabulary: int = 8192, tied: bool = False
) -> nn.Module:
    """A Llama with random weights, an FFN of 11/4 of the width, and heads of 64; in bfloat16 on a
    GPU, in float32 on the CPU."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 64),
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    device = pick_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def extended(backbone: nn.Module, *, budget: float, extensions: int = 1) -> PeftModel:
    """The backbone with `extensions` extensions of this budget each, all active, whose output
    projections are random instead of zero."""
    names = [f"extension{number}" for number in range(extensions)]
    model = get_peft_model(backbone, NeutralResiduesConfig(budget=budget), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, NeutralResiduesConfig(budget=budget))
    model.base_model.set_adapter(names)
    with torch.no_grad():
        for layer in residue_layers(model).values():
            for name in layer.known_adapters():
                adapter = layer.adapter(name)
                last = adapter.up if layer.is_head else adapter.down
                nn.init.normal_(last.weight, std=0.02)
    return model.eval()


def block_gates(model: nn.Module) -> list[nn.Linear]:
    """The last linear layer of every gate: one for each adapter, or one for each extension whose
    gate reads tokens."""
    places = modules_beside(model).values()
    modules = [module for place in places for module in place.neutral_residues.values()]
    return [module.block_gate for module in modules if isinstance(module.block_gate, nn.Linear)]


@torch.no_grad()
def set_gates(model: nn.Module, *, is_open: bool) -> None:
    """Set all gates to 1 or all to 0, the ideal on target and on source text."""
    for gate in block_gates(model):
        gate.weight.zero_()
        gate.bias.fill_(1.0 if is_open else -1.0)


@torch.no_grad()
def open_some_gates(model: nn.Module, share: float) -> None:
    """Set gates to be open on about this share of random tokens. The bias follows from a normal
    distribution for gates that read the FFN's input, which is nearly normal; for gates that read
    tokens it is set by a measured quantile."""
    generator = torch.Generator().manual_seed(0)
    for gate in block_gates(model):
        random = torch.randn(gate.weight.shape, generator=generator)
        gate.weight.copy_(random / gate.in_features**0.5)
        gate.bias.fill_(statistics.NormalDist().inv_cdf(min(max(share, 1e-9), 1 - 1e-9)))
    if (place := embeddings_layer(model)) is not None:
        weight = next(place.base_layer.parameters())
        ids_1T = torch.randint(len(weight), (1, 512), generator=generator)
        embeddings_1TD = place.base_layer(ids_1T.to(weight.device))
        for reader in place.readers().values():
            reader.block_gate.bias.zero_()
            logits = reader.gates(reader.codes(embeddings_1TD), None, None).logits
            reader.block_gate.bias.fill_(-logits.float().quantile(1 - share))


class Bound(NamedTuple):
    """Theoretical ratios of times, from numbers of weights.

    Attributes:
        backbone: weights in the backbone's matrix products (not those of the embeddings, which are
            only looked up).
        new: weights of the extension in matrix products.
        below: weights of the backbone in the layers up to and including the first with an adapter.
    """

    backbone: int
    new: int
    below: int = 0

    @property
    def train_frozen(self) -> float:
        """Time of a training step relative to full fine-tuning, if limited by operations."""
        return (4 * self.backbone - 2 * self.below + 6 * self.new) / (6 * self.backbone)

    @property
    def run_open(self) -> float:
        """Time of a forward pass relative to the backbone, if every adapter is computed."""
        return (self.backbone + self.new) / self.backbone


def bound_of(model: PeftModel) -> Bound:
    """The bounds for a model, from the weights of its linear layers, including the output head."""
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    adapters = {
        id(m)
        for layer in residue_layers(model).values()
        for m in layer.neutral_residues.modules()
        if isinstance(m, nn.Linear)
    }
    new = sum(m.weight.numel() for m in linears if id(m) in adapters)
    below = 0
    for layer in find_layers(model.get_base_model()).values():
        mine = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        below += sum(m.weight.numel() for m in mine if id(m) not in adapters)
        if any(id(m) in adapters for m in mine):
            break
    return Bound(backbone=sum(m.weight.numel() for m in linears) - new, new=new, below=below)


def wait() -> None:
    """Wait until the GPU has finished all work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turns(
    tasks: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of each task in each round. Tasks take turns (A B C A B C ...), so that a slow phase
    of the machine affects all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + warm_up):
        for name, task in tasks.items():
            wait()
            start = time.perf_counter()
            task()
            wait()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
        if sys.stderr.isatty():
            print(f"\r{number + 1}/{rounds + warm_up}", end="", file=sys.stderr)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, against: str) -> float:
    """Median over rounds of the time of task `name` divided by that of `against`."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[against], strict=True))


def timed(
    group: str, seconds: Mapping[str, list[float]], *, against: str, bounds: Bounds = NO_BOUNDS
) -> list[Measured]:
    """A row for each task, with its time relative to that of `against`."""
    return [
        Measured(
            group=group,
            name=name,
            against=against,
            ratio=ratio(seconds, name, against),
            bound=bounds.get(name),
            value=statistics.median(values),
        )
        for name, values in seconds.items()
    ]


def peaks(
    group: str, names: Sequence[str], *, against: str, bounds: Bounds = NO_BOUNDS
) -> list[Measured]:
    """A row for each name, with the peak memory of a separate process (this script with
    `--only-memory NAME`), minus that of one that only imports PyTorch."""
    found = {name: _peak_bytes(name) for name in names}
    nothing = _peak_bytes("nothing")  # memory of Python and PyTorch
    return [
        Measured(
            group=group,
            name=name,
            against=against,
            quantity="memory",
            ratio=(peak - nothing) / (found[against] - nothing),
            bound=bounds.get(name),
            value=peak,
        )
        for name, peak in found.items()
    ]


def _peak_bytes(name: str) -> int:
    command = [sys.executable, *sys.argv, "--only-memory", name]
    return int(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
    )


def finished(name: str, title: str, rows: list[Measured], arguments: argparse.Namespace) -> None:
    """Print the rows, and write them to the file given by `--output`."""
    for row in rows:
        where = "" if row.x is None else f" {row.x_label} {row.x:g}"
        bound = "" if row.bound is None else f"   bound {row.bound:.3f}"
        print(
            f"{row.group:32}{where:18} {row.name:16} {row.ratio:7.3f} x {row.against}{bound}  "
            f" ({row.value:.6g})"
        )
    if arguments.output is None:
        return
    kept = {
        key: value for key, value in vars(arguments).items() if isinstance(value, str | int | float)
    }
    benchmark = Benchmark(
        name=name,
        title=title,
        command=shlex.join(["python", *sys.argv]),
        threads=torch.get_num_threads(),
        rounds=arguments.rounds,
        settings=kept,
        provenance=provenance(
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        ),
        rows=rows,
    )
    write_benchmark(arguments.output, benchmark)

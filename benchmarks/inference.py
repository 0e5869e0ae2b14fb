"""Measures decoding and prefill of source and target text, memory and start-up, relative to the
backbone.

    python benchmarks/inference.py [--width 1024] [--layers 8] [--budget 0.2] [--output FILE.json]
    python benchmarks/inference.py --extension FOLDER [--source FILE] [--target FILE]

The first form uses a random Llama with all gates closed ("source") or all open ("target"), the best
and the worst case; the second a trained extension on real text, by default the demo's English and
French. All models take turns (in decoding, at every token): the backbone, the PEFT model without
skipping closed gates, the same with skipping (the default on a CPU), and the fused model.
"""

import argparse
import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import DynamicCache

from models import (
    Bound,
    bound_of,
    extended,
    finished,
    in_turns,
    peaks,
    random_llama,
    set_gates,
    timed,
)
from neutral_residues.backbone import load_backbone, pick_device
from neutral_residues.config.data import Corpus
from neutral_residues.data.documents import iter_documents
from neutral_residues.demo.run import DEMO_DATA
from neutral_residues.evaluation.saved import load_saved
from neutral_residues.experimental.fused import fuse
from neutral_residues.results.benchmark import Measured
from neutral_residues.training.cost import peak_memory_bytes
from neutral_residues.tuner.layer import residue_layers

SIDES = ("source", "target")
DEMO_TEXTS = {"source": DEMO_DATA / "en.test.jsonl.gz", "target": DEMO_DATA / "fr.test.jsonl.gz"}

Models = dict[str, nn.Module]
"""backbone, plain, skip, fused -> its own copy of the model, so that nothing is switched in timed
code."""


def twin(model: Any) -> Any:
    """A copy of the model that shares its weights, because their location in memory can change
    times by one or two per cent."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def all_of_them(model: Any) -> Models:
    plain = twin(model)
    for layer in residue_layers(plain).values():
        layer.skipping = False
    return {
        "backbone": twin(model).unload(),
        "plain": plain,
        "skip": model,
        "fused": fuse(copy.deepcopy(model)),
    }


WARM_UP_TOKENS = 2
"""First tokens after the prompt that are not timed."""


@torch.inference_mode()
def run(model: nn.Module, input_ids: Tensor, cache: DynamicCache | None = None) -> None:
    model(input_ids=input_ids, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1)


def prefill(models: Models, ids_1T: Tensor, *, rounds: int) -> dict[str, list[float]]:
    """Seconds of one forward pass over all tokens, for each model and round."""
    return in_turns(
        {name: functools.partial(run, model, ids_1T) for name, model in models.items()},
        rounds=rounds,
    )


def decode(models: Models, ids_1T: Tensor, *, prompt_tokens: int) -> dict[str, list[float]]:
    """Seconds of each token after a prompt, decoded one at a time; the models take turns at every
    token."""
    caches = {name: DynamicCache() for name in models}
    for name, model in models.items():
        run(model, ids_1T[:, :prompt_tokens], caches[name])
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for position in range(prompt_tokens, ids_1T.shape[1]):
        token_11 = ids_1T[:, position : position + 1]
        tasks = {
            name: functools.partial(run, model, token_11, caches[name])
            for name, model in models.items()
        }
        for name, values in in_turns(tasks, rounds=1, warm_up=0).items():
            seconds[name] += values
    return {name: values[WARM_UP_TOKENS:] for name, values in seconds.items()}


def bounds_of(bound: Bound, side: str) -> dict[str, float]:
    """Theoretical ratio of each model's time to the backbone's, with all gates closed ("source") or
    all open ("target")."""
    spared = 1.0 if side == "source" else bound.run_open
    return {"backbone": 1.0, "plain": bound.run_open, "skip": spared, "fused": bound.run_open}


def texts(arguments: argparse.Namespace, tokenizer: Any, side: str) -> Tensor:
    """(1, T) token ids of the source or target text; random ids for a random model."""
    wanted = arguments.tokens
    if tokenizer is None:
        return torch.randint(8192, (1, wanted), generator=torch.Generator().manual_seed(0))
    path = getattr(arguments, side) or DEMO_TEXTS[side]
    corpus = Corpus.model_validate({"name": side, "role": side, "path": path})
    ids: list[int] = []
    for text in iter_documents(corpus):
        if len(ids) >= wanted:
            break
        ids += tokenizer(text)["input_ids"]
    return torch.tensor([ids[:wanted]])


def load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The extended model, and its tokenizer (None for a random model)."""
    if arguments.extension:
        saved = load_saved(arguments.extension)
        return saved.model, saved.tokenizer
    return extended(
        random_llama(width=arguments.width, layers=arguments.layers), budget=arguments.budget
    ), None


def measure(arguments: argparse.Namespace) -> list[Measured]:
    model, tokenizer = load(arguments)
    bound, rows = bound_of(model), []
    for side in SIDES:
        if tokenizer is None:
            set_gates(model, is_open=side == "target")
        models = all_of_them(model)
        ids_1T = texts(arguments, tokenizer, side).to(pick_device())
        bounds = bounds_of(bound, side)
        seconds = decode(models, ids_1T, prompt_tokens=arguments.prompt_tokens)
        rows += timed(f"decode, {side} text", seconds, against="backbone", bounds=bounds)
        seconds = prefill(models, ids_1T, rounds=arguments.rounds)
        rows += timed(f"prefill, {side} text", seconds, against="backbone", bounds=bounds)
    wide = {"backbone": 1.0, "skip": bound.run_open, "fused": bound.run_open}
    rows += peaks("peak memory above Python's own", tuple(wide), against="backbone", bounds=wide)
    return rows + (start_up(arguments) if arguments.extension else [])


def only_memory(arguments: argparse.Namespace) -> None:
    if arguments.only_memory != "nothing":
        if arguments.only_memory != "backbone":
            model, _ = load(arguments)
        elif arguments.extension:
            model = load_backbone(backbone_of(arguments.extension), dtype=torch.float32)
        else:
            model = random_llama(width=arguments.width, layers=arguments.layers)
        model = fuse(model) if arguments.only_memory == "fused" else model
        with torch.inference_mode():
            model(
                input_ids=torch.zeros((1, arguments.tokens), dtype=torch.long, device=pick_device())
            )
    print(peak_memory_bytes(pick_device()))


def backbone_of(extension: Path) -> str:
    folder = extension / "extension" if (extension / "run.yaml").is_file() else extension
    return str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path)


def start_up(arguments: argparse.Namespace) -> list[Measured]:
    """Time to load each model from disk."""
    tasks: dict[str, Callable[[], object]] = {
        "backbone": lambda: load_backbone(backbone_of(arguments.extension), dtype=torch.float32),
        "skip": lambda: load_saved(arguments.extension),
        "fused": lambda: fuse(load_saved(arguments.extension).model),
    }
    return timed("start-up", in_turns(tasks, rounds=arguments.rounds), against="backbone")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--extension", type=Path)
    parser.add_argument("--source")
    parser.add_argument("--target")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only-memory", choices=("nothing", "backbone", "skip", "fused"))
    arguments = parser.parse_args()
    if not arguments.extension and (arguments.source or arguments.target):
        parser.error("--source and --target have no effect without --extension")
    if arguments.tokens <= arguments.prompt_tokens + WARM_UP_TOKENS:
        least = arguments.prompt_tokens + WARM_UP_TOKENS + 1
        parser.error(f"--tokens {arguments.tokens}: {least} or more with this --prompt-tokens")
    if arguments.only_memory:
        only_memory(arguments)
        return
    finished("inference", "Running an extended model", measure(arguments), arguments)


if __name__ == "__main__":
    main()

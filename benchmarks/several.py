"""Compares several extensions in one model with each of them alone.

    python benchmarks/several.py runs/several/french runs/several/german runs/several/ukrainian

Arguments are output folders of finished runs of one backbone, or that of one run that trained
several extensions (`residues.per_target`). Printed are a row for each extension alone, for their
sum, and for the strongest gate over each number of tokens in `--over`; `--average` adds the average
of their weights. There is a column for each evaluation set of the runs: bits per byte, and in
brackets the change relative to the extension whose target it is, or to the backbone.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from neutral_residues.composition.compose import average, compose
from neutral_residues.config.run import load_run
from neutral_residues.data.run_data import RunData
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.data.tokenise import without_display
from neutral_residues.errors import UserError
from neutral_residues.evaluation.evaluate import evaluate
from neutral_residues.evaluation.saved import Saved, load_saved
from neutral_residues.evaluation.windows import Windows
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.tuner.gates import only_strongest

Bits = dict[str, float]
"""Set -> bits per byte."""


class Sets:
    """The evaluation sets of all runs, and the backbone's bits per byte on them."""

    def __init__(
        self, runs: Sequence[Path], saved: Saved, max_tokens: int | None, stride: int | None = None
    ) -> None:
        configs = [load_run(RunFolder(folder).config) for folder in runs]
        stride = stride or configs[0].stride_tokens
        self.windows = Windows(saved.end_of_text, configs[0].context_tokens, stride)
        self.max_tokens = max_tokens
        self.streams: dict[str, TokenStream] = {}
        self.owners: dict[str, str] = {}  # set -> the extension whose target it is
        for folder, config in zip(runs, configs, strict=True):
            data = RunData.of(config.data, saved.tokenizer, tokenising=without_display)
            for stream in data.evaluate:
                self.streams.setdefault(stream.name, stream)
                if stream.role == "target":
                    # A run that trains several extensions names them after their corpora.
                    self.owners[stream.name] = stream.name if len(runs) == 1 else folder.name
        self.backbone_nats: dict[str, float] | None = None
        self.backbone: Bits = {}

    def measure(self, model: Any) -> Bits:
        """Bits per byte of the model on every set."""
        found = evaluate(
            model,
            list(self.streams.values()),
            self.windows,
            backbone_nats=self.backbone_nats,
            max_tokens=self.max_tokens,
        )
        if self.backbone_nats is None:
            self.backbone_nats = {name: it.backbone_nats for name, it in found.items()}
            self.backbone = {name: it.backbone_bits_per_byte for name, it in found.items()}
        return {name: it.extended_bits_per_byte for name, it in found.items()}


def measured(sets: Sets, saved: Saved, overs: Sequence[int]) -> Iterator[tuple[str, Bits]]:
    """Yield label and results for each extension alone, their sum, and the strongest gate over each
    number of tokens in `overs`."""
    model: Any = saved.model
    assert saved.composition
    for name in saved.composition.names:
        model.set_adapter(name)
        yield name, sets.measure(model)
    model.base_model.set_adapter(saved.composition.names)
    yield "sum", sets.measure(model)
    for over in overs:
        only_strongest(model, over)
        yield f"strongest over {over}", sets.measure(model)


def line(label: str, bits: Bits, sets: Sets, alone: dict[str, Bits]) -> str:
    """A row of the table."""
    cells = []
    for name, value in bits.items():
        owner = sets.owners.get(name)
        before = sets.backbone if owner is None else alone.get(owner)
        change = f"{100 * (value / before[name] - 1):+.2f} %" if before else "?"
        cells.append(f"{value:.4f} ({change})")
    return f"| {label} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--over", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--average", action="store_true")
    parser.add_argument("--stride", type=int, help="default: of the first run")
    parser.add_argument("--max-tokens", type=int, help="of each set; default: all")
    arguments = parser.parse_args()
    folders = {folder.name: folder for folder in arguments.runs}
    with tempfile.TemporaryDirectory() as temporary:
        together, mean = Path(temporary) / "together", Path(temporary) / "average"
        if len(folders) > 1:
            compose(folders, together)
        saved = load_saved(together if len(folders) > 1 else arguments.runs[0])
        assert saved.composition is not None
        sets = Sets(arguments.runs, saved, arguments.max_tokens, arguments.stride)
        print(f"| | {' | '.join(sets.streams)} |\n|{'---|' * (len(sets.streams) + 1)}")
        alone: dict[str, Bits] = {}
        for label, bits in measured(sets, saved, arguments.over):
            if not alone:
                backbone = (f"{sets.backbone[name]:.4f}" for name in sets.streams)
                print(f"| backbone | {' | '.join(backbone)} |")
            alone |= {label: bits} if label in saved.composition.names else {}
            print(line(label, bits, sets, alone), flush=True)
        if arguments.average:
            average(folders, mean)
            print(line("average", sets.measure(load_saved(mean).model), sets, alone))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

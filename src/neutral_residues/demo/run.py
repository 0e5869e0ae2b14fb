"""The demo: a small English model learns French twice on a laptop's CPU, and both sides are shown.

Everything ships with the package (see demo_data/LICENSE.md); no network is used. The same steps,
rows and order for both.
"""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from neutral_residues.config.run import RunConfig, make_run
from neutral_residues.files import write_text
from neutral_residues.report.build import write_report
from neutral_residues.report.static_figures import draw_trade_off
from neutral_residues.results.record import Record
from neutral_residues.run import extend
from neutral_residues.training.progress import RunProgress

DEMO_DATA = Path(__file__).parent / "data"
METHODS = {"neutral": "neutral residues", "finetune": "plain fine-tuning"}
PROMPTS = ("Il y avait dans la ville", "She opened the door and")

NEXT_RUN = """\
# French for a real model. Needs the network (model and text come from the Hub) and, to be quick, a
# GPU.
#     neutral describe {path}      what it would do
#     neutral extend {path}        do it
model: HuggingFaceTB/SmolLM2-135M
output: {output}
data:
  train:
    - {{name: fr-wiki, role: target, dataset: wikimedia/wikipedia, subset: 20231101.fr, max_documents: 100000}}
    - {{name: en-wiki, role: source, dataset: wikimedia/wikipedia, subset: 20231101.en, max_documents: 20000}}
  source_share: 0.1
  block_tokens: 1024
training: {{steps: 3000, batch_rows: 16, accumulation: 4, evaluate_every: 250, save_every: 250}}
evaluation: {{prompts: ["La France est", "The capital of England is"]}}
"""


def demo_config(method: str, output: Path, *, steps: int, test_documents: int | None) -> RunConfig:
    """The run of the demo for one method: the same data, rows and steps for each."""

    def corpus(name: str, role: str, file: str, documents: int | None = None) -> dict[str, Any]:
        return {
            "name": name,
            "role": role,
            "path": str(DEMO_DATA / file),
            "max_documents": documents,
        }

    return make_run(
        {
            "model": str(DEMO_DATA / "backbone"),
            "method": method,
            "output": str(output / method),
            "data": {
                "train": [
                    corpus("fr", "target", "fr.train.jsonl.gz"),
                    corpus("en", "source", "en.train.jsonl.gz"),
                ],
                "evaluate": [
                    corpus("English", "source", "en.test.jsonl.gz", test_documents),
                    corpus("English-science", "source", "en-science.test.jsonl.gz", test_documents),
                    corpus("French", "target", "fr.test.jsonl.gz", test_documents),
                ],
                "block_tokens": 128,
                "cache": str(output / "tokens"),
            },
            "training": {
                "steps": steps,
                "batch_rows": 16,
                "warmup_steps": steps // 10,
                "log_every": 20,
                "evaluate_every": max(1, steps // 5),
                "save_every": 100,
            },
            "evaluation": {
                "tokens_while_training": 6000,
                "stride_tokens": 128,
                "prompts": PROMPTS,
                "temperature": 0.6,
            },
        }
    )


def run_demo(
    output: Path,
    *,
    console: Console | None = None,
    steps: int = 200,
    test_documents: int | None = None,
) -> dict[str, Record]:
    """Run both methods, print both sides, draw page and picture, say what to type next. Resumes if
    interrupted.

    Args:
        output: folder for the runs.
        steps: of each run.
        test_documents: how many documents of each held-out set are measured; None means all that
            ship.
    """
    console = console or Console()
    console.print(
        "[bold]An English model learns French, twice: the same text, the same steps.[/bold]\n"
    )
    records = {
        title: extend(
            demo_config(m, output, steps=steps, test_documents=test_documents),
            progress=RunProgress(console),
        )
        for m, title in METHODS.items()
    }
    picture = output / "trade-off.png"
    draw_trade_off(
        records,
        picture,
        sources=["English", "English-science"],
        target="French",
        title="An English model learns French: what it learns, what it forgets",
    )
    console.print(_table(records))
    _print_samples(records, console)
    page = write_report([output / method for method in METHODS], output / "report").page
    next_run = output / "next.yaml"
    write_text(next_run, NEXT_RUN.format(path=next_run, output=output / "next"))
    console.print(f"\npage        {page}", highlight=False)
    console.print(f"picture     {picture}", highlight=False)
    for method in METHODS:
        console.print(
            f"{method:<11} {output / method} (extension/, record.json, run.yaml)", highlight=False
        )
    console.print("\nNext, with a model from the Hub:", highlight=False)
    console.print(f"    neutral extend {next_run}", highlight=False)
    return records


def _table(records: dict[str, Record]) -> Table:
    table = Table(title="Bits per byte on held-out text (lower is better)", title_justify="left")
    table.add_column("")
    table.add_column("backbone", justify="right")
    for title in records:
        table.add_column(title, justify="right")
    for name, first in next(iter(records.values())).sets.items():
        results = [record.sets[name] for record in records.values()]
        cells = [f"{r.extended_bits_per_byte:.3f} ({r.rise_percent:+.1f} %)" for r in results]
        table.add_row(name, f"{first.backbone_bits_per_byte:.3f}", *cells)
    return table


def _print_samples(records: dict[str, Record], console: Console) -> None:
    first = next(iter(records.values()))
    for number, sample in enumerate(first.samples):
        console.print(Text(f"\n{sample.prompt} ...", style="bold"))
        console.print(
            f"  {'backbone':<18}", _one_line(sample.backbone), highlight=False, markup=False
        )
        for title, record in records.items():
            console.print(
                f"  {title:<18}",
                _one_line(record.samples[number].extended),
                highlight=False,
                markup=False,
            )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:160]

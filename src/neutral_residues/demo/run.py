"""The demo: a small English model learns French on a CPU, with two methods and the same text and
steps; prints what each learns and forgets.

Model and texts are in the package (see data/LICENSE.md), so that no network is needed.
"""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from neutral_residues.config.base import read_values
from neutral_residues.config.run import RunConfig, make_run
from neutral_residues.files import write_text
from neutral_residues.report.build import write_report
from neutral_residues.report.static_figures import draw_trade_off
from neutral_residues.results.record import Record
from neutral_residues.run import extend
from neutral_residues.training.progress import RunProgress

DEMO_DATA = Path(__file__).parent / "data"
METHODS = {"neutral": "neutral residues", "finetune": "plain fine-tuning"}


def demo_config(method: str, output: Path, *, steps: int, test_documents: int | None) -> RunConfig:
    """The run configuration of the demo for one method; data, rows and steps are the same for
    all."""
    values = read_values(DEMO_DATA / "run.yaml")
    data = values["data"]
    for corpus in (*data["train"], *data["evaluate"]):
        corpus["path"] = str(DEMO_DATA / corpus["path"])
    for corpus in data["evaluate"]:
        corpus["max_documents"] = test_documents
    data["cache"] = str(output / "tokens")
    every = max(1, steps // 5)
    values["training"] |= {"steps": steps, "warmup_steps": steps // 10, "evaluate_every": every}
    files = {"model": str(DEMO_DATA / values["model"]), "output": str(output / method)}
    return make_run(values | files | {"method": method})


def run_demo(
    output: Path,
    *,
    console: Console | None = None,
    steps: int = 200,
    test_documents: int | None = None,
) -> dict[str, Record]:
    """Run both methods, print what they learnt and forgot, write a report, and print the next
    command. An interrupted demo is resumed.

    Args:
        output: folder for the runs, the report and a run file to continue with.
        steps: training steps of each run.
        test_documents: number of documents of each held-out set to measure; None: all.

    Returns:
        Title of each method -> record of its run.
    """
    console = console or Console()
    greeting = "An English model learns French, twice: the same text, the same steps."
    console.print(f"[bold]{greeting}[/bold]\n")
    records = {}
    for method, title in METHODS.items():
        config = demo_config(method, output, steps=steps, test_documents=test_documents)
        records[title] = extend(config, progress=RunProgress(console))
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
    text = (DEMO_DATA / "next.yaml").read_text(encoding="utf-8")
    text = text.replace("RUN_FILE", str(next_run)).replace("OUTPUT", str(output / "next"))
    write_text(next_run, text)
    lines = [f"\npage        {page}", f"picture     {picture}"]
    lines += [f"{m:<11} {output / m} (extension/, record.json, run.yaml)" for m in METHODS]
    lines += ["\nNext, with a model from the Hub:", f"    neutral extend {next_run}"]
    console.print("\n".join(lines), highlight=False)
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
    for number, sample in enumerate(next(iter(records.values())).samples):
        console.print(Text(f"\n{sample.prompt} ...", style="bold"))
        texts = {"backbone": sample.backbone}
        texts |= {title: record.samples[number].extended for title, record in records.items()}
        for title, text in texts.items():
            line = " ".join(text.split())[:160]
            console.print(f"  {title:<18}", line, highlight=False, markup=False)

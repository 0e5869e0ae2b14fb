"""The numbers of docs/speed.md are those of the stored benchmarks."""

import re

from neutral_residues.results.benchmark import read_benchmark
from paths import ROOT

PAGE = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
WHO_RUNS = {"plain PEFT path": "plain", "skipping": "skip"}
WHO_TRAINS = {
    "neutral residues": "neutral",
    "gate-less adapter": "adapter",
    "LoRA, all linear": "lora",
    "LoRA on the MLP": "lora-mlp",
}


def ratios(file: str) -> dict[tuple[str, str], str]:
    rows = read_benchmark(ROOT / "docs" / "benchmarks" / f"{file}.json").rows
    return {(row.group.split(" of training")[0], row.name): f"{row.ratio:.2f}" for row in rows}


def table(first: str) -> list[list[str]]:
    """Cells of the table whose first heading is that, without the line below the headings."""
    lines = PAGE[PAGE.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    rows = [re.split(r" *\| *", line.strip("| ")) for line in lines]
    return [rows[0], *rows[2:]]


def test_the_times_of_running() -> None:
    header, *rows = table("time, x backbone")
    for number, (title, *cells) in enumerate(rows):
        measured = ratios("inference-400m" if number < 2 else "inference-en3m")
        who = next(short for long, short in WHO_RUNS.items() if long in title)
        assert cells == [measured[group, who] for group in header[1:]], title


def test_time_and_memory_of_training() -> None:
    header, *rows = table("x full fine-tuning")
    for title, *cells in rows:
        what, size = title.split(", ")
        measured = ratios("training-en3m" if size == "3 M weights" else "training-100m")
        assert cells == [measured[what, WHO_TRAINS[name]] for name in header[1:]], title

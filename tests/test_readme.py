"""What the README says is run, or held against the project."""

import contextlib
import gzip
import io
import json
import math
import re
import statistics
from pathlib import Path

import pytest
import yaml

from neutral_residues.compare.grid import expand
from neutral_residues.config.base import checked
from neutral_residues.config.comparison import CompareConfig, load_comparison
from neutral_residues.config.run import load_run, make_run
from neutral_residues.demo.run import DEMO_DATA
from neutral_residues.methods.table import find_method
from neutral_residues.results.benchmark import read_benchmark
from neutral_residues.results.record import Record
from paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
IGNORED = {"__pycache__", "py.typed"}


def blocks(language: str) -> list[str]:
    """The fenced blocks of that language, in order; "" for those that name none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def test_the_python_example_prints_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(blocks("python")[0], "README.md", "exec"), {})
    assert printed.getvalue().strip() in [block.strip() for block in blocks("")]


def test_the_three_lines_define_a_trainer() -> None:
    from transformers import Trainer

    namespace: dict[str, type] = {}
    exec(compile(blocks("python")[1], "README.md", "exec"), namespace)
    assert issubclass(namespace["MyTrainer"], Trainer)


def test_the_fast_example_gives_each_request_its_own() -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from neutral_residues import NeutralResiduesConfig

    folder = ROOT / "src" / "neutral_residues" / "demo" / "data" / "backbone"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder),
        NeutralResiduesConfig(width=8),
        adapter_name="french",
    )
    model.add_adapter("german", NeutralResiduesConfig(width=8))
    model.base_model.set_adapter(["french", "german"])
    prompts = tokenizer(["The cat", "The dog", "The man"], return_tensors="pt")
    prompts = {name: prompts[name] for name in ("input_ids", "attention_mask")} | {
        "max_new_tokens": 2
    }
    exec(
        compile(blocks("python")[2], "README.md", "exec"),
        {"model": model.eval(), "prompts": prompts},
    )


def test_run_file_and_comparison_are_valid() -> None:
    run, comparison = blocks("yaml")
    assert make_run(yaml.safe_load(run)).budget == 0.20
    methods = checked(CompareConfig, yaml.safe_load(comparison)).methods
    assert all(find_method(entry.method) for entry in methods)


RUNS = [
    path
    for folder in ("", "small", "large")
    for path in sorted((ROOT / "recipes" / folder).glob("*.yaml"))
]
COMPARISONS = sorted((ROOT / "recipes" / "compare").glob("*.yaml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda p: f"{p.parent.stem}/{p.stem}")
def test_every_recipe_is_valid(path: Path) -> None:
    assert load_run(path).data.source_share == 0.1


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda p: p.stem)
def test_every_comparison_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell is checked, with the backbone that ships in place of the shared one, which is the
    same."""
    monkeypatch.chdir(ROOT)
    config = load_comparison(path, (f"set.model={DEMO_DATA / 'backbone'}",))
    assert len(expand(config).trained) >= len(config.methods) - 1
    assert config.seeds == ((0,) if path.stem == "figure1" else (0, 1, 2))


def test_commands_exist() -> None:
    from neutral_residues.cli.app import app

    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    named = set(re.findall(r"`neutral (\w+)", README))
    assert named == known
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE)) <= targets


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


ROWS = {
    "full fine-tuning": "finetune/lr0.004-p0.1",
    "LoRA on the same budget": "lora/b0.2-lr0.006-p0.1",
    "gate-less adapter": "adapter/b0.2-lr0.01-p0.1",
    "weight averaging, 0.4": "wise-ft/share0.4-lr0.004-p0.1",
    "**neutral residues**": "neutral/b0.2-lr0.005-p0.1",
}


def packed(name: str) -> dict[str, Record]:
    """The records of a comparison that ships with the repository: path of the cell -> record."""
    lines = (
        gzip.decompress((ROOT / "docs" / "comparisons" / f"{name}.jsonl.gz").read_bytes())
        .decode()
        .splitlines()
    )
    return {
        entry["path"]: Record.model_validate(entry["content"]) for entry in map(json.loads, lines)
    }


def table_row(title: str) -> list[str]:
    line = next(line for line in README.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip(" *") for cell in line.strip("|").split("|")[1:]]


@pytest.mark.parametrize("title", ROWS)
def test_the_results_are_those_of_the_records(title: str) -> None:
    runs = [
        record
        for path, record in packed("main").items()
        if path.startswith(f"cells/french/{ROWS[title]}-s")
    ]
    assert len(runs) == 3
    for cell, name in zip(table_row(title), ("en", "en-pubmed", "en-wiki", "fr"), strict=False):
        before = statistics.fmean(run.sets[name].backbone_bits_per_byte for run in runs)
        after = statistics.fmean(run.sets[name].extended_bits_per_byte for run in runs)
        shown = [f"{after:.3f}", f"({100 * (after / before - 1):+.1f} %)"]
        assert cell == (shown[0] if name == "fr" else " ".join(shown))
        assert (
            table_row("backbone")[("en", "en-pubmed", "en-wiki", "fr").index(name)]
            == f"{before:.3f}"
        )


def test_the_claims_are_those_of_the_report() -> None:
    """Forgetting at equal learning, as the report works it out from the same records."""
    from neutral_residues.report.aggregate import sections
    from neutral_residues.report.load import Found
    from neutral_residues.report.pareto import compare_with_neutral

    (section,) = sections([Found(path, record) for path, record in packed("main").items()])
    comparison = compare_with_neutral(section)
    assert comparison is not None
    assert comparison.better_on_both_sides == ()
    forgets: dict[str, float] = {}
    for other in comparison.others:
        if other.forgetting is not None:
            label = other.name.split(" ")[0]
            forgets[label] = min(forgets.get(label, math.inf), other.forgetting)
    for title, name in ROWS.items():
        label = name.split("/")[0]
        expected = comparison.reference.forgetting.mean if label == "neutral" else forgets[label]
        assert table_row(title)[-1] == f"{expected:+.1f} %"


WHO_RUNS = {"plain PEFT path": "plain", "skipping": "skip"}
WHO_TRAINS = {
    "neutral residues": "neutral",
    "gate-less adapter": "adapter",
    "LoRA, all linear": "lora",
}
WHO_TRAINS |= {"LoRA on the MLP": "lora-mlp"}


def ratios(file: str) -> dict[tuple[str, str], str]:
    rows = read_benchmark(ROOT / "docs" / "benchmarks" / f"{file}.json").rows
    return {(row.group.split(" of training")[0], row.name): f"{row.ratio:.2f}" for row in rows}


def test_the_times_are_those_of_the_benchmarks() -> None:
    running = table("time, x backbone")
    for number, (title, *cells) in enumerate(running[1:]):
        measured = ratios("inference-400m" if number < 2 else "inference-en3m")
        who = next(short for long, short in WHO_RUNS.items() if long in title)
        assert cells == [measured[group, who] for group in running[0][1:]], title
    training = table("x full fine-tuning")
    for title, *cells in training[1:]:
        what, size = title.split(", ")
        measured = ratios("training-en3m" if size == "3 M weights" else "training-100m")
        assert cells == [measured[what, WHO_TRAINS[name]] for name in training[0][1:]], title


def table(first: str) -> list[list[str]]:
    """Cells of the README's table whose first heading is that, without the line below the
    headings."""
    lines = README[README.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    rows = [re.split(r" *\| *", line.strip("| ")) for line in lines]
    return [rows[0], *rows[2:]]

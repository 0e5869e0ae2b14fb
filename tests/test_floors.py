"""Imports point one way: a file imports only from files above it in this list. Light files stay light."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "neutral_residues"

# One way down: text -> tokens -> mixed rows -> model with residues -> loss -> training -> evaluation -> record.
ORDER = [
    *("registration", "errors", "files", "config", "comparison", "languages", "record", "results", "speed", "scores"),
    *("token_classes", "display", "summary", "model_card", "figures"),
    *("run_folder", "report.collect", "report.settings", "report.points", "report.fronts", "report.numbers"),
    *("report.verdict", "report.looks", "report.tables", "report.tasks", "report.measured", "report.heat"),
    *("report.plots", "report.why", "report.benchmarks", "report.pictures", "report.markdown", "report.page"),
    "report.command",
    *("data.text", "data.encoding", "data.tokens"),
    *("adapters.neutral", "adapters.places", "adapters.glu", "adapters.settings", "adapters.open_tokens"),
    *("adapters.layer", "adapters.fused", "adapters.attach", "losses", "collator", "mixin"),
    *("adapters.low_rank", "adapters.whole", "adapters.expansion", "data.mixing", "data.noise", "loading", "methods"),
    *("corpus_check", "advice", "preparation", "text_facts", "cost", "tally", "evaluate", "breakdown", "gates"),
    *("generate", "tasks.paired", "tasks.pairs", "tasks.cloze", "tasks.suites", "tasks.keeping", "tasks.scoring"),
    *("tasks.harness", "tasks.measure", "train", "watching", "run", "probe", "advise", "saved", "measure_saved"),
    *("export.parts", "export.probe", "export.remote_code", "export.moe", "export.dense", "export.plain"),
    *("export.child", "export.check", "export.formats", "export.card", "export.export", "export.command"),
    *("cells", "compare", "planning", "commands", "demo", "cli"),
]

# These run where torch is not installed or not wanted.
NO_TORCH = [*ORDER[: ORDER.index("data.text") + 1], "cli"]


def modules() -> dict[str, Path]:
    return {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file
        for file in PACKAGE.rglob("*.py")
        if file.name != "__init__.py"
    }


def imports(file: Path, *, top_level_only: bool = False) -> list[tuple[int, str]]:
    """(line, module) of each import; those under `if TYPE_CHECKING` are for the type checker alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    found = []
    for node in tree.body if top_level_only else ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.lineno, node.module))
    return found


def test_every_file_has_its_place() -> None:
    assert set(modules()) == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_one_way(name: str) -> None:
    allowed = ORDER[: ORDER.index(name)]
    for line, imported in imports(modules()[name]):
        if imported.startswith("neutral_residues."):
            short = imported.removeprefix("neutral_residues.")
            assert short in allowed, f"{name}.py line {line} imports {short}, which is not below it"


@pytest.mark.parametrize("name", NO_TORCH)
def test_light_files_do_not_import_heavy_ones(name: str) -> None:
    for line, imported in imports(modules()[name], top_level_only=True):
        heavy = imported.split(".")[0] in {
            "torch",
            "transformers",
            "peft",
            "datasets",
            "trl",
            "matplotlib",
            "plotly",
            "lm_eval",
        }
        ours = imported.removeprefix("neutral_residues.")
        also_heavy = imported.startswith("neutral_residues.") and ours not in NO_TORCH
        assert not heavy, f"{name}.py line {line} imports {imported}"
        assert not also_heavy, f"{name}.py line {line} imports {ours}, which needs torch"


def test_no_file_is_two_subjects() -> None:
    too_long = {name: n for name, file in modules().items() if (n := len(file.read_text().splitlines())) > 400}
    assert not too_long

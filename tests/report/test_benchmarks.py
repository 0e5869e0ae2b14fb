"""Benchmarks in the report: what was measured is drawn beside its bound, with or without
records."""

import re
from pathlib import Path
from typing import Any

import pytest

from neutral_residues.report.benchmarks import benchmark_plots
from neutral_residues.report.build import write_report
from neutral_residues.results.benchmark import Benchmark, Measured, write_benchmark
from neutral_residues.results.store import provenance, write_record
from synthetic import make_record


def row(name: str, ratio: float, **more: Any) -> Measured:
    return Measured(
        group="decode <text>", name=name, against="backbone", ratio=ratio, value=0.1, **more
    )


def benchmark(rows: list[Measured]) -> Benchmark:
    where = provenance()
    return Benchmark(
        name="inference",
        title="Running it",
        command="python x.py",
        threads=2,
        rounds=3,
        provenance=where,
        rows=rows,
    )


BARS = [row("backbone", 1.0, bound=1.0), row("skip", 1.013, bound=1.0), row("own", 1.3)]
GROWTH = [row("skip", 1.1 + n, bound=1.0 + n, x=float(n), x_label="tokens") for n in (1, 2, 3)]


def test_bars_have_their_bounds_and_lines_too() -> None:
    (bars,) = benchmark_plots(benchmark(BARS))
    assert list(bars.figure.data[0].x) == [1.0, 1.013, 1.3]
    assert list(bars.figure.data[1].x) == [1.0, 1.0]
    (lines,) = benchmark_plots(benchmark(GROWTH))
    measured, bound = lines.figure.data
    assert list(measured.x) == list(bound.x) == [1.0, 2.0, 3.0]
    assert [a - b for a, b in zip(measured.y, bound.y, strict=True)] == pytest.approx([0.1] * 3)


def test_a_report_of_benchmarks_alone_and_with_a_run(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "b.json", benchmark([*BARS, *GROWTH]))
    page = write_report([tmp_path / "b.json"], tmp_path / "alone").page.read_text()
    assert "report of 0 runs and 1 benchmark" in page
    assert "decode &lt;text&gt;" in page
    assert "decode <text>" not in page
    summary = (tmp_path / "alone" / "summary.md").read_text()
    assert re.search(r"\| skip \| decode .*text.* \| backbone \| 1.013 \| 1.000 \|", summary)
    assert "| skip, tokens 3 |" in summary
    write_record(tmp_path / "record.json", make_record())
    both = write_report([tmp_path / "record.json", tmp_path / "b.json"], tmp_path / "both")
    assert "report of 1 run and 1 benchmark" in both.page.read_text()

"""The page: one HTML file that holds everything, text, figures and the library that draws them.

It asks nothing of any network and says so to the browser (Content-Security-Policy). All text is
escaped by Jinja; data for scripts is JSON in which `<`, `>` and `&` are escaped too, so that no
label can end a script. The same records give the same bytes.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import neutral_residues.report.formatting as numbers
from neutral_residues.report.aggregate import Point, Section
from neutral_residues.report.benchmarks import shown_benchmarks
from neutral_residues.report.breakdown import (
    WorstDocument,
    change_plots,
    concentrated,
    explanation,
    worst_documents,
)
from neutral_residues.report.gate_heatmap import HeatText, heat_texts
from neutral_residues.report.load import Collection
from neutral_residues.report.plots import Plot, all_plots
from neutral_residues.report.style import Look, looks
from neutral_residues.report.tables import (
    Table,
    cost_table,
    equal_learning_table,
    points_table,
    rates_table,
)
from neutral_residues.report.tasks import task_sentences, tasks_table
from neutral_residues.report.verdict import verdict

HERE = Path(__file__).parent
GENERATOR = "neutral-residues report"
"""What the page calls its maker; by this an older report is known."""


@dataclass(frozen=True)
class Continuations:
    """One prompt and how everybody goes on from it.

    Attributes:
        by_name: "backbone" and each run -> its text.
    """

    prompt: str
    by_name: dict[str, str]


@dataclass(frozen=True)
class Source:
    """Where a point comes from.

    Attributes:
        facts: (name, text) of each thing that is known.
        config: the resolved configuration of its first seed, as indented JSON.
    """

    name: str
    curve: str
    facts: tuple[tuple[str, str], ...]
    config: str


@dataclass(frozen=True)
class Shown:
    """One section, ready for the template."""

    key: str
    section: Section
    verdict: str
    looks: dict[str, Look]
    plots: list[Plot]
    points: Table
    costs: Table
    equal: Table | None
    rates: Table | None
    tasks: Table | None
    task_sentences: list[str]
    heat: list[HeatText]
    concentrated: list[str]
    worst_documents: dict[str, list[WorstDocument]]
    samples: list[Continuations]
    sources: list[Source]

    def plots_of(self, start: str) -> list[Plot]:
        """Those whose key starts so."""
        return [plot for plot in self.plots if plot.key.startswith(start)]


def render(collection: Collection, sections: Sequence[Section]) -> str:
    """The whole page as HTML."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template("page.html.jinja").render(
        generator=GENERATOR,
        title=_title(sections),
        shown=[_shown(number, section) for number, section in enumerate(sections, start=1)],
        unfinished=collection.unfinished,
        num_records=len(collection.found),
        benchmarks=shown_benchmarks(collection.benchmarks),
        few_tokens=explanation(),
        figure_json=lambda plot: Markup(figure_json(plot)),
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        js=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
    )
    return page.lstrip()


def _title(sections: Sequence[Section]) -> str:
    return (
        f"Learning and forgetting: {'; '.join(s.name for s in sections)}" if sections else "Speed"
    )


def figure_json(plot: Plot) -> str:
    """A figure as JSON that is safe inside a script element."""
    figure = plot.figure.to_plotly_json()
    value = {"data": figure["data"], "layout": figure["layout"], "views": plot.views}
    text = json.dumps(
        value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
    )
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _shown(number: int, section: Section) -> Shown:
    return Shown(
        key=f"s{number}",
        section=section,
        verdict=verdict(section),
        looks=looks(section.curves),
        plots=[*all_plots(section), *change_plots(section)],
        points=points_table(section),
        costs=cost_table(section),
        equal=equal_learning_table(section),
        rates=rates_table(section),
        tasks=tasks_table(section),
        task_sentences=task_sentences(section),
        heat=heat_texts(section),
        concentrated=concentrated(section),
        worst_documents=worst_documents(section),
        samples=_samples(section),
        sources=[_source(point) for point in section.points],
    )


def _samples(section: Section) -> list[Continuations]:
    """Continuations of the first seed of each row, by prompt."""
    by_prompt: dict[str, dict[str, str]] = {}
    for point in section.rows:
        for sample in point.first.samples:
            texts = by_prompt.setdefault(sample.prompt, {"backbone": sample.backbone})
            texts[numbers.row_name(point, section)] = sample.extended
    return [Continuations(prompt, texts) for prompt, texts in by_prompt.items()]


def _source(point: Point) -> Source:
    records = [run.record for run in point.runs]

    def each(values: Iterable[object]) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values if value is not None))

    packages = dict.fromkeys(
        f"{k} {v}" for record in records for k, v in record.provenance.packages.items() if v
    )
    facts: list[tuple[str, str]] = [
        ("records", each(run.origin for run in point.runs)),
        ("seeds", each(record.config.get("seed", record.provenance.seed) for record in records)),
        ("made", each(f"{record.created:%Y-%m-%d %H:%M} UTC" for record in records)),
        ("commit", each(record.provenance.git_commit for record in records)),
        (
            "ran on",
            each(f"{record.provenance.device}, {record.provenance.platform}" for record in records),
        ),
        (
            "packages",
            ", ".join(
                ["Python " + each(record.provenance.python for record in records), *packages]
            ),
        ),
        ("tokenizer", each(record.provenance.tokenizer_key for record in records)),
    ]
    config: dict[str, Any] = records[0].config
    return Source(
        numbers.described(point),
        point.name,
        tuple(fact for fact in facts if fact[1]),
        json.dumps(config, indent=2, ensure_ascii=False),
    )

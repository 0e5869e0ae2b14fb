"""The page: one HTML file with everything: text, figures, and the library that draws them.

It loads nothing from any network and forbids the browser to (Content-Security-Policy). All text is
escaped by Jinja; data for scripts is JSON in which `<`, `>` and `&` are escaped too, so that no
label can end a script. The same records give the same bytes.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neutral_residues.evaluation.token_kinds import FEW_TOKENS
from neutral_residues.report.aggregate import Point, Section
from neutral_residues.report.benchmarks import benchmark_facts, benchmark_plots
from neutral_residues.report.breakdown import change_plots, worst_documents
from neutral_residues.report.figure import Plot
from neutral_residues.report.formatting import share
from neutral_residues.report.gate_heatmap import STEPS, heat_texts
from neutral_residues.report.load import Collection
from neutral_residues.report.plots import layers, plane, training
from neutral_residues.report.promises import promises_table
from neutral_residues.report.scatter import grammar, kept, razor
from neutral_residues.report.spliced import spliced_plots, spliced_table
from neutral_residues.report.style import styles
from neutral_residues.report.tables import (
    beginnings_table,
    cost_table,
    equal_learning_table,
    points_table,
    unfinished_table,
)
from neutral_residues.report.tasks import task_plots, tasks_table
from neutral_residues.report.verdict import few_tokens, task_sentences, verdict

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"
GENERATOR = "neutral-residues report"
"""The generator named in the page, by which an earlier report is recognised."""


def environment(*, autoescape: bool, **filters: Callable[[Any], str]) -> "jinja2.Environment":
    """The templates of the report; an undefined name in them is an error."""
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= filters
    return found


def render(collection: Collection, sections: Sequence[Section]) -> str:
    """The whole page as HTML."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    names = "; ".join(section.name for section in sections)
    page = (
        environment(autoescape=True)
        .get_template("page.html.jinja")
        .render(
            generator=GENERATOR,
            title=f"Learning and forgetting: {names}" if sections else "Speed",
            num_records=len(collection.found),
            sections=[shown_section(section) for section in sections],
            benchmarks=collection.benchmarks,
            benchmark_plots=benchmark_plots,
            benchmark_facts=benchmark_facts,
            unfinished=unfinished_table(collection.unfinished),
            few_tokens_share=share(FEW_TOKENS),
            gate_steps=STEPS,
            figure_json=lambda plot: Markup(figure_json(plot)),
            css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
            js=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),
            plotly=Markup(get_plotlyjs()),
        )
    )
    return page.lstrip()


def figure_json(plot: Plot) -> str:
    """A figure as JSON that is safe inside a script element."""
    figure = plot.figure.to_plotly_json()
    value = {"data": figure["data"], "layout": figure["layout"], "views": plot.views}
    compact: dict[str, Any] = {"sort_keys": True, "separators": (",", ":")}
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, **compact)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def shown_section(section: Section) -> dict[str, Any]:
    """The parts of a section for the template, each under the name of its function."""
    tables = (points_table, equal_learning_table, tasks_table, worst_documents, cost_table)
    plots = (plane, kept, task_plots, grammar, razor, training, change_plots, layers, heat_texts)
    spliced = (beginnings_table, spliced_table, spliced_plots, promises_table)
    words = (verdict, task_sentences, few_tokens, samples)
    shown = {part.__name__: part(section) for part in (*tables, *plots, *spliced, *words)}
    origins = [_origin(point) for point in section.points]
    return {"section": section, "styles": styles(section.curves), "origins": origins, **shown}


def samples(section: Section) -> dict[str, dict[str, str]]:
    """Prompt -> "backbone" and each row -> continuation by its first seed."""
    by_prompt: dict[str, dict[str, str]] = {}
    for point in section.rows:
        for sample in point.first.samples:
            texts = by_prompt.setdefault(sample.prompt, {"backbone": sample.backbone})
            texts[section.row_name(point)] = sample.extended
    return by_prompt


def _origin(point: Point) -> dict[str, Any]:
    """Provenance of a point: the facts that are known, and the configuration of its first seed."""
    records = [run.record for run in point.runs]
    made = [record.provenance for record in records]

    def each(values: Iterable[object]) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values if value is not None))

    versions = (f"{k} {v}" for one in made for k, v in one.packages.items() if v)
    facts = {
        "records": each(run.origin for run in point.runs),
        "seeds": each(record.config.get("seed", record.provenance.seed) for record in records),
        "made": each(f"{record.created:%Y-%m-%d %H:%M} UTC" for record in records),
        "commit": each(one.git_commit for one in made),
        "ran on": each(f"{one.device}, {one.platform}" for one in made),
        "packages": each([*(f"Python {one.python}" for one in made), *versions]),
        "tokenizer": each(one.tokenizer_key for one in made),
    }
    return {
        "name": point.full_name,
        "curve": point.name,
        "facts": {name: text for name, text in facts.items() if text},
        "config": json.dumps(records[0].config, indent=2, ensure_ascii=False),
    }

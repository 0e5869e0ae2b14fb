"""Sentences from numbers, true for any numbers: the result, what moved it, and tasks."""

import math
import statistics
from collections.abc import Iterator, Sequence

from neutral_residues.evaluation.tasks.languages import language_name
from neutral_residues.evaluation.token_kinds import few_tokens_line
from neutral_residues.report.aggregate import Point, Section, Spread, grouped
from neutral_residues.report.breakdown import breakdowns, changes, sets_broken_down
from neutral_residues.report.formatting import change, number, seeds, share
from neutral_residues.report.pareto import (
    KL,
    Comparison,
    Lost,
    became_easier,
    compare_with_neutral,
    lost_in,
    pareto_front,
)
from neutral_residues.report.tasks import TaskResult, task_results
from neutral_residues.results.wording import change_in_words

ROWS_NAMED = 6
TASKS_NAMED = 3
"""For a language with more tasks than this their mean is given."""


def verdict(section: Section) -> str:
    """What neutral residues (or else the run that learns most) learnt and forgot; then the other
    methods."""
    comparison = compare_with_neutral(section)
    if comparison is not None:
        found = [_both_sides(section, comparison.reference), _others(section, comparison)]
    else:
        most = min(section.rows, key=lambda point: point.bits.mean)
        best = pareto_front(section.points, lost_in(section).of)
        front = ", ".join(dict.fromkeys(point.name for point in best))
        found = [_both_sides(section, most), f"On the Pareto front: {front}."]
    return " ".join([*found, *_distances(section)])


def _distances(section: Section) -> list[str]:
    """How far predictions on source text moved, nearest first, if that was measured; and what it is
    good for, where source text became easier."""
    kl = {point: it for point in section.rows if (it := point.kl("source")) is not None}
    if not kl:
        return []
    near = sorted(kl, key=lambda point: kl[point].mean)[:ROWS_NAMED]
    named = ", ".join(f"{section.row_name(point)} {number(kl[point])}" for point in near)
    found = [f"KL from the backbone on source text, nats per token: {named}."]
    if became_easier(kl):
        easier = "Where source text became easier, bits per byte hide what was lost"
        found.append(f"{easier}; KL does not.")
    return found


def _both_sides(section: Section, point: Point) -> str:
    learnt = point.learning_percent.mean < 0
    facts = [change(point.learning_percent, 1), seeds(point.bits.n)]
    if learnt and point.learning_share:
        facts.insert(1, f"{share(point.learning_share)} of full fine-tuning's drop")
    average = " on average" if len(section.sources) > 1 else ""
    return (
        f"On {section.name}, {section.row_name(point)} {'lowers' if learnt else 'does not lower'}"
        f" bits per byte from {number(point.backbone_bits)} to {number(point.bits)}"
        f" ({', '.join(facts)}), while those of source text"
        f" ({', '.join(section.sources)}) change by {change(point.forgetting)}{average}."
    )


def _others(section: Section, comparison: Comparison) -> str:
    if len(section.points) == 1:
        return "Nothing else was measured here."
    budget = f"; {_same_budget(section, comparison)}" if comparison.num_same_budget else ""
    return f"{_equal_learning(comparison)}{budget}."


def _equal_learning(comparison: Comparison) -> str:
    if not comparison.others:
        return "No other method was measured here"
    best, lost = comparison.others[0], comparison.lost
    if best.lost is None:
        least = number(best.lowest_bits)
        return f"No other method learns as much: {best.name} comes nearest with {least}"
    theirs = _amount(best.lost, lost)
    if best.num_points == 1:
        theirs += " (on a straight line from the backbone to its one point, which overstates it)"
    if best.lost <= lost.of(comparison.reference).mean:
        less = "is nearer to the backbone" if lost is KL else "forgets less"
        return f"At equal learning {best.name} {less}: {theirs}"
    times = "" if best.times is None else f", {number(best.times, 1)} times as much"
    verb = "has" if lost is KL else "forgets"
    return f"At equal learning the next best, {best.name}, {verb} {theirs}{times}"


def _amount(value: float | Spread, lost: Lost) -> str:
    """What was lost, in words."""
    return f"a {lost.name} of {number(value)}" if lost is KL else change(value)


def _same_budget(section: Section, comparison: Comparison) -> str:
    better, lost = comparison.better_on_both_sides, comparison.lost
    if not better:
        return "no point of the same budget, or that adds no weights, is better on both sides"
    first = min(better, key=lambda point: lost.of(point).mean)
    more = f" (and {len(better) - 1} more)" if len(better) > 1 else ""
    amount = _amount(lost.of(first), lost)
    own = amount if lost is KL else f"{amount} forgetting"
    return (
        f"{section.row_name(first)}{more} is better on both sides ({own},"
        f" {number(first.bits)} bits per byte)"
    )


def moved(section: Section) -> str:
    """The kinds of tokens that changed each set most, from the first row with a breakdown; empty
    without."""
    parts, name = [], ""
    for set_name in sets_broken_down(section):
        point, breakdown = breakdowns(section, set_name)[0]
        name = name or section.row_name(point)
        most = sorted(changes(breakdown).items(), key=lambda item: -abs(item[1]))[:2]
        kinds = [f"{kind} {number(value, signed=True)}" for kind, value in most]
        total = number(point.first.sets[set_name].rise_bits_per_byte, signed=True)
        few = "; few tokens carry it" if breakdown.is_concentrated else ""
        parts.append(f"{set_name} {total} ({', '.join(kinds)}{few})")
    return f"What moved the bits per byte ({name}): {'; '.join(parts)}." if parts else ""


def few_tokens(section: Section) -> list[str]:
    """One sentence for each change that comes from few token types."""
    return [
        f"{section.row_name(point)} on {few_tokens_line(set_name, breakdown)}."
        for set_name in sets_broken_down(section)
        for point, breakdown in breakdowns(section, set_name)
        if breakdown.is_concentrated
    ]


def task_sentences(section: Section) -> list[str]:
    """One sentence for each run: how each language changed."""
    return [
        f"{section.row_name(found[0].point)} – {'; '.join(_by_language(found))}."
        for found in grouped(task_results(section, main_only=True), lambda result: result.point)
    ]


def _by_language(found: Sequence[TaskResult]) -> Iterator[str]:
    """Each language's tasks, or their mean if there are many; scores that are not shares cannot be
    averaged."""
    for results in grouped(found, _language):
        name, words = _language(results[0]), ""
        if name is not None and len(results) > TASKS_NAMED:
            words = f"mean of {len(results)} tasks {_mean_change(results)}"
        else:
            words = ", ".join(f"{result.score.name} {result.change}" for result in results)
        yield f"{name}: {words}" if name else words


def _language(result: TaskResult) -> str | None:
    averages = result.is_share and result.score.direction == "higher"
    return language_name(result.score.language) if averages else None


def _mean_change(results: Sequence[TaskResult]) -> str:
    """The mean change; as the tasks have different items, the squares of the half-widths of the
    intervals add."""
    half = math.hypot(*((result.high - result.low) / 2 for result in results)) / len(results)
    mean = statistics.fmean(result.difference.mean for result in results)
    return change_in_words(mean, mean - half, mean + half, direction="higher")

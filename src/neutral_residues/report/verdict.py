"""The result of a section in two sentences, from the numbers alone and true whatever they are."""

from neutral_residues.report.aggregate import Point, Section
from neutral_residues.report.formatting import number, percent, row_name, seeds, share, spread
from neutral_residues.report.pareto import Comparison, compare, pareto_front


def verdict(section: Section) -> str:
    """Two sentences: what the point of neutral residues learnt and forgot; how the rest
    compares."""
    comparison = compare(section)
    if comparison is None:
        return f"{_without_neutral(section)} {_front(section)}"
    return f"{_both_sides(section, comparison.ours)} {_against_others(section, comparison)}"


def _both_sides(section: Section, point: Point) -> str:
    learnt = point.learning_percent.mean < 0
    of_finetuning = (
        f", {share(point.learning_share)} of full fine-tuning's drop"
        if point.learning_share
        else ""
    )
    return (
        f"On {section.name}, {row_name(point, section)} {'lowers' if learnt else 'does not lower'}"
        f" bits per byte from {number(point.backbone_bits)} to {spread(point.bits)}"
        f" ({percent(point.learning_percent, 1)}{of_finetuning if learnt else ''};"
        f" {seeds(point.bits.n)}), while bits per byte of source text"
        f" ({', '.join(section.sources)}) change by"
        f" {percent(point.forgetting)}{_on_average(section)}."
    )


def _on_average(section: Section) -> str:
    return " on average" if len(section.sources) > 1 else ""


def _against_others(section: Section, comparison: Comparison) -> str:
    if len(section.points) == 1:
        return "Nothing else was measured here, so there is nothing to compare it with."
    parts = (
        [_equal_learning(comparison)]
        if comparison.others
        else ["No other method was measured here"]
    )
    if comparison.num_same_budget:
        parts.append(_same_budget(section, comparison))
    return "; ".join(parts) + "."


def _equal_learning(comparison: Comparison) -> str:
    best, ours = comparison.next_best, comparison.ours.forgetting.mean
    if best is None or best.forgetting is None:
        nearest = min(comparison.others, key=lambda other: other.lowest_bits)
        return (
            f"No other method learns as much: {nearest.name} comes nearest with"
            f" {number(nearest.lowest_bits)}"
        )
    theirs = f"{number(best.forgetting, 2, sign=True)} %"
    if best.num_points == 1:
        theirs += " (on a straight line from the backbone to its one point, which overstates it)"
    if best.forgetting <= ours:
        return f"At equal learning {best.name} forgets less: {theirs}"
    if comparison.ratio is None:
        return f"It forgets nothing; at equal learning the next best, {best.name}, forgets {theirs}"
    times = f"{number(comparison.ratio, 1)} times as much"
    return f"At equal learning the next best, {best.name}, forgets {theirs}, {times}"


def _same_budget(section: Section, comparison: Comparison) -> str:
    better = comparison.better_on_both_sides
    if not better:
        return "no point of the same budget, or that adds no weights, is better on both sides"
    first = min(better, key=lambda point: point.forgetting.mean)
    more = f" (and {len(better) - 1} more)" if len(better) > 1 else ""
    return (
        f"{row_name(first, section)}{more} is better on both sides ({percent(first.forgetting)}"
        f" forgetting, {spread(first.bits)} bits per byte)"
    )


def _without_neutral(section: Section) -> str:
    least = min(section.rows, key=lambda point: point.forgetting.mean)
    most = min(section.rows, key=lambda point: point.bits.mean)
    name, before = row_name(most, section), number(most.backbone_bits)
    if least is most:
        alone = (
            "was measured alone"
            if len(section.points) == 1
            else "both forgets least and learns most"
        )
        return (
            f"On {section.name}, {name} {alone}: it takes bits per byte from {before} to"
            f" {spread(most.bits)} and changes those of source text by {percent(most.forgetting)}"
            f" ({seeds(most.bits.n)})."
        )
    return (
        f"On {section.name}, {name} learns most ({before} to {spread(most.bits)} bits per byte,"
        f" forgetting {percent(most.forgetting)}), and {row_name(least, section)} forgets least"
        f" ({percent(least.forgetting)}, to {spread(least.bits)} bits per byte)."
    )


def _front(section: Section) -> str:
    front = pareto_front(section.points)
    names = ", ".join(dict.fromkeys(point.name for point in front))
    return f"No run of neutral residues is among them; the Pareto front is {names}."

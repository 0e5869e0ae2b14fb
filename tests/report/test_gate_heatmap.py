"""Gates over text: steps of colour, exactly 0 apart, and tokens as people can see them."""

from neutral_residues.report.gate_heatmap import heat_texts, level, visible
from synthetic import LAYERS, make_record, make_section


def test_levels_of_gates() -> None:
    assert [level(g, 1.0) for g in (0.0, 1e-6, 0.124, 0.126, 0.99, 1.0)] == [0, 1, 1, 2, 8, 8]
    assert level(0.0, 0.0) == 0


def test_tokens_are_visible() -> None:
    assert visible("a\n") == "a↵"
    assert visible("\x00\u00a0é") == "� é"
    assert visible("") == "∅"


def test_runs_stand_next_to_each_other() -> None:
    section = make_section(make_record(), make_record("neutral.elu", method="neutral"))
    texts = heat_texts(section)
    assert [(text.name, text.row) for text in texts[:3]] == [
        ("en", "neutral"),
        ("en", "neutral.elu"),
        ("fr", "neutral"),
    ]
    assert texts[0].layers == tuple(LAYERS)
    token = texts[0].tokens[0]
    assert len(token.levels) == len(token.title.splitlines()) == len(LAYERS)
    assert ("0, closed" in token.title) == (0 in token.levels)
    given = make_record().gates[0].gates
    zeros = sum(gate == 0 for row in given for gate in row)
    assert texts[0].closed_share == zeros / (len(given) * len(given[0]))

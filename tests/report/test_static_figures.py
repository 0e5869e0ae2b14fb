"""PNG and SVG: drawn from the figures of the page."""

from pathlib import Path

import pytest

from neutral_residues.report.static_figures import draw_section, draw_trade_off, prefixes
from neutral_residues.report.style import COLOURS
from synthetic import comparison_records, make_record, make_section


def test_a_section_has_its_pictures(tmp_path: Path) -> None:
    drawn = draw_section(make_section(*comparison_records()), tmp_path, "fr")
    assert list(drawn.values()) == [
        f"fr-{name}.png" for name in ("plane", "training", "layers", "spliced", "gates")
    ]
    for name in drawn.values():
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        svg = (tmp_path / name).with_suffix(".svg").read_text(encoding="utf-8")
        assert svg.startswith("<?xml")
        assert "<dc:date>" not in svg
    plane = (tmp_path / "fr-plane.svg").read_text(encoding="utf-8").lower()
    for colour in COLOURS:
        assert colour.lower() in plane


def test_sections_of_one_name_do_not_overwrite_each_other() -> None:
    section = make_section(make_record())
    assert prefixes([section, section]) == ["fr", "fr-2"]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_trade_off(tmp_path: Path, ending: str) -> None:
    records = {"ours": make_record(), "tuned": make_record("finetune", forgetting=9.0)}
    path = tmp_path / "folder" / f"picture.{ending}"
    draw_trade_off(records, path, sources=["en"], target="fr", title="What it learns")
    first = path.read_bytes()
    assert len(first) > 5000
    draw_trade_off(records, path, sources=["en"], target="fr", title="What it learns")
    assert path.read_bytes() == first

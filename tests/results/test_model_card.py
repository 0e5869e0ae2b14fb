"""The README of an extension: what it says, and that the Hub reads its metadata."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from neutral_residues.results.model_card import write_card
from synthetic import make_record


def written(folder: Path, adapter: str | None = None, **changes: object) -> str:
    if adapter:
        (folder / "adapter_config.json").write_text(f'{{"peft_type": "{adapter}"}}')
    write_card(folder, make_record("neutral", **changes))
    return (folder / "README.md").read_text()


def test_the_table_by_hand(tmp_path: Path) -> None:
    text = written(tmp_path, forgetting=10.0, bits=3.0)  # en +5 %, wiki +15 %, fr 4 -> 3
    for row in (
        "| en | source | 1.0000 | 1.0500 | +5.00 % |",
        "| wiki | source | 2.0000 | 2.3000 | +15.00 % |",
        "| fr | target | 4.0000 | 3.0000 | -25.00 % |",
    ):
        assert row in text.splitlines()
    assert "200 new weights, 20.00 % of the backbone's 1,000; trained on 100,000 tokens." in text


def test_the_hub_lists_backbone_and_extended_model(tmp_path: Path) -> None:
    card = ModelCard(written(tmp_path, forgetting=10.0, bits=3.0), ignore_metadata_errors=False)
    assert card.data.base_model == "models/tiny"
    results = {(r.dataset_name, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert results["fr (target)", "bits per byte, backbone"] == 4.0
    assert results["fr (target)", "bits per byte, extended model"] == 3.0
    assert len(results) == 6


@pytest.mark.parametrize(
    ("adapter", "library", "line"),
    [
        ("NEUTRAL_RESIDUES", "peft", "import neutral_residues"),
        ("DISEL", "peft", "import neutral_residues"),
        ("LORA", "peft", "from peft import"),
        (None, "transformers", "from transformers import"),
    ],
)
def test_how_it_is_loaded(tmp_path: Path, adapter: str | None, library: str, line: str) -> None:
    text = written(tmp_path, adapter)
    assert f"library_name: {library}\n" in text
    assert text.split("```python\n")[1].startswith(line)


def test_a_residue_on_the_output_head_is_named(tmp_path: Path) -> None:
    assert "output head" not in written(tmp_path, "NEUTRAL_RESIDUES")
    settings = '{"peft_type": "NEUTRAL_RESIDUES", "head_rank": 64}'
    (tmp_path / "adapter_config.json").write_text(settings)
    assert "A residue of rank 64 on the output head is part of it." in written(tmp_path)


def test_a_folder_of_this_machine_is_not_in_it(tmp_path: Path) -> None:
    text = written(tmp_path, settings={"model": str(tmp_path)})
    assert "base_model" not in text
    assert str(tmp_path) not in text
    assert f"# {tmp_path.name}, extended (neutral)" in text


def test_new_tokens_and_their_tokenizer_are_named(tmp_path: Path) -> None:
    record = make_record("neutral")
    fr = record.sets["fr"]
    own = fr.model_copy(update={"backbone_tokens": 4 * fr.num_tokens})
    config = record.config | {"vocabulary": {"size": 4000}}
    record = record.model_copy(update={"sets": record.sets | {"fr": own}, "config": config})
    write_card(tmp_path, record)
    text = (tmp_path / "README.md").read_text()
    assert "It has 4,000 tokens of its own: fr has 0.25 times the backbone's tokens." in text
    assert "tokens of its own" not in written(tmp_path)

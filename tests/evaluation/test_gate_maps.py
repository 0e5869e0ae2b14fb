"""The gate heat map: the gates that the model computes, on pieces that make up the text."""

from pathlib import Path

import pytest
import torch

from neutral_residues.backbone import load_tokenizer
from neutral_residues.evaluation.gate_maps import (
    MAX_TOKENS,
    NamedText,
    code_switched,
    gate_texts,
    token_pieces,
)
from neutral_residues.tuner.layer import residue_layers
from paths import DEMO_BACKBONE as SHIPPED
from tiny_run import END_OF_TEXT, byte_tokenizer, make_backbone


@pytest.mark.parametrize("text", ["Les élèves", "Ім'я 日本", "a", "tab\tand  spaces", "🙂🙂"])
@pytest.mark.parametrize("make", [byte_tokenizer, lambda: load_tokenizer(str(SHIPPED))])
def test_pieces_make_up_the_text(text: str, make: object) -> None:
    tokenizer = make()  # type: ignore[operator]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = token_pieces(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text


def test_words_of_two_texts_in_turn() -> None:
    source, target = (" ".join(f"{sign}{i}" for i in range(20)) for sign in "st")
    words = code_switched(source, target).split()
    assert words[:18] == [f"s{i}" for i in range(8)] + [f"t{i}" for i in range(8)] + ["s8", "s9"]
    assert sorted(words) == sorted(f"{sign}{i}" for sign in "st" for i in range(20))


def test_gates_are_those_of_the_model(tmp_path: Path) -> None:
    from peft import get_peft_model

    from neutral_residues import NeutralResiduesConfig
    from neutral_residues.backbone import load_backbone

    backbone = load_backbone(str(make_backbone(tmp_path / "b")), dtype=torch.float32)
    model = get_peft_model(backbone, NeutralResiduesConfig(width=4, gate_reads="layer"))
    layers = list(residue_layers(model).values())
    with torch.no_grad():  # one layer shut on every token, one open by 0.5
        for layer, bias in zip(layers, (-1.0, 0.5), strict=True):
            layer.adapter("default").block_gate.bias.fill_(bias)
    tokenizer = byte_tokenizer()
    texts = [NamedText("own", "own", "abc"), NamedText("long", "source", "x" * 500)]
    one, long = gate_texts(model, tokenizer, texts, end_of_text=END_OF_TEXT)
    assert (one.tokens, one.layers, one.gates) == (["a", "b", "c"], [0, 1], [[0.0] * 3, [0.5] * 3])
    assert (
        len(long.tokens) == 64 - 1 < MAX_TOKENS
    )  # with the end-of-text token before them, what the model can read
    assert model.training


def test_a_model_without_gates_has_none(tmp_path: Path) -> None:
    from neutral_residues.backbone import load_backbone

    backbone = load_backbone(str(make_backbone(tmp_path / "b")), dtype=torch.float32)
    assert (
        gate_texts(
            backbone, byte_tokenizer(), [NamedText("a", "own", "abc")], end_of_text=END_OF_TEXT
        )
        == []
    )

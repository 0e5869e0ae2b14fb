"""Runs with new tokens: learnt from the text, trained, measured, saved and loaded, by any method
that can hold them."""

import json
import math
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

from neutral_residues.config.run import make_run
from neutral_residues.data.tokenise import without_display
from neutral_residues.errors import UserError
from neutral_residues.evaluation.evaluate_saved import (
    evaluate_saved,
    evaluation_streams,
    windows_for,
)
from neutral_residues.evaluation.saved import load_saved
from neutral_residues.run import extend
from neutral_residues.training.models import backbone_of, model_to_train
from neutral_residues.training.setup import Setup
from one_prompt import continue_one
from tiny_run import NUM_NEW_TOKENS, UKRAINIAN_WORDS, vocabulary_values

SIZE = NUM_NEW_TOKENS
ABLE = ("neutral", "adapter", "finetune", "lora", "lora-embeddings", "disel", "ssu")
"""A method of each kind that can hold new tokens."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("method", ABLE)
def test_a_run_with_new_tokens(method: str, tmp_path: Path) -> None:
    with_tokens = extend(**vocabulary_values(tmp_path, method=method))
    plain = extend(
        **vocabulary_values(tmp_path, method=method, vocabulary={}, output=tmp_path / "plain")
    )
    target, source = with_tokens.sets["fr"], with_tokens.sets["en"]
    # The backbone is measured in its own tokens, so its numbers do not depend on the vocabulary.
    assert target.backbone_nats == pytest.approx(plain.sets["fr"].backbone_nats, rel=1e-6)
    assert source.backbone_nats == pytest.approx(plain.sets["en"].backbone_nats, rel=1e-6)
    assert target.key == plain.sets["fr"].key
    assert target.backbone_tokens == plain.sets["fr"].num_tokens
    assert target.num_tokens < 0.8 * target.backbone_tokens
    assert (source.backbone_tokens, source.num_tokens) == (None, plain.sets["en"].num_tokens)
    assert target.extended_bits_per_byte < target.backbone_bits_per_byte
    saved = load_saved(tmp_path / "run")
    assert saved.vocabulary is not None
    assert saved.vocabulary.size == SIZE
    streams, own = (
        evaluation_streams(saved, (), without_display, of_backbone=side) for side in (False, True)
    )
    windows = windows_for(saved, None, None)
    again = evaluate_saved(saved, streams, windows, backbone_streams=own)
    assert again.sets["fr"].extended_nats == pytest.approx(target.extended_nats, rel=1e-5)
    assert again.sets["fr"].backbone_nats == pytest.approx(target.backbone_nats, rel=1e-5)
    assert with_tokens.beginnings.keys() == {"en"}
    assert again.beginnings["en"].kl_nats == pytest.approx(
        with_tokens.beginnings["en"].kl_nats, rel=1e-4
    )
    # After a switch, too, the backbone reads its own tokens.
    switched, in_old = with_tokens.spliced, plain.spliced
    assert switched is not None
    assert in_old is not None
    assert switched.target.backbone_nats == pytest.approx(in_old.target.backbone_nats, rel=1e-5)
    assert switched.target.num_bytes == pytest.approx(in_old.target.num_bytes)
    assert again.spliced is not None
    assert again.spliced.target.extended_nats == pytest.approx(
        switched.target.extended_nats, rel=1e-5
    )
    sample = continue_one(
        saved.model,
        saved.tokenizer,
        "кіт",
        max_new_tokens=5,
        reference=saved.reference,
        backbone_tokenizer=saved.backbone_tokenizer,
    )
    assert sample.backbone == plain_sample(tmp_path / "plain")


def plain_sample(folder: Path) -> str:
    saved = load_saved(folder)
    return continue_one(
        saved.model, saved.tokenizer, "кіт", max_new_tokens=5, reference=saved.reference
    ).backbone


def test_the_extension_loads_as_any_of_peft(tmp_path: Path) -> None:
    extend(**vocabulary_values(tmp_path))
    folder = tmp_path / "run" / "extension"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("кіт сидів", return_tensors="pt").input_ids
    assert (ids >= 260).any()
    assert model(input_ids=ids).logits.shape[-1] == 260 + SIZE


@pytest.mark.parametrize("start", ["pieces", "distilled", "random"])
@pytest.mark.parametrize("method", ["neutral", "finetune", "lora"])
def test_new_tokens_start_as_the_run_file_says(start: str, method: str, tmp_path: Path) -> None:
    vocabulary = {"size": SIZE, "start": start}
    setup = Setup.of(make_run(vocabulary_values(tmp_path, vocabulary=vocabulary, method=method)))
    model = model_to_train(setup)
    embeddings = model.get_input_embeddings()
    base = backbone_of(setup, frozen=True).get_input_embeddings().weight
    means = torch.stack([base[torch.tensor(pieces)].mean(0) for pieces in setup.pieces])
    found = embeddings(torch.arange(260, 260 + SIZE)[None])[0]
    distance = (found - means).norm() / means.norm()
    if start == "pieces":
        assert distance < (0.9 if method == "neutral" else 1e-6)
    else:
        assert distance > 0.02
    again = model_to_train(Setup.of(setup.config))  # from the cache, where there is one
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("method", ["osf", "block-expansion", "wise-ft", "finetune-ffn"])
def test_methods_without_place_for_them(method: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"method {method} cannot learn new tokens; got 12"):
        extend(**vocabulary_values(tmp_path, method=method))


@pytest.mark.slow
def test_tasks_ask_each_model_in_its_own_tokens(tmp_path: Path) -> None:
    items = [
        {
            "query": " ".join(UKRAINIAN_WORDS[i : i + 3]),
            "choices": UKRAINIAN_WORDS[i + 3 : i + 5],
            "gold": 0,
        }
        for i in range(4)
    ]
    file = tmp_path / "next-word_uk.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    evaluation = {"tasks": [f"file:{file}"]}
    scores = {}
    for name, vocabulary in (("plain", {}), ("run", {"size": SIZE})):
        changes = {"evaluation": evaluation, "vocabulary": vocabulary, "output": tmp_path / name}
        record = extend(**vocabulary_values(tmp_path, **changes))
        scores[name] = {score.metric: score for score in record.tasks}
    assert scores["run"].keys() == scores["plain"].keys()
    for metric, score in scores["run"].items():
        assert score.backbone == pytest.approx(scores["plain"][metric].backbone)
        assert math.isfinite(score.extended)

"""A run that goes on from an extension begins with exactly its weights, and one beside an extension
leaves it as it is; or both say why they cannot."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from neutral_residues.config.run import make_run
from neutral_residues.errors import UserError
from neutral_residues.evaluation.saved import load_saved
from neutral_residues.results.record import Record
from neutral_residues.run import extend, save_extension
from neutral_residues.training.models import model_to_train
from neutral_residues.training.setup import Setup
from tiny_run import NUM_NEW_TOKENS, method_values, run_values, vocabulary_values


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def extension(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "extension" / "adapter_model.safetensors")


def bits(record: Record, of: str) -> float:
    return getattr(record.sets["fr"], f"{of}_bits_per_byte")


def further(values: dict[str, Any], folder: Path, **changes: Any) -> dict[str, Any]:
    return values | {"start_from": str(folder), "output": f"{values['output']}-further"} | changes


@pytest.mark.parametrize("method", ["neutral", "adapter", "lora"])
def test_training_goes_on_where_the_extension_is(tmp_path: Path, method: str) -> None:
    values = method_values(tmp_path, method, steps=20, learning_rate=0.01)
    first = extend(make_run(values))
    second = further(values, tmp_path / method)
    setup = Setup.of(make_run(second))
    model = model_to_train(setup)
    trained = extension(tmp_path / method)
    there = {
        name.replace(".default", ""): value
        for name, value in model.named_parameters()
        if value.requires_grad
    }
    assert there.keys() == trained.keys()
    assert all(torch.equal(there[name], trained[name]) for name in trained)
    record = extend(setup)
    # Where it starts is what the first run measured, and both know the backbone alike.
    assert record.curve[0]["bits_per_byte/fr"] == pytest.approx(
        next(it for it in reversed(first.curve) if "bits_per_byte/fr" in it)["bits_per_byte/fr"],
        rel=1e-5,
    )
    assert bits(record, "backbone") == bits(first, "backbone")
    assert bits(record, "extended") < bits(first, "extended")


def test_new_tokens_go_on_too(tmp_path: Path) -> None:
    values = vocabulary_values(tmp_path)
    first = extend(make_run(values))
    (tmp_path / "fr.jsonl").write_text((tmp_path / "fr.jsonl").read_text() * 2)
    setup = Setup.of(make_run(further(values, tmp_path / "run" / "extension")))
    assert setup.vocabulary is not None
    saved = load_saved(tmp_path / "run").vocabulary
    assert saved is not None
    assert setup.vocabulary.pieces == saved.pieces
    record = extend(setup)
    assert record.curve[0]["bits_per_byte/en"] == pytest.approx(
        next(it for it in reversed(first.curve) if "bits_per_byte/en" in it)["bits_per_byte/en"],
        rel=1e-5,
    )


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({"size": NUM_NEW_TOKENS, "keep": "unseen"}, "vocabulary.keep is another .* allowed: scr"),
        ({"size": NUM_NEW_TOKENS - 1}, "vocabulary.size is another .* got 11; allowed: 12"),
        ({}, "vocabulary.size is another .* got 0; allowed: 12"),
    ],
)
def test_other_new_tokens_are_refused(
    vocabulary: dict[str, Any], message: str, tmp_path: Path
) -> None:
    values = vocabulary_values(tmp_path)
    setup = Setup.of(make_run(values))
    weights = tmp_path / "extension"
    save_extension(model_to_train(setup), weights)
    assert setup.vocabulary is not None
    setup.vocabulary.save(weights)
    assert Setup.of(make_run(further(values, weights))).vocabulary is not None
    with pytest.raises(UserError, match=message):
        Setup.of(make_run(further(values, weights, vocabulary=vocabulary)))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    values = method_values(tmp_path, "neutral", steps=2)
    extend(make_run(values))
    weights = tmp_path / "neutral" / "extension" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="damaged"):
        Setup.of(make_run(further(values, tmp_path / "neutral")))


def test_what_cannot_stand_beside_is_one_line(tmp_path: Path) -> None:
    values = run_values(tmp_path, steps=1)
    extend(make_run(method_values(tmp_path, "lora", steps=1)))
    extend(make_run(vocabulary_values(tmp_path) | {"output": str(tmp_path / "tokens")}))
    for beside, changes, message in (
        ("lora", {}, "is not an extension of neutral residues"),
        ("tokens", {}, "has tokens of its own"),
        ("nowhere", {}, "holds no extension"),
        ("lora", {"method": "lora"}, "beside has no effect on method lora"),
        ("lora", {"label": "neutral"}, "adapter name; got neutral; allowed"),
        ("lora", {"beside": {"gate": "lora"}}, "adapter name; got gate; allowed"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            Setup.of(make_run(values | {"beside": {"one": str(tmp_path / beside)}} | changes))
        assert "\n" not in str(caught.value)


def test_another_model_is_refused(tmp_path: Path) -> None:
    values = method_values(tmp_path, "neutral", steps=1)
    extend(make_run(values))
    copy = shutil.copytree(values["model"], tmp_path / "copy")
    changes = {"model": str(copy), "output": str(tmp_path / "other")}
    for key, given in (("start_from", values["output"]), ("beside", {"one": values["output"]})):
        with pytest.raises(UserError, match=f"{key}: .* extends another model"):
            Setup.of(make_run(values | changes | {key: given}))
        revised = changes | {"model": values["model"], "revision": "v2"}
        with pytest.raises(UserError, match=f"{key}: .* another revision of the model; got v2"):
            Setup.of(make_run(values | revised | {key: given}))

"""Different adapters for the rows of one batch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from neutral_residues import UserError, per_request
from neutral_residues.tuner.routing import BACKBONE
from tiny_llama import outputs, tiny_llama, token_ids, two_adapters


def test_each_row_gets_what_it_asks_for() -> None:
    model = two_adapters()
    names = ["french", BACKBONE, "german", "german", BACKBONE, "french", "french", "german"]
    alone = {BACKBONE: outputs(tiny_llama())}
    for name in ("french", "german"):
        model.set_adapter(name)
        alone[name] = outputs(model)
    found = outputs(model, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(found[row], alone[name][row], atol=1e-5, rtol=1e-5)
    assert torch.equal(outputs(model, adapter_names=[BACKBONE] * 8), alone[BACKBONE])
    assert torch.equal(outputs(model), alone["german"])  # and afterwards as before


def test_generation_with_beams_and_a_name_for_each_row() -> None:
    model = two_adapters()
    ids, ones = token_ids(3, 12), torch.ones(3, 12, dtype=torch.long)
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "num_beams": 2}
    mixed = model.generate(
        input_ids=ids, attention_mask=ones, adapter_names=["german", BACKBONE, "french"], **settings
    )
    model.set_adapter("german")
    german = model.generate(input_ids=ids[:1], attention_mask=ones[:1], **settings)
    model.set_adapter("french")
    french = model.generate(input_ids=ids[2:], attention_mask=ones[:1], **settings)
    with model.disable_adapter():
        backbone = model.generate(input_ids=ids[1:2], attention_mask=ones[:1], **settings)
    assert torch.equal(mixed, torch.cat([german, backbone, french]))


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_a_model_without_pefts_wrapper(tmp_path: Path) -> None:
    model = two_adapters()
    names = ["french", BACKBONE, "german", "german", BACKBONE, "french", "french", "german"]
    model.save_pretrained(tmp_path)
    native = tiny_llama()
    for name in ("french", "german"):
        native.load_adapter(str(tmp_path / name), adapter_name=name)
    before = outputs(native)
    with per_request(native, names):
        mixed = outputs(native)
    with per_request(native, names[:4], rows_per_name=2):
        in_pairs = outputs(native)
    pairs = [name for name in names[:4] for _ in range(2)]
    for found, wanted in ((mixed, names), (in_pairs, pairs)):
        expected = outputs(model, adapter_names=wanted)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with per_request(native, names[:4]), pytest.raises(UserError, match="got 4 names for 8 rows"):
        outputs(native)
    with pytest.raises(UserError, match="not loaded; got frensh"):
        per_request(native, ["frensh"]).__enter__()
    assert torch.equal(outputs(native), before)


def test_requests_compile_as_one_graph() -> None:
    model = two_adapters()
    names = ["french", BACKBONE] * 4
    with torch.no_grad():
        found = torch.compile(model, fullgraph=False, backend="aot_eager")(
            input_ids=token_ids(8, 32), adapter_names=names
        ).logits
    torch.testing.assert_close(found, outputs(model, adapter_names=names), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (
            ["french"],
            (
                "adapter_names; got 1 names for 8 rows; allowed: a list with one name for each row"
                " of the batch"
            ),
        ),
        ("french", "adapter_names; got 'french'"),
        (
            ["frensh"] * 8,
            "not loaded; got frensh; allowed: french, german, or __base__ for none; did you mean",
        ),
    ],
)
def test_a_wrong_list_of_names(names: Any, problem: str) -> None:
    with pytest.raises(UserError) as raised:
        outputs(two_adapters(), adapter_names=names)
    assert problem in str(raised.value)


def test_requests_are_for_inference() -> None:
    model = two_adapters().train()
    with pytest.raises(UserError, match="is for inference"):
        outputs(model, adapter_names=["french"] * 8)

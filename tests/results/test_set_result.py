"""What was measured on a set: every ratio by hand, and a JSON that cannot contradict itself."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from neutral_residues.results.set_result import LayerResult, SetResult, learning_share, rise_percent

RATIOS = SetResult.model_computed_fields


def result(**changes: Any) -> SetResult:
    """10 tokens, 40 bytes: 2 bits each under the backbone, 3 under the extended model."""
    values: dict[str, Any] = {
        "role": "source",
        "key": "k",
        "num_bytes": 40,
        "num_tokens": 10,
        "num_documents": 1,
        "backbone_nats": 20 * math.log(2),
        "extended_nats": 30 * math.log(2),
        "num_neutral_tokens": 4,
        "kl_nats": 1.5,
        "layers": [LayerResult(layer=1, gates_zero=0.5, residue_rms=2.0)],
    }
    return SetResult(**values | changes)


def test_ratios_by_hand() -> None:
    found = result()
    assert found.backbone_bits_per_byte == pytest.approx(0.5)
    assert found.extended_bits_per_byte == pytest.approx(0.75)
    assert found.backbone_token_perplexity == pytest.approx(4.0)
    assert found.extended_token_perplexity == pytest.approx(8.0)
    assert found.rise_bits_per_byte == pytest.approx(0.25)
    assert found.rise_percent == pytest.approx(50.0)
    assert found.neutral_share == 0.4
    assert found.kl_nats_per_token == 0.15


def test_what_was_not_measured_is_null() -> None:
    found = result(num_neutral_tokens=None, kl_nats=None)
    assert (found.neutral_share, found.kl_nats_per_token) == (None, None)


def test_learning_below_zero_is_a_fall() -> None:
    assert rise_percent(2.0, 1.5) == -25.0


def test_learning_share_by_hand() -> None:
    # The paper's main table: (1.175 - 0.793) / (1.175 - 0.758).
    share = learning_share(backbone=1.175, extended=0.793, finetuned=0.758)
    assert share == pytest.approx(0.916, abs=5e-4)
    assert learning_share(backbone=1, extended=1, finetuned=1) is None


def test_the_json_has_the_ratios_too_and_is_read_back() -> None:
    found = result()
    value = found.model_dump(mode="json")
    assert {name: value[name] for name in RATIOS} == {name: getattr(found, name) for name in RATIOS}
    assert SetResult.model_validate(value) == found
    sums = {key: entry for key, entry in value.items() if key not in RATIOS}
    assert SetResult.model_validate(sums) == found


@pytest.mark.parametrize("wrong", [0.76, None, "much"])
def test_a_ratio_that_is_not_that_of_the_sums_is_refused(wrong: object) -> None:
    value = result().model_dump(mode="json") | {"extended_bits_per_byte": wrong}
    with pytest.raises(
        ValidationError, match=r"extended_bits_per_byte is .* but the sums give 0\.75"
    ):
        SetResult.model_validate(value)

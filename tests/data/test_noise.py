"""Noised source rows: which, how many, the same each time; target rows never."""

import pytest
import torch

from neutral_residues.data.mixture import Mixture
from neutral_residues.data.noise import NoisedMixture
from neutral_residues.data.token_stream import tokenise
from neutral_residues.errors import UserError

END_OF_TEXT = 256


@pytest.fixture
def mixture(tmp_path, write_jsonl, tokenizer) -> Mixture:
    streams = [
        tokenise(write_jsonl(["a" * 4000], name=role, role=role), tokenizer, cache_dir=tmp_path, num_workers=0,
                 show_progress=False)[0]
        for role in ("target", "source")
    ]  # fmt: skip
    return Mixture(streams, block_tokens=32, source_share=0.25, num_rows=80, seed=3)


def noised(mixture: Mixture, share: float) -> NoisedMixture:
    return NoisedMixture(mixture, share=share, vocabulary=300, end_of_text=END_OF_TEXT)


@pytest.mark.parametrize("share", [0, 0.3, 0.5, 1])
def test_the_share_of_noised_source_rows_is_exact_in_every_prefix(
    mixture: Mixture, share: float
) -> None:
    rows = noised(mixture, share)
    sources = seen = 0
    for index in range(len(rows)):
        if mixture.role(index) == "target":
            assert not rows.is_noised(index)
            continue
        sources, seen = sources + 1, seen + rows.is_noised(index)
        assert abs(seen - share * sources) < 1


def test_only_noised_rows_change_and_each_time_alike(mixture: Mixture) -> None:
    rows, again = noised(mixture, 0.5), noised(mixture, 0.5)
    replaced = []
    for index in range(len(rows)):
        row, plain = rows[index], mixture[index]
        assert torch.equal(row["input_ids"], again[index]["input_ids"])
        assert torch.equal(row["domain_labels"], plain["domain_labels"])
        if row["noised"]:
            replaced.append(float((row["input_ids"] != plain["input_ids"]).float().mean()))
            assert END_OF_TEXT not in row["input_ids"]
            assert row["input_ids"].max() < 300
        else:
            assert torch.equal(row["input_ids"], plain["input_ids"])
    assert min(replaced) < 0.4 < 0.6 < max(replaced)


def test_a_share_out_of_range_is_refused(mixture: Mixture) -> None:
    with pytest.raises(UserError, match=r"source_noise; got 1\.5"):
        noised(mixture, 1.5)

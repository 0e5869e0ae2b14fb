"""Rows: an exact share, every block once an epoch, the same for all workers; noise as told."""

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from neutral_residues.data.labels import SOURCE, TARGET
from neutral_residues.data.mixture import Mixture, Noise
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.data.tokenise import tokenise
from neutral_residues.errors import UserError

T = 4


def stream(name: str, role: str, num_blocks: int, first: int) -> TokenStream:
    """Block b holds the number first + b, T times; and a tail that fills no block."""
    tokens = np.repeat(np.arange(first, first + num_blocks, dtype=np.uint16), T)
    tokens = np.append(tokens, np.uint16([9999] * (T - 1)))
    return TokenStream(name, role, tokens, np.array([len(tokens)]), np.array([len(tokens)]))


STREAMS = [
    stream("en", "source", 5, 0),
    stream("fr", "target", 30, 100),
    stream("de", "target", 10, 200),
]


def mixture(source_share=0.1, num_rows=500, seed=0, streams=STREAMS, noise=None) -> Mixture:
    return Mixture(
        streams,
        block_tokens=T,
        source_share=source_share,
        num_rows=num_rows,
        seed=seed,
        noise=noise,
    )


# Decimal numbers, as a user writes them: 0.1 as a binary number is a little over a tenth.
SHARES = st.integers(0, 1000).map(lambda thousandths: Fraction(thousandths, 1000))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(share=SHARES, noised=SHARES)
def test_both_shares_are_exact_in_every_prefix(share: Fraction, noised: Fraction) -> None:
    rows = mixture(float(share), 200, noise=Noise(float(noised), vocabulary=300, end_of_text=1))
    num_source = num_noised = 0
    for i in range(len(rows)):
        row = rows[i]
        (label,) = set(row["domain_labels"].tolist())
        num_source += label == SOURCE
        num_noised += row["noised"]
        assert num_source == math.floor((i + 1) * share), f"first {i + 1} rows"
        assert num_noised == math.floor(num_source * noised), f"first {i + 1} rows"
        assert label == SOURCE or not row["noised"]


def test_rows_are_blocks_of_their_corpus_and_each_comes_once_an_epoch():
    rows = [mixture(0.1)[i] for i in range(500)]
    firsts = {"en": 0, "fr": 100, "de": 200}
    seen = {SOURCE: [], TARGET: []}
    for row in rows:
        assert row["input_ids"].dtype == row["domain_labels"].dtype == torch.int64
        assert row["input_ids"].shape == row["domain_labels"].shape == (T,)
        number = row["input_ids"][0].item()
        assert row["input_ids"].tolist() == [number] * T
        corpus = STREAMS[row["corpus_id"]]
        label = row["domain_labels"][0].item()
        assert label == (SOURCE if corpus.role == "source" else TARGET)
        assert firsts[corpus.name] <= number < firsts[corpus.name] + 30
        seen[label].append(number)
    assert len(seen[SOURCE]) == 50
    epochs = [seen[SOURCE][i : i + 5] for i in range(0, 50, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5, "epochs differ"
    target = [*range(100, 130), *range(200, 210)]
    assert all(sorted(seen[TARGET][i : i + 40]) == target for i in range(0, 440, 40))


def test_order_follows_the_seed():
    def order(seed):
        return [
            row["input_ids"][0].item() for row in map(mixture(0.1, 45, seed).__getitem__, range(45))
        ]

    assert order(0) == order(0)
    assert order(0) != order(1)
    # One corpus after the other would be no mix: both come in the first half of the epoch.
    assert {number // 100 for number in order(0)[:20] if number >= 100} == {1, 2}


def test_only_noised_rows_change_and_each_time_alike() -> None:
    streams = [
        TokenStream("en", "source", np.full(4000, 7, np.uint16), np.array([4000]), np.array([1]))
    ]
    common = {"block_tokens": 50, "source_share": 1, "num_rows": 80, "seed": 3}
    noise = Noise(0.5, vocabulary=9, end_of_text=2)
    one, again = (Mixture(streams, **common, noise=noise) for _ in range(2))
    shares, drawn = [], set()
    for i in range(80):
        row = one[i]
        assert torch.equal(row["input_ids"], again[i]["input_ids"])
        replaced = row["input_ids"] != 7
        assert row["noised"] or not replaced.any()
        shares += [float(replaced.float().mean())] if row["noised"] else []
        drawn |= set(row["input_ids"].tolist())
    assert drawn == {0, 1, 3, 4, 5, 6, 7, 8}
    assert len(shares) == 40
    assert min(shares) < 0.3 < 0.6 < max(shares)


@pytest.fixture
def mapped_mixture(tokenizer, write_jsonl, tmp_path) -> Mixture:
    corpora = [
        write_jsonl([name * 40] * 9, name, role)
        for name, role in (("en", "source"), ("fr", "target"))
    ]
    settings = {"cache_dir": tmp_path / "cache"}
    streams = [tokenise(corpus, tokenizer, **settings)[0] for corpus in corpora]
    return Mixture(streams, block_tokens=8, source_share=0.37, num_rows=60, seed=3)


def same_rows(ones, others) -> bool:
    pairs = list(zip(ones, others, strict=True))
    return all(
        torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key]))
        for one, other in pairs
        for key in one
    )


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # torch's own default on Linux
def test_workers_and_resuming_change_nothing(mapped_mixture):
    alone = list(DataLoader(mapped_mixture, batch_size=7))
    assert sum(len(batch["input_ids"]) for batch in alone) == 60
    assert same_rows(alone, DataLoader(mapped_mixture, batch_size=7, num_workers=2))
    # A new process that starts at row 20 knows nothing of the rows before.
    resumed = pickle.loads(pickle.dumps(mapped_mixture))
    every = [mapped_mixture[i] for i in range(60)]
    assert same_rows([resumed[i] for i in range(20, 60)], every[20:])


def test_pickles_without_the_text(mapped_mixture):
    assert sum(stream.num_tokens for stream in mapped_mixture.streams) > 1000
    mapped_mixture[0]  # an order that was made is not sent either
    assert len(pickle.dumps(mapped_mixture)) < 1500
    assert isinstance(pickle.loads(pickle.dumps(mapped_mixture)).streams[0].tokens, np.memmap)


def test_roles_without_rows_need_no_corpus():
    source, target = STREAMS[:1], STREAMS[1:]
    assert mixture(0, streams=target)[499]["domain_labels"].tolist() == [TARGET] * T
    assert mixture(1, streams=source)[499]["domain_labels"].tolist() == [SOURCE] * T
    # A source corpus too small for a block is of no matter where no row is taken from it.
    tiny = TokenStream("tiny", "source", np.zeros(1, np.uint16), np.array([1]), np.array([0]))
    assert mixture(0, streams=[tiny, *target])[0]["corpus_id"] == 1
    with pytest.raises(UserError, match=r"'tiny' is smaller.*1 tokens.*block_tokens = 4"):
        mixture(0.1, streams=[tiny, *target])
    with pytest.raises(UserError, match="rows of source text and there is none"):
        mixture(0.1, streams=target)
    with pytest.raises(UserError, match="rows of target text and there is none"):
        mixture(0.9, streams=source)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_share_out_of_range(share):
    with pytest.raises(UserError, match="source_share"):
        mixture(share)
    with pytest.raises(UserError, match="source_noise"):
        mixture(noise=Noise(share, vocabulary=9, end_of_text=1))


def test_rows_past_the_end():
    with pytest.raises(IndexError):
        mixture(num_rows=3)[3]
    with pytest.raises(UserError, match="num_rows 0"):
        mixture(num_rows=0)

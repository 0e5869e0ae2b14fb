"""Rows: an exact share, every block once an epoch, the same for all workers; noise and splicing as
told."""

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


def mixture(
    source_share=0.1, num_rows=500, seed=0, streams=STREAMS, noise=None, spliced_share=0
) -> Mixture:
    return Mixture(
        streams,
        block_tokens=T,
        source_share=source_share,
        num_rows=num_rows,
        seed=seed,
        noise=noise,
        spliced_share=spliced_share,
    )


# Decimal numbers, as a user writes them: 0.1 as a binary number is a little over a tenth.
SHARES = st.integers(0, 1000).map(lambda thousandths: Fraction(thousandths, 1000))
SHARES_TO_HALF = SHARES.filter(lambda share: share <= Fraction(1, 2))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(share=SHARES, noised=SHARES)
def test_both_shares_are_exact_in_every_prefix(share: Fraction, noised: Fraction) -> None:
    rows = mixture(float(share), 200, noise=Noise(float(noised), vocabulary=300, end_of_text=1))
    num_source = num_noised = 0
    for i in range(len(rows)):
        row = rows[i]
        (label,) = set(row["domain_labels"].tolist())
        num_source += label == SOURCE
        num_noised += not row["predicted"].any()
        assert num_source == math.floor((i + 1) * share), f"first {i + 1} rows"
        assert num_noised == math.floor(num_source * noised), f"first {i + 1} rows"
        assert row["predicted"].all() or (label == SOURCE and not row["predicted"].any())


def test_rows_are_blocks_of_their_corpus_and_each_comes_once_an_epoch():
    rows = [mixture(0.1)[i] for i in range(500)]
    firsts = {"en": 0, "fr": 100, "de": 200}
    seen = {SOURCE: [], TARGET: []}
    for row in rows:
        assert row["input_ids"].dtype == row["domain_labels"].dtype == torch.int64
        assert {values.shape for values in row.values()} == {(T,)}
        number = row["input_ids"][0].item()
        assert row["input_ids"].tolist() == [number] * T
        (corpus_id,) = set(row["corpus_ids"].tolist())
        corpus = STREAMS[corpus_id]
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


def test_corpora_with_shares_have_them_and_their_own_epochs() -> None:
    shares = {"fr": (0.1, 0.1), "de": (0.9, 0.9)}
    options = {"block_tokens": T, "source_share": 0.1, "seed": 0}
    rows = Mixture(STREAMS, **options, num_rows=400, shares=shares)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for i in range(400):
        seen[int(rows[i]["corpus_ids"][0])].append(int(rows[i]["input_ids"][0]))
        target = len(seen[1]) + len(seen[2])
        assert abs(len(seen[1]) - target / 10) < 1, f"first {i + 1} rows"
    assert len(seen[0]) == 40
    assert sorted(seen[2][:10]) == sorted(seen[2][310:320]) == list(range(200, 210))
    assert sorted(seen[1][:30]) == list(range(100, 130))
    plain = mixture(0.1, 400)
    source = [i for i in range(400) if rows.role(i) == "source"]
    assert all(rows[i]["input_ids"].equal(plain[i]["input_ids"]) for i in source)
    # The same block again is another order; another row of a longer run is the same row.
    assert seen[2][:10] != seen[2][10:20]
    longer = Mixture(STREAMS, **options, num_rows=4000, shares=shares)
    assert same_rows([rows[i] for i in range(400)], [longer[i] for i in range(400)])


def test_shares_that_change_begin_and_end_as_told() -> None:
    shares = {"fr": (1.0, 0.0), "de": (0.0, 1.0)}
    options = {"block_tokens": T, "source_share": 0.5, "seed": 0}
    rows = Mixture(STREAMS, **options, num_rows=400, shares=shares)
    corpora = [int(rows[i]["corpus_ids"][0]) for i in range(400) if rows.role(i) == "target"]
    french = [sum(c == 1 for c in corpora[i : i + 50]) for i in range(0, 200, 50)]
    # The mean of the share over each quarter is 7, 5, 3 and 1 eighths.
    assert all(abs(n - 50 * k / 8) < 2 for n, k in zip(french, (7, 5, 3, 1), strict=True))
    resumed = pickle.loads(pickle.dumps(rows))
    assert same_rows([resumed[i] for i in range(200, 400)], [rows[i] for i in range(200, 400)])


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
        noised = not row["predicted"].any()
        assert noised or not replaced.any()
        shares += [float(replaced.float().mean())] if noised else []
        drawn |= set(row["input_ids"].tolist())
    assert drawn == {0, 1, 3, 4, 5, 6, 7, 8}
    assert len(shares) == 40
    assert min(shares) < 0.3 < 0.6 < max(shares)


def long_stream(name: str, role: str, num_blocks: int, first: int) -> TokenStream:
    """Blocks of 200 tokens, every token another number."""
    tokens = np.arange(first, first + 200 * num_blocks, dtype=np.uint32)
    return TokenStream(name, role, tokens, np.array([len(tokens)]), np.array([len(tokens)]))


LONG = [
    long_stream("en", "source", 7, 0),
    long_stream("fr", "target", 30, 10_000),
    long_stream("de", "target", 10, 20_000),
]


def long_rows(source_share: Fraction, spliced_share: Fraction, noise_share: Fraction) -> Mixture:
    shares = {"source_share": float(source_share), "spliced_share": float(spliced_share)}
    noise = Noise(float(noise_share), vocabulary=100_000, end_of_text=1)
    return Mixture(LONG, block_tokens=200, num_rows=120, seed=5, noise=noise, **shares)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(share=SHARES_TO_HALF, spliced=SHARES, noised=SHARES)
def test_splicing_loses_no_token_and_keeps_every_share(
    share: Fraction, spliced: Fraction, noised: Fraction
) -> None:
    rows, plain = long_rows(share, spliced, noised), long_rows(share, Fraction(0), Fraction(0))
    num_source = num_spliced = num_noised = 0
    for i in range(len(rows)):
        row, partner = rows[i], rows.spliced_with(i)
        is_source = rows.role(i) == "source"
        num_source += is_source
        num_spliced += is_source and partner is not None
        num_noised += rows.is_noised(i)
        assert num_source == math.floor((i + 1) * share), f"first {i + 1} rows"
        assert num_spliced == math.floor(num_source * spliced), f"first {i + 1} rows"
        assert num_noised == math.floor((num_source - num_spliced) * noised), f"first {i + 1} rows"
        if partner is None:
            assert row["input_ids"].equal(plain[i]["input_ids"]) or rows.is_noised(i)
            assert row["domain_labels"].unique().tolist() == [SOURCE if is_source else TARGET]
        elif partner < i:
            assert not is_source or not rows.is_noised(i)
            assert rows.role(partner) == "target"
            assert rows.spliced_with(partner) == i
            # Each text is there from its beginning to its end, first in the source row.
            for label, own in ((SOURCE, i), (TARGET, partner)):
                parts = [
                    rows[n]["input_ids"][rows[n]["domain_labels"] == label] for n in (i, partner)
                ]
                assert torch.cat(parts).equal(plain[own]["input_ids"])


def test_segments_of_a_spliced_row_are_8_to_64_tokens_and_labelled() -> None:
    rows = long_rows(Fraction(1, 2), Fraction(1), Fraction(0))
    lengths, firsts = [], set()
    for i in range(len(rows)):
        row = rows[i]
        is_source = row["input_ids"] < 10_000
        assert row["domain_labels"].equal(torch.where(is_source, SOURCE, TARGET))
        corpus = torch.where(is_source, 0, torch.where(row["input_ids"] < 20_000, 1, 2))
        assert row["corpus_ids"].equal(corpus)
        switches = (torch.nonzero(is_source[1:] != is_source[:-1]).flatten() + 1).tolist()
        assert torch.nonzero(~row["predicted"]).flatten().tolist() == switches
        ends = [*switches, 200]
        lengths += [b - a for a, b in zip([0, *switches], ends, strict=True)][:-1]
        firsts.add(int(is_source[0]) == (i % 2))
        assert len(switches) >= 2
    assert (min(lengths), max(lengths)) == (8, 64)
    assert firsts == {True}, "each row begins with its own text"


def test_a_short_row_still_switches() -> None:
    common = {"block_tokens": 16, "source_share": 0.5, "num_rows": 20, "seed": 0}
    rows = Mixture(LONG, **common, spliced_share=1)
    for i in range(20):
        assert len(rows[i]["domain_labels"].unique()) == 2


@pytest.fixture
def mapped_mixture(tokenizer, write_jsonl, tmp_path) -> Mixture:
    corpora = [
        write_jsonl([name * 40] * 9, name, role)
        for name, role in (("en", "source"), ("fr", "target"))
    ]
    settings = {"cache_dir": tmp_path / "cache"}
    streams = [tokenise(corpus, tokenizer, **settings)[0] for corpus in corpora]
    shares = {"source_share": 0.37, "spliced_share": 0.5}
    return Mixture(streams, block_tokens=16, **shares, num_rows=60, seed=3)


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
    assert mixture(0, streams=[tiny, *target])[0]["corpus_ids"].tolist() == [1] * T
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
    with pytest.raises(UserError, match="spliced_share"):
        mixture(spliced_share=share)
    with pytest.raises(UserError, match="source_noise"):
        mixture(noise=Noise(share, vocabulary=9, end_of_text=1))


def test_rows_past_the_end():
    with pytest.raises(IndexError):
        mixture(num_rows=3)[3]
    with pytest.raises(UserError, match="num_rows 0"):
        mixture(num_rows=0)

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from neutral_residues.data.labels import SOURCE, TARGET
from neutral_residues.data.mixture import Mixture, permuted
from neutral_residues.data.token_stream import TokenStream, tokenise
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


def mixture(source_share=0.1, num_rows=500, seed=0, streams=STREAMS) -> Mixture:
    return Mixture(streams, block_tokens=T, source_share=source_share, num_rows=num_rows, seed=seed)


@pytest.mark.parametrize("share", ["0", ".01", ".1", ".37", ".5", "1"])
def test_share_is_exact_in_every_prefix(share):
    labels = [
        row["domain_labels"] for row in map(mixture(float(share), 300).__getitem__, range(300))
    ]
    assert all(set(row.tolist()) in ({SOURCE}, {TARGET}) for row in labels)
    num_source = 0
    for i, row in enumerate(labels, start=1):
        num_source += row[0].item() == SOURCE
        # Not float arithmetic: 0.1 as a binary number is a little over a tenth.
        assert num_source == math.floor(i * Fraction(share)), f"first {i} rows"


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


@pytest.mark.parametrize("size", [*range(1, 20), 63, 64, 65, 1000, 4097])
def test_permutation_is_a_bijection(size):
    assert sorted(permuted(i, size, "key") for i in range(size)) == list(range(size))


def test_permutation_has_no_favourites():
    # 7 places, 5000 keys: each place gets the first block 714 times, with a standard deviation of
    # 25.
    counts = np.bincount([permuted(0, 7, f"{seed}/source/0") for seed in range(5000)], minlength=7)
    assert abs(counts - 5000 / 7).max() < 125
    # Neighbours do not stay neighbours, and large domains cost no memory.
    places = [permuted(i, 10**12, "key") for i in range(1000)]
    assert len({place // 10**11 for place in places}) == 10
    assert abs(np.corrcoef(range(1000), places)[0, 1]) < 0.2


@pytest.fixture
def mapped_mixture(tokenizer, write_jsonl, tmp_path) -> Mixture:
    corpora = [
        write_jsonl([name * 40] * 9, name, role)
        for name, role in (("en", "source"), ("fr", "target"))
    ]
    settings = {"cache_dir": tmp_path / "cache", "num_workers": 0, "show_progress": False}
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
    assert len(pickle.dumps(mapped_mixture)) < 1500
    assert isinstance(pickle.loads(pickle.dumps(mapped_mixture)).streams[0].tokens, np.memmap)


def test_plan_counts_rows_tokens_and_epochs():
    plan = mixture(0.1, 500).plan()
    assert (plan.source_rows, plan.target_rows) == (50, 450)
    assert (plan.source_tokens, plan.target_tokens) == (200, 1800)
    assert (plan.source_epochs, plan.target_epochs) == (10.0, 11.25)
    assert [(c.name, c.num_blocks, c.expected_rows) for c in plan.corpora] == [
        ("en", 5, 50.0),
        ("fr", 30, 337.5),
        ("de", 10, 112.5),
    ]


def test_roles_without_rows_need_no_corpus():
    source, target = STREAMS[:1], STREAMS[1:]
    only_target = mixture(0, streams=target)
    assert only_target.epochs("source") == 0
    assert only_target.plan().source_rows == 0
    assert mixture(1, streams=source).plan().target_rows == 0
    # A source corpus too small for a block is of no matter where no row is taken from it.
    tiny = TokenStream("tiny", "source", np.zeros(1, np.uint16), np.array([1]), np.array([0]))
    assert mixture(0, streams=[tiny, *target]).plan().corpora[0].num_blocks == 0
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


def test_rows_past_the_end():
    with pytest.raises(IndexError):
        mixture(num_rows=3)[3]
    with pytest.raises(UserError, match="num_rows 0"):
        mixture(num_rows=0)

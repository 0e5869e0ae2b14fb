"""Corpora on disk as tokens: what is stored, what is held out; a cache is never half there."""

import multiprocessing
import os
import random
import signal
import time
from contextlib import contextmanager

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from damage import damages
from neutral_residues.config.data import Corpus
from neutral_residues.data import encode as module
from neutral_residues.data.documents import iter_documents
from neutral_residues.data.tokenise import end_of_text_id, tokenise, tokenizer_key
from neutral_residues.errors import UserError
from tiny_run import END_OF_TEXT, byte_tokenizer

RNG = random.Random(0)
DOCUMENTS = [
    "".join(RNG.choices("abcdéжñ 😀\n", k=RNG.randint(1, 60))).strip() or "x" for _ in range(300)
]
DOCUMENTS += DOCUMENTS[:20]
FILES = ("tokens.bin", "document_ends.bin", "document_bytes.bin")


@pytest.fixture
def make(tmp_path, tokenizer):
    def tokenised(corpus: Corpus, tokenizer=tokenizer, cache="cache", **settings):
        return tokenise(corpus, tokenizer, cache_dir=tmp_path / cache, **settings)

    return tokenised


def documents_of(stream, tokenizer) -> list[str]:
    pieces = np.split(stream.tokens, stream.document_ends)
    assert len(pieces.pop()) == 0
    assert all(piece[-1] == END_OF_TEXT for piece in pieces)
    return [tokenizer.decode(piece[:-1]) for piece in pieces]


def test_stream_is_the_documents_token_for_token(make, write_jsonl, tokenizer):
    stream, held_out = make(write_jsonl(DOCUMENTS))
    expected = [
        id
        for text in DOCUMENTS
        for id in [*tokenizer(text, add_special_tokens=False)["input_ids"], END_OF_TEXT]
    ]
    assert held_out is None
    assert stream.tokens.tolist() == expected
    assert documents_of(stream, tokenizer) == DOCUMENTS
    # One token a byte, and one more for each document.
    assert stream.document_bytes.tolist() == [len(text.encode()) for text in DOCUMENTS]
    assert stream.num_tokens == stream.num_bytes + len(DOCUMENTS)
    assert (stream.num_documents, stream.tokens.dtype, stream.name, stream.role) == (
        320,
        np.uint16,
        "fr",
        "target",
    )
    assert isinstance(stream.tokens, np.memmap)


def test_files_depend_neither_on_threads_nor_on_batches(make, write_jsonl, monkeypatch):
    corpus = write_jsonl(DOCUMENTS)
    alone = make(corpus, held_out_share=0.3)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 100)
    threaded = make(corpus, held_out_share=0.3, cache="other")
    for one, other in zip(alone, threaded, strict=True):
        assert one.folder != other.folder
        for file in FILES:
            assert (one.folder / file).read_bytes() == (other.folder / file).read_bytes() != b""


def test_held_out_is_by_document_and_stable(make, write_jsonl, tokenizer):
    def sides(documents, seed=0):
        return [
            documents_of(s, tokenizer)
            for s in make(write_jsonl(documents), held_out_share=0.25, seed=seed)
        ]

    train, held_out = sides(DOCUMENTS)
    assert sorted(train + held_out) == sorted(DOCUMENTS)
    assert not set(train) & set(held_out), "duplicates are on one side"
    assert 0.15 < len(held_out) / len(DOCUMENTS) < 0.35
    assert held_out == [text for text in DOCUMENTS if text in set(held_out)], "document order"
    # Other documents around it do not move a document to the other side; another seed does.
    assert set(sides(DOCUMENTS[::-2])[1]) == set(DOCUMENTS[::-2]) & set(held_out)
    assert sides(DOCUMENTS, seed=1)[1] != held_out


def test_second_call_reads_the_cache(make, write_jsonl, monkeypatch, tokenizer):
    corpus = write_jsonl(DOCUMENTS)
    first, _ = make(corpus)
    monkeypatch.setattr(module, "iter_documents", lambda corpus: pytest.fail("tokenised again"))
    # Neither the name nor, without a held-out part, the seed changes what is in the cache.
    second, _ = make(corpus.model_copy(update={"name": "other", "role": "source"}), seed=5)
    assert (second.name, second.role, second.folder) == ("other", "source", first.folder)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    # What an earlier call left in the tokenizer is no part of it.
    tokenizer(
        "some text",
        truncation=True,
        max_length=2,
        padding="max_length" if tokenizer.pad_token else False,
    )
    make(corpus)
    monkeypatch.undo()
    assert make(corpus, tokenizer=byte_tokenizer(eos_token="a"))[0].folder != first.folder
    assert make(corpus.model_copy(update={"max_documents": 3}))[0].num_documents == 3


def test_progress_is_told_every_byte_and_only_where_text_is_read(make, write_jsonl):
    told = []

    @contextmanager
    def tokenising(what):
        told.append(what)
        yield told.append

    for _ in range(2):
        stream, _ = make(write_jsonl(["aé", "b" * 2**19, "c"]), tokenising=tokenising)
    assert told[0] == "tokenising fr"
    assert sum(told[1:]) == stream.num_bytes
    assert len(told) == 3


@pytest.mark.parametrize(
    "file",
    [
        "meta.json",
        "train/tokens.bin",
        "train/document_ends.bin",
        "held_out/document_bytes.bin",
        "SHA256SUMS",
    ],
)
def test_damaged_cache_is_made_again_and_says_so(make, write_jsonl, file, caplog):
    corpus = write_jsonl(DOCUMENTS)
    folder = make(corpus, held_out_share=0.3)[0].folder.parent
    whole = (folder / file).read_bytes()
    for damage in damages(folder / file, flips=4):
        caplog.clear()
        make(corpus, held_out_share=0.3)
        assert (folder / file).read_bytes() == whole, damage
        (line,) = caplog.messages
        assert line.startswith(f"{folder} is damaged: ")
    caplog.clear()
    make(corpus, held_out_share=0.3)
    assert not caplog.messages


def test_interrupted_run_leaves_nothing(make, write_jsonl, monkeypatch, tmp_path):
    def interrupted(corpus):
        for i, text in enumerate(iter_documents(corpus)):
            if i == 250:
                raise KeyboardInterrupt
            yield text

    monkeypatch.setattr(module, "iter_documents", interrupted)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 100)
    with pytest.raises(KeyboardInterrupt):
        make(write_jsonl(DOCUMENTS))
    assert list((tmp_path / "cache").glob("*tokens-*[!k]")) == []


def in_new_processes(target, count: int) -> list[int]:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=target) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    return [process.exitcode for process in processes]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_run_leaves_no_cache_and_no_lock(make, write_jsonl, monkeypatch, tmp_path):
    corpus = write_jsonl(DOCUMENTS)

    def killed(corpus):
        yield "text"
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(module, "iter_documents", killed)
        assert in_new_processes(lambda: make(corpus), 1) == [-signal.SIGKILL]
    assert list((tmp_path / "cache").glob("tokens-*")) == []
    assert make(corpus)[0].num_documents == len(DOCUMENTS)
    assert list((tmp_path / "cache").glob("*.partial")) == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_make_one_cache(make, write_jsonl, monkeypatch, tmp_path):
    corpus = write_jsonl(DOCUMENTS)

    def slow(corpus):
        with (tmp_path / "made").open("a") as file:
            file.write("once\n")
        time.sleep(0.3)
        yield from iter_documents(corpus)

    monkeypatch.setattr(module, "iter_documents", slow)
    assert in_new_processes(lambda: make(corpus), 2) == [0, 0]
    assert (tmp_path / "made").read_text() == "once\n"
    assert make(corpus)[0].num_documents == len(DOCUMENTS)


def test_tokenizers_written_in_python_work_too(make, write_jsonl):
    slow = ByT5Tokenizer()
    stream, _ = make(write_jsonl(["aé"]), tokenizer=slow)
    assert stream.tokens.tolist() == [
        *slow.encode("aé", add_special_tokens=False),
        slow.eos_token_id,
    ]
    assert (
        tokenizer_key(slow)
        == tokenizer_key(ByT5Tokenizer())
        != tokenizer_key(ByT5Tokenizer(extra_ids=3))
    )


@pytest.mark.parametrize(("last_id", "dtype"), [(2**16 - 1, np.uint16), (2**16, np.uint32)])
def test_large_vocabularies_take_four_bytes(make, write_jsonl, last_id, dtype):
    # Only the largest id counts: this vocabulary is almost all gap.
    words = Tokenizer(WordLevel({"a": 0, "<eot>": 1, "last": last_id}, unk_token="a"))
    large = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eot>")
    stream, _ = make(write_jsonl(["last", "a"]), tokenizer=large)
    assert (stream.tokens.dtype, stream.tokens.tolist()) == (dtype, [last_id, 1, 0, 1])


@pytest.mark.parametrize(
    ("eos_token", "others", "given", "expected"),
    [
        ("<eot>", [], None, "<eot>"),
        ("<|im_end|>", ["<|endoftext|>"], None, "<|endoftext|>"),  # SmolLM2-Instruct, Qwen
        ("<|endoftext|>", ["</s>"], None, "<|endoftext|>"),
        (None, ["</s>"], None, "</s>"),
        ("<|im_end|>", ["<|endoftext|>"], "<|im_end|>", "<|im_end|>"),
        (None, [], "a", "a"),
    ],
)
def test_documents_end_as_in_pretraining(
    make, write_jsonl, eos_token, others, given, expected
) -> None:
    tokenizer = byte_tokenizer(eos_token, extra_special_tokens=others)
    end = tokenizer.convert_tokens_to_ids(expected)
    assert end_of_text_id(tokenizer, given) == end
    stream, _ = make(write_jsonl(["bc", "d"]), tokenizer=tokenizer, end_of_text=given)
    assert stream.tokens.tolist()[2::2] == [end, end]


def test_another_end_of_text_is_another_cache(make, write_jsonl):
    corpus = write_jsonl(DOCUMENTS)
    first, _ = make(corpus)
    assert make(corpus, end_of_text="<eot>")[0].folder == first.folder
    other, _ = make(corpus, end_of_text="a")
    assert other.folder != first.folder
    with pytest.raises(UserError, match=r"data.end_of_text; got <end>.*one token"):
        make(corpus, end_of_text="<end>")


def test_what_a_user_can_get_wrong(make, write_jsonl, tmp_path):
    corpus = write_jsonl(DOCUMENTS)
    with pytest.raises(UserError, match="no end-of-text token"):
        end_of_text_id(byte_tokenizer(eos_token=None))
    with pytest.raises(UserError, match="no end-of-text token"):
        make(corpus, tokenizer=byte_tokenizer(eos_token=None))
    with pytest.raises(UserError, match="held_out_share; got 1"):
        make(corpus, held_out_share=1)
    with pytest.raises(
        UserError,
        match=r"no document left for its held_out part; got 1 documents, held_out_share 0.01",
    ):
        make(write_jsonl(["a"], name="one"), held_out_share=0.01)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        make(corpus, cache="file")


def test_real_tokenizer_and_text(make, shared):
    """On curated text and a backbone beside the checkout; skips where they are absent."""
    text, model = shared / "data" / "sk.valid.jsonl.gz", shared / "models" / "en-3m"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    corpus = Corpus(name="sk", role="target", path=text)
    stream, _ = make(corpus, tokenizer=tokenizer)
    ends = [0, *stream.document_ends]
    for i, document in enumerate(iter_documents(corpus)):
        assert tokenizer.decode(stream.tokens[ends[i] : ends[i + 1] - 1]) == document
    assert stream.num_documents == 188

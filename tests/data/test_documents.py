"""Every kind of corpus gives its documents, and what is wrong with one is said in a line."""

import gzip
import io
import json
import resource

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from neutral_residues.config.data import Corpus
from neutral_residues.data import lines, rows
from neutral_residues.data.documents import (
    check_not_the_same,
    content_key,
    iter_documents,
    iter_groups,
)
from neutral_residues.errors import UserError

DOCUMENTS = ["Un été.\nDeux lignes.", "line separator \u2028 inside", "Привіт \N{GRINNING FACE}"]
JSONL = "".join(
    json.dumps({"id": 1, "text": text}) + "\n"
    for text in [*DOCUMENTS[:1], " \n", None, *DOCUMENTS[1:]]
)
TXT = "\n\n \n".join(DOCUMENTS) + "\n"


def packed(name: str, data: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(data[:20]) + gzip.compress(data[20:])  # joined streams are one file
    return (
        zstandard.compress(data[:20]) + zstandard.compress(data[20:])
        if name.endswith(".zst")
        else data
    )


def parquet_bytes(**columns) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


@pytest.fixture
def corpus_of(tmp_path):
    def make(name: str, data: bytes, **settings) -> Corpus:
        (tmp_path / name).write_bytes(data)
        return Corpus(name="fr", role="target", path=tmp_path / name, **settings)

    return make


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_every_kind_of_file_gives_the_same_documents(corpus_of, suffix):
    for name, content in (
        ("a.txt", TXT),
        ("a.jsonl", JSONL),
        ("b.TXT", "\ufeff" + TXT.replace("\n", "\r\n")),
    ):
        corpus = corpus_of(name + suffix, packed(suffix, content.encode()))
        assert list(iter_documents(corpus)) == DOCUMENTS, name
        assert list(iter_documents(corpus.model_copy(update={"max_documents": 2}))) == DOCUMENTS[:2]


def test_parquet(corpus_of):
    data = parquet_bytes(id=[1, 2, 3, 4], body=[*DOCUMENTS, None])
    assert list(iter_documents(corpus_of("a.parquet", data, field="body"))) == DOCUMENTS


def test_dataset_name(tmp_path, corpus_of, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.table({"text": DOCUMENTS, "id": [1, 2, 3]}), folder / "train.parquet")
    corpus = Corpus(name="fr", role="target", dataset=str(folder))
    assert list(iter_documents(corpus)) == DOCUMENTS
    assert content_key(corpus) == content_key(corpus.model_copy(update={"name": "other"}))
    assert content_key(corpus) != content_key(corpus.model_copy(update={"split": "test"}))
    for change, needed in (
        ({"split": "test"}, "test"),
        ({"subset": "no"}, "no"),
        ({"field": "body"}, "columns text, id"),
    ):
        line = refused(corpus.model_copy(update=change))
        assert needed in line


def test_a_dataset_that_cannot_be_reached_is_one_line(monkeypatch):
    import datasets

    def refuse(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub\nwith a second line")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    line = refused(Corpus(name="fr", role="target", dataset="nobody/nothing", subset="x"))
    assert "nobody/nothing:x/train" in line
    assert "Couldn't reach" in line
    assert "second line" not in line


def refused(corpus: Corpus) -> str:
    with pytest.raises(UserError) as caught:
        list(iter_documents(corpus))
    line = str(caught.value)
    assert "\n" not in line
    assert corpus.name in line
    assert ";" in line, "says what is allowed or what to do"
    return line


GOOD = b'{"text": "a"}\n'
LONG = (JSONL * 200).encode()
BAD_FILES = {
    "unknown suffix": ("a.csv", b"a", ["a.csv", ".txt, .jsonl", ".parquet"]),
    "no suffix": ("corpus", b"a", [".txt, .jsonl"]),
    "packed parquet": ("a.parquet.gz", b"a", ["a.parquet.gz", ".txt, .jsonl"]),
    "empty": ("a.jsonl", b"", ["no documents"]),
    "white space": ("a.txt", b"\n \n\t\n", ["no documents"]),
    "not UTF-8": (
        "a.jsonl",
        GOOD + b'{"text": "\xe9t\xe9"}\n',
        ["line 2: not UTF-8", "0xe9 at column 11"],
    ),
    "UTF-16": ("a.txt", "été".encode("utf-16"), ["UTF-8", "line 1"]),
    "not JSON": ("a.jsonl", GOOD + b"\n{'text': 1}\n", ["line 3", "{'text': 1}"]),
    "deep JSON": ("a.jsonl", b"[" * 100_000, ["line 1"]),
    "not an object": ("a.jsonl", GOOD + b'["a"]\n', ["line 2", "list"]),
    "missing field": (
        "a.jsonl",
        GOOD + b'{"body": "a", "id": 1}\n',
        ["line 2", "'text'", "body, id"],
    ),
    "not a string": ("a.jsonl", b'{"text": ["a"]}\n', ["line 1", "list", "string"]),
    "half a surrogate pair": ("a.jsonl", GOOD + b'{"text": "\\ud83d"}\n', ["line 2", "surrogate"]),
    "not gzip": ("a.txt.gz", b"plain text", ["broken", "gzip"]),
    "not zstd": ("a.txt.zst", b"plain text", ["broken", "zstd"]),
    "gzip cut short": ("a.jsonl.gz", gzip.compress(LONG)[:-9], ["cut short", "again"]),
    "zstd cut short": ("a.jsonl.zst", zstandard.compress(LONG)[:-9], ["cut short", "again"]),
    "missing column": ("a.parquet", parquet_bytes(body=["a"], id=[1]), ["'text'", "body, id"]),
    "column of numbers": ("a.parquet", parquet_bytes(text=[1, 2]), ["row 1", "int", "string"]),
    "broken parquet": ("a.parquet", parquet_bytes(text=["a"] * 99)[:-20], ["parquet", "again"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_input_is_one_line_that_names_the_place(corpus_of, case):
    name, data, needed = BAD_FILES[case]
    line = refused(corpus_of(name, data))
    assert [part for part in needed if part not in line] == [], line


def test_no_file_a_folder_and_no_permission_are_one_line(tmp_path, corpus_of, monkeypatch):
    for path, needed in ((tmp_path / "none.jsonl", "no such file"), (tmp_path, "is a folder")):
        corpus = Corpus(name="fr", role="target", path=path)
        assert needed in refused(corpus)
        with pytest.raises(UserError, match=needed):
            content_key(corpus)
    corpus = corpus_of("a.fr.jsonl", GOOD)

    def refuse(*args, **kwargs):  # a test may run as root, whom no permission stops
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    assert "permission" in refused(corpus)
    with pytest.raises(UserError, match="permission"):
        content_key(corpus)


def test_a_document_that_would_fill_the_memory_is_refused(corpus_of, monkeypatch):
    monkeypatch.setattr(lines, "MOST_BYTES", 100)
    assert "line 2" in refused(corpus_of("a.jsonl", GOOD + b'{"text": "' + b"a" * 200))
    assert "empty line" in refused(corpus_of("a.txt", b"twelve bytes\n" * 20))
    assert len(list(iter_documents(corpus_of("b.txt", b"twelve bytes\n\n" * 20)))) == 20


def test_one_stored_text_in_many_rows_fills_no_memory(tmp_path):
    text, file = "x" * 2**21, tmp_path / "a.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), pa.array([text]))
    file.write_bytes(parquet_bytes(text=column))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = rows._parquet_rows(file, ["text"])
    assert sum(len(text) for ((text, _),) in values) == 200 * len(text)  # 400 MiB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # in KiB


def test_a_huge_text_is_refused_before_it_is_unpacked(corpus_of):
    data = parquet_bytes(text=["x" * (2**24 + 9)], id=[1])
    assert len(data) < 2**22
    assert "row group 1: a document of over" in refused(corpus_of("a.parquet", data))
    assert "row group" in refused(corpus_of("b.parquet", parquet_bytes(text=[["x" * (2**24 + 9)]])))


def test_content_key_follows_content_and_settings_only(tmp_path, corpus_of):
    corpus = corpus_of("a.jsonl", JSONL.encode())
    key = content_key(corpus)
    (tmp_path / "copy.jsonl").write_bytes(JSONL.encode())
    assert (
        content_key(
            corpus.model_copy(
                update={"path": tmp_path / "copy.jsonl", "name": "x", "role": "source"}
            )
        )
        == key
    )
    (tmp_path / "copy.txt").write_bytes(JSONL.encode())
    for change in ({"field": "id"}, {"max_documents": 1}, {"path": tmp_path / "copy.txt"}):
        assert content_key(corpus.model_copy(update=change)) != key, change
    corpus_of("a.jsonl", JSONL.encode()[:-2] + b" }")
    assert content_key(corpus) != key


def test_source_and_target_must_differ(write_jsonl, tmp_path):
    source = write_jsonl(["a", "b"], "en", "source")
    target = write_jsonl(["a", "c"], "fr", "target")
    check_not_the_same([source, target])
    (tmp_path / "link.jsonl").symlink_to(source.path)
    (tmp_path / "copy.jsonl").write_bytes(source.path.read_bytes())
    for path in (source.path, tmp_path / "link.jsonl", tmp_path / "copy.jsonl"):
        same = target.model_copy(update={"path": path, "max_documents": 1})
        with pytest.raises(
            UserError, match=r"'en' \(source\) and 'fr' \(target\) are the same text"
        ):
            check_not_the_same([source, same])
    # Two fields of one file, and one file twice on one side, are no contradiction.
    check_not_the_same(
        [source, source.model_copy(update={"role": "target", "name": "x", "field": "other"})]
    )
    check_not_the_same([source, source.model_copy(update={"name": "again"})])


def test_groups_stand_beside_their_documents(corpus_of):
    rows = [("one", "a"), (" ", "skipped"), ("two", "b"), (None, "skipped"), ("three", "a")]
    lines = "".join(json.dumps({"text": text, "book": book}) + "\n" for text, book in rows)
    corpus = corpus_of("a.jsonl", lines.encode())
    assert list(iter_groups(corpus, "book")) == ["a", "b", "a"]
    assert list(iter_groups(corpus.model_copy(update={"max_documents": 2}), "book")) == ["a", "b"]
    with pytest.raises(UserError, match="no field 'site'"):
        list(iter_groups(corpus, "site"))
    with pytest.raises(UserError, match="no fields to group documents by"):
        list(iter_groups(corpus_of("a.txt", b"one"), "book"))
    empty = corpus_of("b.jsonl", lines.replace('"b"', '""').encode())
    with pytest.raises(UserError, match="document 2 has nothing in field 'book'"):
        list(iter_groups(empty, "book"))

"""Pairs: read alike from every kind of file, and exactly the completions are predicted."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from transformers import ByT5Tokenizer

from neutral_residues.config.data import Corpus
from neutral_residues.data.documents import Pair, check_not_the_same, iter_documents, iter_pairs
from neutral_residues.data.pairs import pair_encoder
from neutral_residues.data.tokenise import tokenise
from neutral_residues.errors import UserError
from tiny_run import END_OF_TEXT, byte_tokenizer

PAIRS = [("The cat.", "Le chat."), ('A "dog"\0', "Un « chien » "), ("Sea", "Mer")]


def corpus(path: Path, **settings: Any) -> Corpus:
    values = {"name": "en-fr", "role": "target", "path": path} | settings
    return Corpus.model_validate(values)


def written(folder: Path) -> dict[str, Corpus]:
    """The pairs, and one without text, in every kind of file."""
    both = [*PAIRS[:2], ("", " "), PAIRS[2]]
    rows = [{"translation": {"en": a, "fr": b}, "prompt": a, "completion": b} for a, b in both]
    table = "".join(f"7\t{a}\t{b}\n" for a, b in both)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
    files = {
        "a.tsv": table,
        "b.tsv": "id\ten\tfr\r\n" + table.replace("\n", "\r\n"),
        "a.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "a.en": "".join(a + "\n" for a, _ in both),
        "a.fr": "\n".join(b for _, b in both),
    }
    for name, text in files.items():
        (folder / name).write_bytes(text.encode())
    (folder / "a.fr.gz").write_bytes(gzip.compress((folder / "a.fr").read_bytes()))
    trl = {"prompt": "prompt", "field": "completion"}
    translation = {"prompt": "translation.en", "field": "translation.fr"}
    return {
        "columns": corpus(folder / "a.tsv", prompt=2, field=3),
        "names": corpus(folder / "b.tsv", prompt="en", field="fr"),
        "trl": corpus(folder / "a.jsonl", **trl),
        "translation": corpus(folder / "a.jsonl", **translation),
        "parquet": corpus(folder / "a.parquet", **trl),
        "within": corpus(folder / "a.parquet", **translation),
        "lines": corpus(folder / "a.fr", prompt_path=folder / "a.en"),
        "packed": corpus(folder / "a.fr.gz", prompt_path=folder / "a.en"),
    }


def test_every_kind_of_file_gives_the_same_pairs(tmp_path: Path) -> None:
    for name, it in written(tmp_path).items():
        assert list(iter_pairs(it)) == PAIRS, name
    assert list(iter_documents(it)) == ["\n".join(sorted(pair)) for pair in PAIRS]
    assert list(iter_pairs(it.model_copy(update={"max_documents": 2}))) == PAIRS[:2]


def test_one_side_of_a_file_of_pairs_is_text(tmp_path: Path) -> None:
    written(tmp_path)
    french = corpus(tmp_path / "a.tsv", field=3)
    assert list(iter_documents(french)) == [pair[1] for pair in PAIRS]
    with pytest.raises(UserError, match=r"a.tsv, line 1: no column 'text'; got columns 7, The"):
        list(iter_documents(corpus(tmp_path / "a.tsv")))


def test_a_dataset_with_translations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    written(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "a.parquet").rename(tmp_path / "d" / "train.parquet")
    settings = {"prompt": "translation.en", "field": "translation.fr"}
    found = Corpus(name="d", role="target", dataset=str(tmp_path / "d"), **settings)
    assert list(iter_pairs(found)) == PAIRS
    wrong = found.model_copy(update={"field": "translation.de"})
    with pytest.raises(UserError, match=r"row 1, column 'translation': no column 'de'"):
        list(iter_pairs(wrong))


def predicted(settings: dict[str, Any], pair: Pair) -> str:
    chosen = byte_tokenizer()
    encode = pair_encoder(corpus(Path("a.tsv"), prompt=1, **settings), chosen, END_OF_TEXT)
    ((ids, which),) = encode([pair])
    assert ids[-1] == END_OF_TEXT
    assert which[-1]
    changes = np.flatnonzero(np.diff([0, *map(int, which)]))
    assert len(changes) == 1, "one run, to the end"
    return chosen.decode(np.array(ids)[which])


def test_the_completion_is_predicted_with_what_follows() -> None:
    pair = Pair("{completion}", "été {prompt}")
    assert predicted({}, pair) == "été {prompt}<eot>"
    tags = {"template": "English: {prompt}\nFrench: {completion}\n"}
    assert predicted(tags, pair) == "été {prompt}\n<eot>"
    everything = predicted(tags | {"completion_only_loss": False}, pair)
    assert everything == "English: {completion}\nFrench: été {prompt}\n<eot>"
    with pytest.raises(UserError, match="pairs need a fast tokenizer; got ByT5Tokenizer"):
        pair_encoder(corpus(Path("a.tsv"), prompt=1), ByT5Tokenizer(), 1)


def many(folder: Path, **settings: Any) -> Corpus:
    path = folder / "many.tsv"
    path.write_text("".join(f"the {n}\tle numéro {n}\n" for n in range(60)), encoding="utf-8")
    return corpus(path, **({"prompt": 1, "field": 2} | settings))


def test_both_directions_of_a_pair_are_held_out_together(tmp_path: Path) -> None:
    chosen = byte_tokenizer()
    options = {"cache_dir": tmp_path / "cache", "held_out_share": 0.3}
    there, back = (
        tokenise(it, chosen, **options)
        for it in (many(tmp_path), many(tmp_path, prompt=2, field=1))
    )
    for one, other in zip(there, back, strict=True):
        assert one is not None
        assert other is not None
        sides = [
            {it.document_text(n, chosen).split()[-1] for n in range(it.num_documents)}
            for it in (one, other)
        ]
        assert sides[0] == sides[1]
        assert one.predicted is not None
        said = chosen.decode(one.tokens[one.predicted])
        assert said.count("le numéro") == said.count("<eot>") == one.num_documents
        # Every completion has its bytes, one token each, and the end of the text.
        assert one.num_predicted == one.num_bytes + one.num_documents
    template = many(tmp_path, template="{prompt}={completion}")
    assert tokenise(template, chosen, **options)[0].folder != there[0].folder


def test_pairs_are_not_their_sides(tmp_path: Path) -> None:
    pairs = many(tmp_path)
    english = many(tmp_path, role="source", name="en", prompt=None, field=1)
    check_not_the_same([pairs, english])
    with pytest.raises(UserError, match="are the same text"):
        check_not_the_same([pairs, many(tmp_path, role="source", name="again")])


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({"a.en": "a\nb\n", "a.fr": "c\n"}, {}, "numbers of lines; got .*a.fr ends after 1"),
        ({"a.en": "a\n", "a.fr": "c\n\n"}, {}, "numbers of lines; got .*a.en ends after 1"),
        ({"a.en": "a\n \n", "a.fr": "c\nd\n"}, {}, r"a.en, line 2: empty, and the other side"),
        ({"a.en": "\n", "a.fr": "\n"}, {}, "no documents"),
        ({"a.en": "", "a.fr": ""}, {}, "no documents"),
        ({"a.en": "a\n", "a.fr": b"\xff\n"}, {}, r"a.fr, line 1: not UTF-8"),
        ({"a.fr": "c\n"}, {}, r"a.en"),
        ({"a.tsv": "a\tb\nc\td\te\n"}, {}, r"a.tsv, line 2; got 3 columns; allowed: 2, as in"),
        ({"a.tsv": "a\tb\nc\n"}, {}, r"a.tsv, line 2; got 1 columns"),
        ({"a.tsv": "a\t\n"}, {}, r"a.tsv, line 1, column '2': empty, and the other side"),
        ({"a.tsv": "a\tb\n"}, {"field": 3}, r"line 1: no column '3'; got columns 1, 2"),
        ({"a.tsv": "a\tb\n"}, {"field": "fr"}, r"line 1: no column '1'; got columns a, b"),
        ({"a.tsv": "\0" * 9}, {}, r"line 1: no column '2'; got columns 1;"),
        ({"a.tsv": ""}, {}, "no documents"),
        ({"a.jsonl": '{"1": "a"}'}, {}, r"line 1: no field '2'; got fields 1"),
        ({"a.jsonl": '{"1": "a", "2": null}'}, {}, r"line 1, field '2': empty"),
        ({"a.jsonl": '{"1": "a", "2": 3}'}, {}, r"line 1, field '2'; got int"),
        ({"a.txt": "a"}, {}, "a.txt holds no pairs"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_pairs(
    tmp_path: Path, files: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
    if "a.fr" in files:
        given = corpus(tmp_path / "a.fr", prompt_path=tmp_path / "a.en")
    else:
        given = corpus(tmp_path / next(iter(files)), **({"prompt": 1, "field": 2} | settings))
    with pytest.raises(UserError, match=f"corpus 'en-fr': .*{message}") as error:
        list(iter_pairs(given))
    assert "\n" not in str(error.value)

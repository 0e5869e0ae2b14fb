"""Documents that a vocabulary changes are counted, also where there should be none."""

from contextlib import contextmanager

import pytest

from neutral_residues.config.run import make_run
from neutral_residues.vocabulary.explore import ChangedDocuments, changed_documents, explore
from neutral_residues.vocabulary.vocabulary import Vocabulary
from two_scripts import ENGLISH, UKRAINIAN, documents, write_texts


@pytest.fixture
def config(tmp_path):
    texts = {
        "uk": documents(UKRAINIAN),
        "en": documents(ENGLISH),
        "quoting": [*documents(ENGLISH, seed=1), "they said кіт", "and кота too"],
        "wiki": documents(ENGLISH, number=7, seed=2),
    }
    for name, its_documents in texts.items():
        write_texts(tmp_path / f"{name}.jsonl", its_documents)

    def corpora(*names: str) -> list[dict[str, str]]:
        roles = {"uk": "target"}
        return [
            {"name": n, "role": roles.get(n, "source"), "path": str(tmp_path / f"{n}.jsonl")}
            for n in names
        ]

    data = {"train": corpora("uk", "en"), "evaluate": corpora("uk", "en", "quoting")}
    data |= {"validate_on": corpora("wiki"), "cache": str(tmp_path / "cache")}
    return make_run({"model": "x", "output": "y", "data": data})


def test_every_source_corpus_is_compared(config, demo) -> None:
    found = explore(config, demo, first_id=2048)
    assert found.changed == (
        ChangedDocuments("en", "train", 40, 0),
        ChangedDocuments("en", "evaluate", 40, 0),
        ChangedDocuments("quoting", "evaluate", 42, 2),
        ChangedDocuments("wiki", "validate", 7, 0),
    )
    assert found.size == found.new_tokens.recommended_size
    chosen = config.model_copy(
        update={"vocabulary": config.vocabulary.model_copy(update={"size": 5})}
    )
    assert explore(chosen, demo, first_id=2048).size == 5


def test_tokens_without_a_rule_change_source_text(config, demo, learnt) -> None:
    vocabulary = Vocabulary(demo, learnt(demo, documents(ENGLISH)), "script")
    assert all(found.num_changed for found in changed_documents(vocabulary, config.data))


def test_progress_is_told(config, demo) -> None:
    told: list[str] = []

    @contextmanager
    def working(what: str, total: int):
        told.append(what)
        yield lambda done: None

    explore(config, demo, first_id=2048, working=working)
    assert told[:3] == ["reading uk", "reading en", "learning tokens"]
    assert told[3:] == [f"comparing {name}" for name in ("en", "en", "quoting", "wiki")]

"""Every JSON file of ours is read as it was written, or refused in one line that names it."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from damage import damages
from neutral_residues.digest import short_hash
from neutral_residues.errors import UserError
from neutral_residues.evaluation.tasks.cache import CachedScores
from neutral_residues.results.base import Part, read_part, write_part
from neutral_residues.results.calibration import Calibration
from neutral_residues.results.promise import Promise
from neutral_residues.results.record import Failure
from neutral_residues.vocabulary.learn import NewToken, NewTokens
from neutral_residues.vocabulary.vocabulary import VocabularyFile
from paths import COMPARISONS, RECORDS, ROOT
from synthetic import make_benchmark, make_record

PROMISE: dict[str, Any] = {
    "kind": "tokens",
    "at_most": 0.01,
    "form": "cut",
    "over": 32,
    "dial": 0.5,
    "sets": [{
        "name": "en", "key": "k", "group_by": None, "num_documents": 9, "num_tuning_units": 3,
        "num_units": 6, "loss": 0.001, "trained_loss": 0.1, "exact_share": 0.99,
        "trained_exact_share": 0.9,
    }],
    "training_text_checked": True,
}  # fmt: skip
TOKEN = NewToken("Ġдр", "Ġд", "р", " др", (5, 6, 7), 12)
PARTS: list[Part] = [
    make_record(),
    Failure(label="LoRA", reason="no space left"),
    make_benchmark(1e-5),
    Calibration(weights="w", promise=Promise(**PROMISE), scores={"en": {16: [-0.5, 1e-7]}}),
    VocabularyFile(
        base_tokenizer="key",
        keep="script",
        new_tokens=NewTokens(300, (TOKEN,), num_tokens=40, num_words=9, num_bytes=50),
    ),
    CachedScores(identity={"model": "w", "limit": None}, samples_digest="d", scores=[]),
]


@pytest.fixture(params=PARTS, ids=lambda part: type(part).__name__)
def part(request: pytest.FixtureRequest, tmp_path: Path) -> Part:
    found: Part = request.param
    write_part(tmp_path / "file.json", found)
    return found


def json_in(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), encoding="utf-8")


def test_damage_is_noticed(part: Part, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    assert read_part(type(part), path, "file") == part
    whole = json.loads(path.read_bytes())
    for damage in damages(path, flips=40):
        if path.exists() and json_in(path) == whole:  # 1E-5 is 1e-5
            continue
        with pytest.raises(UserError, match=r"^[^\n]*file\.json[^\n]*$"):
            print(damage, read_part(type(part), path, "file"))


def test_another_version_and_another_file(part: Part, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    edit(path, version=2)
    with pytest.raises(UserError, match=r"file .*file\.json: version; got 2; allowed: 1; read it"):
        read_part(type(part), path, "file")
    edit(path, format="somebody/else")
    with pytest.raises(UserError, match=r"file\.json is not a file of neutral-residues"):
        read_part(type(part), path, "file")


def test_an_edited_file_is_read_once_its_digest_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_part(path, Failure(label="LoRA", reason="no space left"))
    edit(path, label="mine")
    with pytest.raises(UserError, match=r"its digest is of other contents; .* delete its digest"):
        read_part(Failure, path, "failure")
    value = json.loads(path.read_text())
    del value["digest"]
    path.write_text(json.dumps(value))
    assert read_part(Failure, path, "failure").label == "mine"


def test_all_that_is_published_carries_digests() -> None:
    """The numbers of the README and of docs/ are those that were measured."""
    files = [*RECORDS.glob("*.json"), *(ROOT / "docs" / "benchmarks").glob("*.json")]
    values = [json.loads(file.read_text("utf-8")) for file in files]
    for pack in COMPARISONS.glob("*.jsonl.gz"):
        lines = gzip.decompress(pack.read_bytes()).decode("utf-8").splitlines()
        values += [json.loads(line)["content"] for line in lines]
    assert len(values) >= 100
    for value in values:
        fields = {key: entry for key, entry in value.items() if key != "digest"}
        assert value["digest"] == short_hash(fields)

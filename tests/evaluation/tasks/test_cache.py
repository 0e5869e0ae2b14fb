"""A finished task counts while its files, and what it was measured on, are the same."""

from pathlib import Path
from typing import Any

import pytest

from damage import damages
from neutral_residues.evaluation.tasks.cache import TaskCache, weights_key
from neutral_residues.results.record import TaskScore

SCORE = TaskScore(
    name="clams-fr", metric="acc", unit="share", direction="higher", num_items=2, backbone=0.5,
    extended=1.0, difference=0.5, low=-0.5, high=1.0, p_value=1.0, interval="paired t",
    num_fewshot=0, num_truncated=0, key="items",
)  # fmt: skip


def cache(folder: Path, **identity: Any) -> TaskCache:
    return TaskCache(folder, "clams-fr", {"model": "weights", "limit": None} | identity)


@pytest.fixture
def written(tmp_path: Path) -> TaskCache:
    found = cache(tmp_path)
    assert found.read() is None
    found.write([SCORE], ['{"item": 1}', '{"item": 2}'])
    return found


def test_what_was_written_is_read_again(written: TaskCache) -> None:
    assert written.samples.read_text() == '{"item": 1}\n{"item": 2}\n'
    assert cache(written.folder).read() == [SCORE]


def test_it_does_not_count_for_other_weights_or_items(written: TaskCache) -> None:
    assert cache(written.folder, model="other weights").read() is None
    assert cache(written.folder, limit=3).read() is None


@pytest.mark.parametrize("file", ["summary", "samples"])
def test_it_does_not_count_where_a_file_is_damaged(
    written: TaskCache, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    path: Path = getattr(written, file)
    for damage in damages(path, flips=40):
        caplog.clear()
        assert written.read() is None, damage
        is_new = not written.summary.exists()
        (line,) = caplog.messages or (["it is made again"] if is_new else [""])
        assert line.endswith("it is made again")
    assert written.read() == [SCORE]


def test_weights_have_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"1")
    key = weights_key(tmp_path, "backbone")
    assert key == weights_key(tmp_path, "backbone")
    assert key != weights_key(tmp_path, "another") != weights_key(tmp_path, "another", "main")
    (tmp_path / "a.safetensors").write_bytes(b"2")
    assert key != weights_key(tmp_path, "backbone")

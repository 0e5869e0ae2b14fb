"""The output folder of a run: whose it is, and who may write there."""

from pathlib import Path

import pytest

from neutral_residues.config.run import RunConfig, load_run, make_run
from neutral_residues.errors import UserError
from neutral_residues.results.run_folder import RunFolder, check_free


def config(folder: Path, *, path: str = "fr.jsonl", **changes: object) -> RunConfig:
    train = [{"name": "fr", "role": "target", "path": path}]
    data = {"train": [*train, {"name": "en", "role": "source", "path": "en.jsonl"}]}
    return make_run({"model": "x", "output": str(folder), "data": data} | changes)


def test_the_resolved_configuration_is_written_once(tmp_path: Path) -> None:
    folder, run = RunFolder(tmp_path / "run"), config(tmp_path / "run")
    folder.check(run)
    assert not folder.path.exists()
    folder.write_config(run)
    assert load_run(folder.config) == run
    folder.write_config(run)  # the same run goes on in it
    assert not folder.is_finished


def test_another_run_is_refused_by_the_first_key_that_differs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.write_config(config(folder.path, seed=1))
    with pytest.raises(UserError, match=r"holds another run: seed was 1; got 2; choose another"):
        folder.write_config(config(folder.path, seed=2))
    with pytest.raises(UserError, match=r"data\.train\.0\.path was 'fr\.jsonl'; got 'de\.jsonl'"):
        folder.write_config(config(folder.path, seed=1, path="de.jsonl"))
    assert load_run(folder.config).seed == 1


def test_files_of_somebody_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match=r"is not empty; got thesis\.txt"):
        RunFolder(tmp_path).check(config(tmp_path))
    with pytest.raises(UserError, match="is not empty"):
        check_free(tmp_path)
    check_free(tmp_path, but=("thesis.txt",))
    check_free(tmp_path / "new")


def test_a_lock_or_a_failure_does_not_occupy_a_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.lock(on_wait=pytest.fail):
        folder.failure.touch()
        folder.check(config(tmp_path))


def test_the_record_stays_when_weights_are_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for path in (folder.extension, folder.checkpoints):
        path.mkdir()
    folder.record.touch()
    folder.drop_extension()
    folder.drop_checkpoints()
    assert folder.is_finished
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]

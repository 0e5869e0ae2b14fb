"""Source text that a backbone writes itself: the same text however it comes about, and text that is
no use is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from damage import damages
from neutral_residues.backbone import load_config, load_tokenizer
from neutral_residues.config.run import make_run
from neutral_residues.digest import file_digest
from neutral_residues.errors import UserError
from neutral_residues.evaluation import self_replay
from neutral_residues.evaluation.self_replay import SelfReplay, repeated_share
from tiny_run import END_OF_TEXT, chat_values, run_values


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def replay_of(folder: Path, *, values: dict[str, Any] | None = None, **settings: Any) -> SelfReplay:
    """Text of a tiny backbone, in batches of four documents."""
    values = values or run_values(folder)
    values["data"]["train"][1] = {"name": "own", "role": "source", "path": "self"}
    values["data"]["self_replay"] = {"tokens": 100, "document_tokens": 20, "batch_rows": 4}
    values["data"]["self_replay"] |= settings
    config = make_run(values)
    replay = SelfReplay.of(config, load_tokenizer(config.model), load_config(config.model))
    assert replay is not None
    return replay


def texts(replay: SelfReplay) -> list[str]:
    """What was written."""
    found = replay.write()
    [corpus] = [c for c in replay.as_file().data.train if c.name == "own"]
    assert corpus.path is not None
    lines = [json.loads(line)["text"] for line in corpus.path.read_text("utf-8").splitlines()]
    assert (len(lines), sum(len(text.encode()) for text in lines)) == (
        found.num_documents,
        found.num_bytes,
    )
    return lines


def dies(*arguments: object) -> None:
    raise AssertionError("the backbone was asked to write")


def test_one_text_for_all_lengths_and_another_for_another_seed(tmp_path: Path) -> None:
    short, long = (texts(replay_of(tmp_path, tokens=tokens)) for tokens in (100, 200))
    assert len(short) < len(long) == len(set(long))
    assert long[: len(short)] == short
    assert texts(replay_of(tmp_path, seed=1))[0] != short[0]
    written = replay_of(tmp_path, tokens=200).write()
    assert 200 <= written.num_tokens < 200 + 4 * 21
    assert written.repeated_share == 0
    assert written.num_cut <= written.num_documents


def test_what_is_cached_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = texts(replay_of(tmp_path))
    monkeypatch.setattr(self_replay, "continued", dies)
    assert texts(replay_of(tmp_path)) == first
    replay = replay_of(tmp_path)
    shutil.rmtree(replay.folder)
    assert texts(replay) == first  # from the batches


def test_going_on_after_ctrl_c_gives_the_same_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = texts(replay_of(tmp_path))
    shutil.rmtree(tmp_path / "cache")
    real, calls = self_replay.continued, []

    def stopped(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(self_replay, "continued", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"of 100 tokens .* the same command goes on"):
        replay_of(tmp_path).write()
    assert replay_of(tmp_path).read() is None
    assert texts(replay_of(tmp_path)) == whole
    batches = len(list((tmp_path / "cache").glob("self-batches-*/*.json")))
    assert len(calls) == batches + 1


def test_damage_is_mended(tmp_path: Path) -> None:
    replay = replay_of(tmp_path)
    replay.write()
    text = replay.folder / "text.jsonl"
    before = file_digest(text)
    [batch, *_] = sorted((tmp_path / "cache").glob("self-batches-*/*.json"))
    for file in (text, replay.folder / "self-text.json", batch):
        for how in damages(file, flips=2):
            if file == batch:
                shutil.rmtree(replay.folder, ignore_errors=True)
            assert replay.read() is None, how
            replay.write()
            assert file_digest(text) == before, how


def test_documents_begin_with_prompts_in_turns(tmp_path: Path) -> None:
    """Prompts of several lengths in one batch give what each gives alone; top_p leaves one token to
    choose from."""
    (tmp_path / "words.txt").write_text("the\n\nsea dog\na\n", encoding="utf-8")
    prompts: dict[str, Any] = {"prompts": str(tmp_path / "words.txt"), "top_p": 1e-6}
    together = texts(replay_of(tmp_path, **prompts, batch_rows=3, tokens=30))
    alone = texts(replay_of(tmp_path, **prompts, batch_rows=1, tokens=60))
    assert together == alone[:3]
    begins = ("the", "sea dog", "a")
    assert all(text.startswith(begin) for text, begin in zip(together, begins, strict=True))


def test_documents_end_at_every_end_and_a_chat_model_begins_them_as_in_pretraining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = replay_of(tmp_path, values=chat_values(tmp_path), tokens=1)
    vocabulary = replay.tokenizer.get_vocab()
    end_of_text, end_of_turn = vocabulary["<|endoftext|>"], vocabulary["<|im_end|>"]
    assert replay.prompts == ((end_of_text,),)
    a, b = (vocabulary[letter] for letter in "ab")
    rows = [[a, end_of_turn], [a, a, end_of_text], [b, b, b], [end_of_text]]

    def continued(model: Any, prompts: list[list[int]], *_: Any) -> list[list[int]]:
        assert prompts == [[end_of_text]] * 4
        return [[end_of_text, *row] for row in rows]

    monkeypatch.setattr(self_replay, "continued", continued)
    assert texts(replay) == ["a", "aa", "bbb"]
    found = replay.write()
    assert (found.num_tokens, found.num_empty, found.num_cut) == (2 + 3 + 4, 1, 1)


def test_repeated_share_by_hand() -> None:
    counting = list(range(40))
    assert repeated_share([counting]) == 0
    assert repeated_share([counting, counting]) == 0.5
    assert repeated_share([[7] * 25]) == pytest.approx(0.9)  # one sequence, ten times
    assert repeated_share([[1, 2], [1, 2], [1], [3]]) == 0.25
    assert repeated_share([]) == 0


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([65] * 20, "repeats itself; got 92 % of all sequences of 16 tokens; allowed: up to 30 %"),
        ([END_OF_TEXT], "no text of its own; got 4 of 4 documents empty"),
    ],
)
def test_text_that_is_no_use_is_refused_after_the_first_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: list[int], message: str
) -> None:
    rows = [[END_OF_TEXT, *tokens]] * 4
    monkeypatch.setattr(self_replay, "continued", lambda *_: rows)
    replay = replay_of(tmp_path, tokens=10_000)
    for _ in range(2):  # the second time from the batch that is kept
        with pytest.raises(UserError, match=message):
            replay.write()
        monkeypatch.setattr(self_replay, "continued", dies)
    assert replay.read() is None


def test_prompts_and_lengths_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not fit the model's context; got 64 behind a prompt"):
        replay_of(tmp_path, document_tokens=64)
    (tmp_path / "empty.txt").write_text("\n \n")
    for file, message in (("empty.txt", "no line with text"), ("none.txt", "no such file")):
        with pytest.raises(UserError, match=message):
            replay_of(tmp_path, prompts=str(tmp_path / file))

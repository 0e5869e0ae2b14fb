"""`neutral describe`: a run in numbers."""

from pathlib import Path

from command_line import Neutral
from tiny_run import run_values, vocabulary_values, write_run


def test_weights_texts_and_disk(trained: Path, neutral: Neutral) -> None:
    code, printed = neutral("describe", trained / "run.yaml")
    assert code == 0, printed
    for part in (
        "new weights",
        "held out: fr",
        "en and fr in turns",
        "memory while training",
        "disk",
    ):
        assert part in printed
    assert "up to 256 windows of 32 tokens" in printed
    assert "about" not in printed.split("memory")[0]  # texts this small are counted
    code, printed = neutral("describe", trained / "run.yaml", "data.spliced_share=0.5")
    assert "25 % source, 50 % of its rows in turns" in printed


def test_a_corpus_says_which_share_of_the_rows_is_its_own(tmp_path: Path, neutral: Neutral) -> None:
    values = run_values(tmp_path)
    french = values["data"]["train"][0]
    values["data"]["train"].append(french | {"name": "again", "share": [0.7, 0.2]})
    french["share"] = [0.3, 0.8]
    code, printed = neutral("describe", write_run(tmp_path, values))
    assert code == 0, printed
    assert "fr (30 to 80 % of target rows)" in printed
    assert "en (source)" in printed


def test_what_new_tokens_start_from(tmp_path: Path, neutral: Neutral) -> None:
    values = vocabulary_values(tmp_path, vocabulary={"size": 12, "start": "distilled"})
    code, printed = neutral("describe", write_run(tmp_path, values))
    assert code == 0, printed
    assert "distilled, from about 300 tokens" in printed

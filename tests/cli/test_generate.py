"""`neutral generate`: backbone and extended model on one prompt."""

from pathlib import Path

from command_line import Neutral, assert_one_line


def test_both_complete_the_prompt(trained: Path, tmp_path: Path, neutral: Neutral) -> None:
    code, printed = neutral("generate", trained / "run", "le chat", "--max-new-tokens", 5)
    assert code == 0, printed
    assert "backbone" in printed
    assert "with extension" in printed
    assert_one_line(neutral("generate", trained / "run", ""), "prompt")
    (tmp_path / "empty").mkdir()
    assert_one_line(neutral("generate", tmp_path / "empty", "x"), "is not an extension")

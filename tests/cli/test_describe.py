"""`neutral describe`: a run in numbers."""

from pathlib import Path

from command_line import Neutral


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
    assert "up to 64 windows of 32 tokens" in printed
    assert "about" not in printed.split("memory")[0]  # texts this small are counted
    code, printed = neutral("describe", trained / "run.yaml", "data.spliced_share=0.5")
    assert "25 % source, 50 % of its rows in turns" in printed

"""What a person sees: a live panel on a terminal, plain lines elsewhere."""

import io
import re

import pytest
from rich.console import Console

from neutral_residues.results.record import TaskScore
from neutral_residues.training import progress
from neutral_residues.training.progress import MeasuringDisplay, RunProgress, TrainingDisplay
from synthetic import set_result


def play(console: Console) -> None:
    with TrainingDisplay(console, title="neutral", total_steps=4, tokens_per_step=100) as display:
        for step in range(1, 5):
            display.step(step)
        display.logged(
            4,
            {"loss_nats/fr": 2.5, "open_gates_source": 0.07, "local_loss": 0.01, "grad_norm": 1.0},
        )
        display.measured(4, {"en": set_result("en", 1.53), "fr": set_result("fr", 3.0)})


@pytest.mark.parametrize("terminal", [True, False])
def test_gates_that_are_all_closed_on_the_target_are_said_once(terminal: bool) -> None:
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=terminal, width=200)
    with TrainingDisplay(console, title="neutral", total_steps=4, tokens_per_step=100) as display:
        for share in (0.5, 0.0, 0.0):
            display.logged(1, {"open_gates_source": 0.0, "open_gates_target": share})
    assert printed.getvalue().count("every gate is closed on the target text") == 1


def test_tokenising_shows_a_bar_on_a_terminal_and_a_line_elsewhere() -> None:
    for terminal in (True, False):
        printed = io.StringIO()
        progress = RunProgress(Console(file=printed, force_terminal=terminal, width=100))
        with progress.tokenising("tokenising fr") as advance:
            assert terminal or printed.getvalue() == "tokenising fr ...\n"
            advance(2_000_000)
        assert "tokenising fr" in printed.getvalue()
        assert ("2.0 MB" in printed.getvalue()) is terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_finished_task_is_a_line(terminal: bool) -> None:
    printed = io.StringIO()
    score = TaskScore(
        name="clams-fr",
        metric="acc",
        unit="share",
        direction="higher",
        num_items=40,
        backbone=0.5,
        extended=0.75,
        difference=0.25,
        low=0.1,
        high=0.4,
        p_value=0.01,
        interval="paired t",
        num_fewshot=0,
        num_truncated=3,
        key="items",
    )
    changed = {"metric": "perplexity", "unit": "score", "backbone": 12.5, "extended": 11.75}
    other = score.model_copy(update=changed)
    with MeasuringDisplay(Console(file=printed, force_terminal=terminal, width=100)) as display:
        display.on_progress("clams-fr", 40, 80)
        display.on_scores([score, other])
    line = "clams-fr: acc 50 -> 75, perplexity 12.5 -> 11.75, 40 items, 3 truncated prompts\n"
    assert line in printed.getvalue()
    assert ("measuring clams-fr ...\n" in printed.getvalue()) is not terminal


@pytest.mark.parametrize(("silent_seconds", "more"), [(60, []), (-1, ["25", "62"])])
def test_a_long_measurement_is_not_silent_for_long(
    silent_seconds: float, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "MOST_SILENT_SECONDS", silent_seconds)
    printed = io.StringIO()
    with MeasuringDisplay(Console(file=printed)) as display:
        for done in (1, 2, 5):
            display.on_progress("belebele-de", done, 8)
    lines = ["belebele-de", *(f"belebele-de: {percent} %" for percent in more)]
    assert printed.getvalue() == "".join(f"measuring {line} ...\n" for line in lines)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_losses_gates_and_both_sides_are_shown(terminal: bool) -> None:
    printed = io.StringIO()
    play(Console(file=printed, force_terminal=terminal, width=160))
    text = re.sub(r"\x1b\[[\d;?]*\w", "", printed.getvalue())
    for part in ("loss fr 2.5", "open gates source 7 %", "1.530", "3.000"):
        assert part in text, part
    if terminal:
        assert "4/4" in text
        assert "tokens/s" in text
        assert "-25.00 %" in text

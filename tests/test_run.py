"""A run from text to record; stopped, killed and resumed; every method through the same loop."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from transformers import TrainerCallback

from neutral_residues.config.run import load_run, make_run
from neutral_residues.data.tokenise import without_display
from neutral_residues.errors import Stopped, UserError
from neutral_residues.evaluation.evaluate import evaluate
from neutral_residues.evaluation.evaluate_saved import evaluation_streams, windows_for
from neutral_residues.evaluation.saved import load_saved
from neutral_residues.methods.table import find_method
from neutral_residues.results.record import Record
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.results.store import read_record
from neutral_residues.run import extend
from neutral_residues.training.progress import RunProgress
from neutral_residues.training.trainer import ExtensionTrainer
from tiny_run import (
    TARGET_WORDS,
    beside_values,
    chat_values,
    make_text,
    run_values,
    several_values,
    write_run,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.relative_to(folder)}: {key}": value
        for file in sorted(folder.rglob("*.safetensors"))
        for key, value in load_file(file).items()
    }


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert one
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def losses(record: Record) -> list[dict[str, float]]:
    """What was logged, without the clock's numbers."""
    return [
        {k: v for k, v in point.items() if "runtime" not in k and "per_second" not in k}
        for point in record.curve
    ]


def bits(record: Record, of: str, name: str) -> float:
    return getattr(record.sets[name], f"{of}_bits_per_byte")


def test_a_run_learns_the_target_and_reports_both_sides(tmp_path: Path) -> None:
    values = run_values(tmp_path, steps=30, learning_rate=0.01)
    values["residues"] = {"local_loss_weight": 0.02}  # in so few steps the usual one closes gates
    record = extend(make_run(values))
    assert bits(record, "extended", "fr") < 0.96 * bits(record, "backbone", "fr")
    logged = [point for point in record.curve if "loss_nats/fr" in point]
    assert {
        "loss_nats/fr",
        "loss_nats/en",
        "local_loss",
        "open_gates_source",
        "learning_rate",
    } <= logged[-1].keys()
    assert logged[-1]["loss_nats/fr"] < logged[0]["loss_nats/fr"]
    assert [point["step"] for point in logged] == [1, *range(2, 31, 2)]
    measured = [point["step"] for point in record.curve if "bits_per_byte/en" in point]
    assert measured == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    assert record.beginnings.keys() == record.sets.keys()
    assert record.cost.tokens == 30 * 4 * 2 * 32
    assert abs(record.cost.new_weights / record.cost.backbone_weights - 0.20) < 0.004
    written = find_method("neutral").resolve(make_run(values))
    assert load_run(tmp_path / "run" / "run.yaml") == written
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert "import neutral_residues" in (tmp_path / "run" / "extension" / "README.md").read_text()


class _After(TrainerCallback):
    """Does something once, after a step."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.step, self.act = step, act

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.act()


class _Interrupt:
    """Asks the run to stop, or breaks it, after a step."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, step: int, error: type[BaseException] | None
    ) -> None:
        inner = ExtensionTrainer.__init__

        def init(trainer: ExtensionTrainer, *args: Any, **kwargs: Any) -> None:
            inner(trainer, *args, **kwargs)
            trainer.add_callback(_After(step, self.act))

        self.error = error
        monkeypatch.setattr(ExtensionTrainer, "__init__", init)

    def act(self) -> None:
        if self.error is not None:
            raise self.error
        os.kill(os.getpid(), signal.SIGINT)


MADE = {"chats": chat_values, "several": several_values, "beside": beside_values}


@pytest.mark.parametrize("method", ["neutral", "finetune", "ssu", *MADE])
@pytest.mark.parametrize("how", ["stopped", "crashed"])
def test_resume_is_bit_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, method: str
) -> None:
    made = MADE.get(method, run_values)
    values = made(tmp_path) | ({} if method in MADE else {"method": method})
    values["data"]["spliced_share"] = 0.5
    whole = extend(make_run(values | {"output": str(tmp_path / "whole")}))
    with monkeypatch.context() as patch:
        # Step 5 is between two log lines, so the sums for the next one must be kept too.
        _Interrupt(patch, step=5, error=None if how == "stopped" else RuntimeError)
        with pytest.raises(Stopped if how == "stopped" else RuntimeError):
            extend(make_run(values))
    checkpoints = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert checkpoints[-1] == ("checkpoint-5" if how == "stopped" else "checkpoint-3")
    resumed = extend(make_run(values))
    assert_same(weights(tmp_path / "run" / "extension"), weights(tmp_path / "whole" / "extension"))
    assert losses(resumed) == losses(whole)
    assert resumed.sets == whole.sets


@pytest.mark.slow
def test_kill_9_loses_nothing_but_the_steps_since_the_checkpoint(tmp_path: Path) -> None:
    values = run_values(tmp_path, steps=60, save_every=5, keep_checkpoints=1)
    whole = extend(make_run(values | {"output": str(tmp_path / "whole")}))
    run = write_run(tmp_path, values)
    code = (
        "import torch; torch.set_num_threads(1); from neutral_residues.cli.app import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "extend", str(run)], stderr=subprocess.DEVNULL
    )
    checkpoints = tmp_path / "run" / "checkpoints"
    while not list(checkpoints.glob("checkpoint-*/SHA256SUMS")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (tmp_path / "run" / "record.json").exists()
    resumed = extend(make_run(values))
    assert_same(weights(tmp_path / "run" / "extension"), weights(tmp_path / "whole" / "extension"))
    assert losses(resumed) == losses(whole)


def test_a_run_that_died_while_it_was_measured_is_finished_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import neutral_residues.run as run

    def die(*args: Any) -> None:
        raise RuntimeError

    values = run_values(tmp_path)
    whole = extend(make_run(values | {"output": str(tmp_path / "whole")}))
    with monkeypatch.context() as patch:
        patch.setattr(run, "write_record", die)
        with pytest.raises(RuntimeError):
            extend(make_run(values))
    record = extend(make_run(values))
    assert record.sets == whole.sets
    assert losses(record) == losses(whole)
    assert record.cost.seconds is None


def test_a_half_written_checkpoint_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = run_values(tmp_path)
    with monkeypatch.context() as patch:
        _Interrupt(patch, step=4, error=None)
        with pytest.raises(Stopped):
            extend(make_run(values))
    half = tmp_path / "run" / "checkpoints" / "checkpoint-7"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half")
    assert extend(make_run(values)).curve[-1]["step"] == 8


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = run_values(tmp_path)
    whole = extend(make_run(values | {"output": str(tmp_path / "whole")}))
    with monkeypatch.context() as patch:
        _Interrupt(patch, step=5, error=None)
        with pytest.raises(Stopped):
            extend(make_run(values))
    newest = tmp_path / "run" / "checkpoints" / "checkpoint-5"
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:100])
    resumed = extend(make_run(values))
    said = " ".join(capsys.readouterr().err.split())
    assert "optimizer.pt is not as it was saved; it is removed resuming from" in said
    assert_same(weights(tmp_path / "run" / "extension"), weights(tmp_path / "whole" / "extension"))
    assert losses(resumed) == losses(whole)


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    values = run_values(tmp_path, steps=2)
    first = extend(make_run(values))
    before = (tmp_path / "run" / "record.json").stat().st_mtime_ns
    assert extend(make_run(values)) == first
    assert (tmp_path / "run" / "record.json").stat().st_mtime_ns == before


def test_a_loss_that_is_not_finite_stops_before_the_optimiser_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import neutral_residues.training.trainer as train

    real = train.next_token_nats
    calls = iter(range(100))

    def broken(logits: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        nats = real(logits, input_ids)
        # Call 9 is in the fifth step; its third row is a target row.
        return (
            nats * torch.where(torch.arange(4)[:, None] == 2, float("nan"), 1.0)
            if next(calls) == 8
            else nats
        )

    monkeypatch.setattr(train, "next_token_nats", broken)
    with pytest.raises(
        UserError, match="step 5: the loss on fr is not finite; stopped before the optimiser step"
    ):
        extend(make_run(run_values(tmp_path)))
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-3" / "SHA256SUMS").is_file()


def test_accumulation_equals_one_big_batch(tmp_path: Path) -> None:
    for name, shape in {"big": (8, 1), "small": (2, 4)}.items():
        values = run_values(tmp_path, batch_rows=shape[0], accumulation=shape[1], steps=4)
        values["training"]["learning_rate"] = 0.03
        extend(make_run(values | {"output": str(tmp_path / name)}))
    big, small = (weights(tmp_path / name / "extension") for name in ("big", "small"))
    for key, value in big.items():
        torch.testing.assert_close(value, small[key], rtol=2e-4, atol=2e-6)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    for name, on in {"with": True, "without": False}.items():
        values = run_values(tmp_path, gradient_checkpointing=on, steps=4)
        extend(make_run(values | {"output": str(tmp_path / name)}))
    one, other = (weights(tmp_path / name / "extension") for name in ("with", "without"))
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=2e-4, atol=2e-6)


def test_tensorboard_gets_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    extend(make_run(run_values(tmp_path, steps=4, report_to=["tensorboard"])))
    events = next((tmp_path / "board").rglob("events.*")).read_bytes()
    assert b"loss_nats/fr" in events
    assert b"bits_per_byte/en" in events


def test_a_run_and_settings_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a run or the keys of a run file, not both; got training"):
        extend(make_run(run_values(tmp_path)), training={"steps": 1})


def test_settings_without_effect_are_errors(tmp_path: Path) -> None:
    values = run_values(tmp_path)
    for changes, line in (
        (
            {"method": "lora", "residues": {"init": "paper"}},
            r"residues\.init has no effect on method lora",
        ),
        (
            {"method": "adapter", "residues": {"local_loss_weight": 1.0}},
            "no effect on method adapter",
        ),
        (
            {"method": "neutral", "lora": {"modules": "mlp"}},
            r"lora\.modules has no effect on method neutral",
        ),
        (
            {"method": "neutral-elu", "residues": {"block_gate": "relu"}},
            r"block_gate is fixed by method neutral-elu",
        ),
    ):
        with pytest.raises(UserError, match=line):
            extend(make_run(values | changes))
    assert not (tmp_path / "run").exists()


def test_each_target_trains_an_extension_of_its_own(tmp_path: Path) -> None:
    values = several_values(tmp_path, steps=30, learning_rate=0.02)
    values["residues"] |= {"local_loss_weight": 0.02}  # in so few steps the usual one closes gates
    record = extend(make_run(values))
    saved = load_saved(tmp_path / "run")
    assert saved.composition is not None
    assert saved.composition.names == saved.model.active_adapters == ["fr", "uk"]
    streams = evaluation_streams(saved, (), without_display)
    found = {"together": evaluate(saved.model, streams, windows_for(saved, None, None))}
    assert found["together"]["fr"].extended_nats == pytest.approx(record.sets["fr"].extended_nats)
    for name in ("fr", "uk"):
        saved.model.set_adapter(name)
        found[name] = evaluate(saved.model, streams, windows_for(saved, None, None))
    for own, other in (("fr", "uk"), ("uk", "fr")):
        assert found[own][own].extended_nats < found[other][own].extended_nats
        assert found["together"][own].extended_nats < found[other][own].extended_nats
    card = (tmp_path / "run" / "extension" / "README.md").read_text()
    assert "load_saved" in card


def test_an_extension_trains_beside_one_that_stays_as_it_is(tmp_path: Path) -> None:
    values = beside_values(tmp_path, steps=30, learning_rate=0.02)
    first = read_record(tmp_path / "first" / "record.json")
    record = extend(make_run(values))
    assert record.sets["uk"].rise_bits_per_byte < -0.5
    measured = [point["bits_per_byte/fr"] for point in first.curve if "bits_per_byte/fr" in point]
    assert record.curve[0]["bits_per_byte/fr"] == pytest.approx(measured[-1], rel=1e-4)
    folder = tmp_path / "run" / "extension"
    assert_same(weights(folder / "first"), weights(tmp_path / "first" / "extension"))
    saved = load_saved(tmp_path / "run")
    assert saved.model.active_adapters == ["second", "first"]
    streams = evaluation_streams(saved, (), without_display)
    found = evaluate(saved.model, streams, windows_for(saved, None, None))
    for name in ("uk", "fr", "en"):
        assert found[name].extended_nats == pytest.approx(record.sets[name].extended_nats)
        assert found[name].backbone_nats == pytest.approx(record.sets[name].backbone_nats)


def test_the_record_says_what_was_measured_and_what_it_took(tmp_path: Path) -> None:
    values = run_values(tmp_path, steps=8)
    make_text(tmp_path / "valid.jsonl", TARGET_WORDS, documents=4, seed=5)
    valid = {"name": "fr-valid", "role": "target", "path": str(tmp_path / "valid.jsonl")}
    values["data"]["validate_on"] = [valid]
    record = extend(make_run(values | {"label": "my-run"}))
    assert (list(record.sets), list(record.validation_sets)) == (["fr", "en"], ["fr-valid"])
    measured = {key for point in record.curve for key in point if key.startswith("bits_per_byte/")}
    assert measured == {
        "bits_per_byte/fr-valid"
    }  # on the way the evaluation sets are not looked at
    assert record.label == "my-run"
    cost = record.cost
    assert 0 < cost.step_seconds < cost.seconds < cost.wall_seconds
    assert (cost.stored_weights, cost.threads) == (cost.new_weights, 1)
    assert [text.kind for text in record.gates] == ["target", "source", "code-switched"]
    for found in record.sets.values():
        changes = (kind.extended - kind.backbone for kind in found.breakdown.classes)
        assert sum(changes) == pytest.approx(found.rise_bits_per_byte)
        assert found.kl_nats is None


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    values = run_values(tmp_path, steps=2)
    folder = RunFolder(tmp_path / "run")
    printed = io.StringIO()
    with folder.lock(on_wait=pytest.fail):
        thread = threading.Thread(
            target=extend,
            args=(make_run(values),),
            kwargs={"progress": RunProgress(Console(file=printed))},
        )
        thread.start()
        deadline = time.monotonic() + 60
        while (
            "waiting for another process" not in printed.getvalue() and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        assert not folder.is_finished
    thread.join()
    assert "waiting for another process" in printed.getvalue()
    assert folder.is_finished


def test_a_prompt_that_does_not_fit_stops_before_training(tmp_path: Path) -> None:
    values = run_values(tmp_path)
    with pytest.raises(UserError, match="longer than the model's context"):
        extend(make_run(values | {"evaluation": {"prompts": ["le chat"]}}))
    assert not (tmp_path / "run").exists()


def test_the_record_on_disk_is_the_one_returned(tmp_path: Path) -> None:
    record = extend(make_run(run_values(tmp_path, steps=2)))
    assert read_record(tmp_path / "run" / "record.json") == record
    assert (
        json.loads((tmp_path / "run" / "record.json").read_text())["format"]
        == "neutral-residues/record"
    )
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["method"] == "neutral"


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    values = run_values(
        tmp_path, steps=4, batch_rows=4, accumulation=2, evaluate_every=2, kl_weight=2.0
    )
    values["data"]["spliced_share"] = 0.5
    one = extend(make_run(values | {"output": str(tmp_path / "one")}))
    run = write_run(tmp_path, values | {"training": values["training"] | {"accumulation": 1}})
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = subprocess.run(
        [*command, "-m", "neutral_residues.cli.app", "extend", str(run)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = read_record(tmp_path / "run" / "record.json")
    assert two.cost.tokens == one.cost.tokens
    expected = weights(tmp_path / "one" / "extension")
    for key, value in weights(tmp_path / "run" / "extension").items():
        torch.testing.assert_close(value, expected[key], rtol=2e-4, atol=2e-6)
    for ours, theirs in zip(two.curve, one.curve, strict=True):
        parts = ("loss_nats/fr", "loss_nats/en", "local_loss", "kl_nats", "open_gates_target")
        for key in ("loss", *parts):
            if key in theirs:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6)


def test_a_run_measures_tasks_and_goes_on_with_them_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    import neutral_residues.evaluation.tasks.lm_eval_bridge as bridge

    values = run_values(tmp_path, steps=3, learning_rate=0.02)
    values["evaluation"] |= {"tasks": ["clams-fr", "minimal-pairs-de"], "task_limit": 6}
    real, measured = bridge.answer_both, []

    def killed_in_the_second(*args: Any, **kwargs: Any) -> Any:
        measured.extend(args[1])
        if len(measured) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(bridge, "answer_both", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        extend(make_run(values))
    assert not (tmp_path / "run" / "record.json").exists()
    record = extend(make_run(values))
    assert measured == ["clams-fr", "clams-de", "clams-de"]
    found = {task.name: task for task in record.tasks}
    assert {name: (task.suite, task.role, task.num_items) for name, task in found.items()} == {
        "clams-fr": (None, "target", 6), "clams-de": ("minimal-pairs-de", "none", 6),
    }  # fmt: skip
    assert read_record(tmp_path / "run" / "record.json") == record
    # Full fine-tuning has its backbone beside it, and it is the same one.
    finetuned = extend(
        make_run(values | {"method": "finetune", "output": str(tmp_path / "finetune")})
    )
    assert [task.backbone for task in finetuned.tasks] == [task.backbone for task in record.tasks]
    assert [task.key for task in finetuned.tasks] == [task.key for task in record.tasks]

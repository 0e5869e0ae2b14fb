"""Runs a run file: trains an extension, saves it, and measures backbone and extended model.

    check -> tokenise -> reserve the output folder -> train -> save -> evaluate -> record

Everything that can be checked is checked before anything is written to the output folder. After an
interruption at any point, the same call resumes from the last complete checkpoint. Under torchrun,
every rank calls `extend`; the main process writes and measures.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from neutral_residues.backbone import device_name
from neutral_residues.config.run import RunConfig, make_run
from neutral_residues.data.tokenise import tokenizer_key
from neutral_residues.digest import write_digests
from neutral_residues.errors import UserError
from neutral_residues.evaluation.both import BothModels
from neutral_residues.evaluation.chat import read_prompts
from neutral_residues.evaluation.evaluate import evaluation_set
from neutral_residues.evaluation.tasks.cache import weights_key
from neutral_residues.evaluation.tasks.runner import TaskPlan, TaskSettings, plan_tasks
from neutral_residues.files import whole_folder
from neutral_residues.results.composition import Composition, write_composition
from neutral_residues.results.model_card import write_card
from neutral_residues.results.record import Cost, Record, TaskScore
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.results.set_result import EvaluationSet
from neutral_residues.results.store import provenance, read_record, write_record
from neutral_residues.training.models import model_to_train, reference_of
from neutral_residues.training.progress import MeasuringDisplay, RunProgress
from neutral_residues.training.setup import Setup, ranks
from neutral_residues.training.train import Training, train


def extend(
    run: RunConfig | Setup | None = None, *, progress: RunProgress | None = None, **settings: Any
) -> Record:
    """Train an extension, save it, and measure backbone and extended model.

    The same call resumes an interrupted run, and returns the record of a finished one.

    Args:
        run: a configuration or setup; alternatively, give the keys of a run file as `settings`.
        progress: prints the progress; default: on standard error.
        settings: keys of a run file, nested as in the YAML file: `training={"steps": 200}`.

    Returns:
        The record, which is also written to the output folder as `record.json`.

    Raises:
        UserError: for errors in the user's input, before anything is written if possible.
        Stopped: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    if run is not None and settings:
        what = "extend takes a run or the keys of a run file, not both"
        raise UserError(what, got=", ".join(settings), do="give one of them")
    started = time.monotonic()
    run = make_run(settings) if run is None else run
    setup = run if isinstance(run, Setup) else Setup.of(run)
    progress = progress or RunProgress(quiet=not ranks().is_main_process)
    folder = RunFolder(setup.config.output)
    folder.check(setup.config)
    if folder.is_finished:
        folder.drop_checkpoints()  # a process may have been killed before it could do this
        progress.say(f"{folder.path} is finished; nothing to do")
        return read_record(folder.record)
    setup.prepare()
    tasks = _planned_tasks(setup, progress)
    progress.say(f"loading {setup.config.model} ...")
    model = model_to_train(setup)
    with ExitStack() as until_the_end:
        with ranks().main_process_first():
            folder.write_config(setup.config)
            if ranks().is_main_process:
                waiting = f"waiting for another process that works in {folder.path}"
                lock = folder.lock(on_wait=lambda: progress.say(waiting))
                until_the_end.enter_context(lock)
            finished = folder.is_finished  # maybe by the process that this one waited for
        if not finished:
            _Run(setup, folder, tasks, progress, started).execute(model)
    return read_record(folder.record)


def save_extension(model: Any, folder: Path) -> None:
    """Save the adapter of a PEFT model, or else the whole model, into `folder`."""
    if isinstance(model, PeftModel):
        # PEFT would save whole embeddings because of new tokens, whose rows are saved anyway.
        model.save_pretrained(folder, save_embedding_layers=False)
    else:
        model.save_pretrained(folder)


def _planned_tasks(setup: Setup, progress: RunProgress) -> TaskPlan:
    """Find the tasks of the run before training: a misspelt task, or one without data, would fail
    only after it."""
    config, evaluation = setup.config, setup.config.evaluation
    plan = plan_tasks(
        evaluation.tasks,
        settings=TaskSettings(
            batch_rows=evaluation.batch_rows,
            context_tokens=config.context_tokens,
            limit=evaluation.task_limit,
            num_fewshot=evaluation.task_fewshot,
        ),
        tokenizer=setup.tokenizer,
        sets=setup.data.evaluate,
        folder=RunFolder(config.output).tasks,
        task_data=evaluation.task_data,
        vocabulary=setup.vocabulary,
    )
    for line in plan.missing:
        progress.say(line)
    return plan


@dataclass(frozen=True)
class _Run:
    """An unfinished run whose output folder is reserved for it."""

    setup: Setup
    folder: RunFolder
    tasks: TaskPlan
    progress: RunProgress
    started: float

    def execute(self, model: nn.Module) -> None:
        """Train, save and measure, and write the record."""
        training = self._train(model)
        if ranks().is_main_process:
            with whole_folder(self.folder.extension) as partial:
                save_extension(model, partial)
                config = self.setup.config
                if names := [*config.extension_names, *config.beside]:
                    write_composition(partial, Composition(names=names, over=None))
                if self.setup.vocabulary:
                    self.setup.vocabulary.save(partial)
                else:
                    self.setup.tokenizer.save_pretrained(partial)
                write_digests(partial)
            self.progress.say("measuring backbone and extended model ...")
            with MeasuringDisplay(self.progress.console) as display:
                record = self._record(model, training, display)
            write_card(self.folder.extension, record)
            write_record(self.folder.record, record)
            self.folder.drop_checkpoints()
        ranks().wait_for_everyone()

    def _train(self, model: nn.Module) -> Training:
        if self.setup.method.trains_any:
            folder = self.folder.checkpoints
            return train(self.setup, model, checkpoints=folder, progress=self.progress)
        # A method that only scales a trained run has the cost of that run.
        trained = self.setup.config.scaling.trained
        return Training([], read_record(RunFolder(trained).record).cost if trained else Cost())

    def _total(self, cost: Cost) -> Cost:
        """`cost` with the wall time and threads of this process."""
        seconds = time.monotonic() - self.started + (cost.wall_seconds or 0)
        return cost.model_copy(update={"wall_seconds": seconds, "threads": torch.get_num_threads()})

    def _record(self, model: nn.Module, training: Training, display: MeasuringDisplay) -> Record:
        """Measure backbone and extended model on everything that the run file names."""
        setup, config = self.setup, self.setup.config
        streams, on_progress = setup.data.evaluate, display.on_progress
        both = BothModels(
            model=model,
            reference=reference_of(setup),
            tokenizer=setup.tokenizer,
            backbone_tokenizer=setup.backbone_tokenizer,
            vocabulary=setup.vocabulary,
            end_of_text=setup.end_of_text,
            evaluation=config.evaluation,
            seed=config.seed,
        )
        measured = both.texts(
            streams,
            setup.windows,
            backbone_streams=setup.backbone_data.evaluate,
            kl=config.evaluation.kl,
            on_progress=on_progress,
        )
        return Record(
            kind="extend",
            method=setup.method.name,
            **measured._asdict(),
            self_text=setup.self_text,
            validation_sets=self._validation_sets(),
            curve=training.curve,
            samples=both.samples(),
            chat=both.chat(self._prompts(), on_progress),
            gates=both.gates(streams),
            tasks=self._tasks(both, display),
            cost=self._total(training.cost),
            provenance=provenance(
                seed=config.seed,
                device=device_name(setup.device),
                tokenizer_key=tokenizer_key(setup.backbone_tokenizer),
            ),
            config=config.model_dump(mode="json"),
        )

    def _prompts(self) -> list[str]:
        file = self.setup.config.evaluation.chat
        return read_prompts(file) if file else []

    def _validation_sets(self) -> dict[str, EvaluationSet]:
        own = {stream.name: stream for stream in self.setup.backbone_data.validate}
        return {s.name: evaluation_set(s, own.get(s.name)) for s in self.setup.data.validate}

    def _tasks(self, both: BothModels, display: MeasuringDisplay) -> list[TaskScore]:
        """Scores of all tasks. Finished tasks are stored in the folder, so that an interrupted run
        resumes with the next one."""
        if not self.tasks.tasks:
            return []
        config = self.setup.config
        return both.tasks(
            self.tasks,
            model_key=weights_key(self.folder.extension, config.model, config.revision),
            on_progress=display.on_progress,
            on_scores=display.on_scores,
        )

"""From a run file to an extension with both sides measured: the order in which the other files are
called.

    check -> tokenise -> attach the method -> claim the output folder -> train, measuring -> save ->
    measure all -> record

Nothing is written to the output folder before everything that can be checked is. Interrupted
anywhere, the same call goes on from the last whole checkpoint. Under torchrun every rank calls
this; the first one writes and measures.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from neutral_residues.advice.text_statistics import text_warnings
from neutral_residues.backbone import (
    frozen_backbone,
    load_backbone,
    load_config,
    load_tokenizer,
    pick_device,
    wants_bf16,
)
from neutral_residues.config.run import RunConfig, make_run
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.data.tokenise import end_of_text_id, tokenizer_key
from neutral_residues.errors import Stopped
from neutral_residues.evaluation.breakdown import breakdowns
from neutral_residues.evaluation.evaluate import evaluate
from neutral_residues.evaluation.gate_maps import default_texts, gate_texts
from neutral_residues.evaluation.generate import check_prompt, generate_both
from neutral_residues.evaluation.metrics import SetScore, metrics
from neutral_residues.evaluation.tasks.cache import weights_key
from neutral_residues.evaluation.tasks.runner import (
    TaskPlan,
    TaskSettings,
    measure_tasks,
    plan_tasks,
)
from neutral_residues.files import whole_folder
from neutral_residues.methods.table import Method, find_method, learning_rate, resolved
from neutral_residues.results.model_card import write_card
from neutral_residues.results.record import Cost, GateText, Record, Sample, TaskScore
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.results.store import provenance, read_record, write_record
from neutral_residues.training.callbacks import Measure, Show, StepClock, stop_on_signal
from neutral_residues.training.checkpoints import last_checkpoint
from neutral_residues.training.cost import WeightCount, peak_memory_bytes
from neutral_residues.training.progress import TaskDisplay, TrainingDisplay
from neutral_residues.training.setup import (
    RunData,
    check_context,
    first_rank_first,
    is_first_rank,
    make_rows,
    prepare_data,
    world_size,
)
from neutral_residues.training.trainer import (
    ExtensionTrainer,
    check_trackers,
    make_trainer,
    training_arguments,
)

SAMPLE_TOKENS = 60
"""How many tokens are added to each prompt at the end of a run."""


def extend(
    config: RunConfig | None = None,
    *,
    console: Console | None = None,
    advice: bool = True,
    **settings: Any,
) -> Record:
    """Extend a model as a run file says; returns the record that is also written to the output
    folder.

    Args:
        config: a checked configuration; or give its keys as `settings`, nested as in the YAML file.
        console: where progress goes; default: standard error.
        advice: look at the texts of a new run and warn; changes nothing of the run.

    Raises:
        UserError: for whatever the user can mend, before anything is written where possible.
        Stopped: after Ctrl-C, when the checkpoint is safe.
    """
    config = resolved(make_run(settings) if config is None else config)
    console = console or Console(stderr=True, quiet=not is_first_rank())
    method = find_method(config.method)
    check_trackers(config)
    model_config = load_config(
        config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    check_context(config, model_config)
    folder = RunFolder(config.output)
    tokenizer = load_tokenizer(
        config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    end_of_text_id(tokenizer)
    for prompt in config.evaluation.prompts:
        check_prompt(model_config, tokenizer, prompt, max_new_tokens=SAMPLE_TOKENS)
    folder.check(config)
    if folder.is_finished:
        console.print(f"{config.output} is finished; nothing to do", highlight=False)
        return read_record(folder.record)
    with first_rank_first():
        data = prepare_data(config, tokenizer, show_progress=console.is_terminal)
    tasks = _plan_tasks(config, data, tokenizer, console)
    run = Run(config, method, folder, tokenizer, data, tasks, console)
    if advice and is_first_rank() and not folder.config.is_file():
        for line in text_warnings(config, data, tokenizer):
            console.print(f"warning: {line}", highlight=False, markup=False)
    return run.go()


def _plan_tasks(
    config: RunConfig, data: RunData, tokenizer: PreTrainedTokenizerBase, console: Console
) -> TaskPlan:
    """Checked before training: a misspelt task, or one without data, must not cost a run."""
    evaluation = config.evaluation
    plan = plan_tasks(
        evaluation.tasks,
        settings=TaskSettings(evaluation.batch_rows, config.context_tokens, evaluation.task_limit),
        tokenizer=tokenizer,
        sets=data.evaluate,
        folder=RunFolder(config.output).tasks,
        task_data=evaluation.task_data,
    )
    for line in plan.missing:
        console.print(line, highlight=False)
    return plan


class Run:
    """One run with everything it needs in hand."""

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        folder: RunFolder,
        tokenizer: PreTrainedTokenizerBase,
        data: RunData,
        tasks: TaskPlan | None,
        console: Console,
    ) -> None:
        self.config, self.method, self.folder = config, method, folder
        self.tokenizer, self.data, self.tasks, self.console = tokenizer, data, tasks, console
        self.started = time.monotonic()
        self.device = pick_device()
        self.bf16 = wants_bf16(config, self.device)
        self.rows = make_rows(config, data, tokenizer)

    def go(self) -> Record:
        model, weights = self.attached()
        with ExitStack() as until_the_end:
            with first_rank_first():
                self.folder.claim(self.config)
                if is_first_rank():
                    until_the_end.enter_context(self.folder.held(on_wait=self._say_that_we_wait))
                finished = self.folder.is_finished  # by a process that we waited for
            if not finished:
                self._work(model, weights)
        return read_record(self.folder.record)

    def attached(self) -> tuple[nn.Module, WeightCount]:
        """The model to train, from the run's seed."""
        set_seed(self.config.seed)
        backbone = self._backbone(frozen=self.method.keeps_backbone)
        weights = WeightCount.of_backbone(backbone)
        model = self.method.attach(backbone, self.config)
        return model, weights.with_model(model)

    def _work(self, model: nn.Module, weights: WeightCount) -> None:
        trains = any(parameter.requires_grad for parameter in model.parameters())
        trainer, cost = self.train(model, weights) if trains else (None, self._cost_of_average())
        if is_first_rank():
            self._finish(model, trainer.state.log_history if trainer else [], cost)
        if trainer is not None:
            trainer.accelerator.wait_for_everyone()

    def _say_that_we_wait(self) -> None:
        self.console.print(
            f"waiting for another process that works in {self.folder.path}", highlight=False
        )

    def _finish(self, model: nn.Module, history: list[dict[str, Any]], cost: Cost) -> None:
        """Save, measure, write the record."""
        self._save(model)
        reference = None if self.method.keeps_backbone else self._backbone(frozen=True)
        scores, samples, gates = self._measure_all(model, reference)
        record = Record(
            kind="extend",
            method=self.method.name,
            metrics=metrics(scores),
            sets=self.data.sets(),
            curve=[point for point in history if "train_runtime" not in point],
            samples=samples,
            gates=gates,
            breakdowns=breakdowns(scores, self.data.evaluate, self.tokenizer),
            tasks=self._measure_tasks(model, reference),
            cost=self._with_totals(cost),
            provenance=provenance(
                seed=self.config.seed,
                device=self._device_name(),
                tokenizer_key=tokenizer_key(self.tokenizer),
            ),
            config=self.config.model_dump(mode="json"),
        )
        write_record(self.folder.record, record)
        write_card(self.folder.extension, record)
        self.folder.drop_checkpoints()

    def _cost_of_average(self) -> Cost:
        """What the fine-tuning behind it cost."""
        assert self.config.averaging.finetuned is not None
        return read_record(RunFolder(self.config.averaging.finetuned).record).cost

    def _with_totals(self, cost: Cost) -> Cost:
        """With what this process took in all."""
        seconds = time.monotonic() - self.started + (cost.wall_seconds or 0)
        return cost.model_copy(update={"wall_seconds": seconds, "threads": torch.get_num_threads()})

    def _backbone(self, *, frozen: bool) -> nn.Module:
        if frozen:
            return frozen_backbone(self.config, self.device)
        # Weights that train are kept in float32, and autocast casts them.
        config = self.config
        model = load_backbone(
            config.model,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            dtype=torch.float32,
        )
        return model.to(self.device)

    def _display(self) -> TrainingDisplay:
        training = self.config.training
        rows_per_step = training.batch_rows * training.accumulation * world_size()
        return TrainingDisplay(
            self.console,
            title=self.config.method,
            total_steps=training.steps,
            tokens_per_step=rows_per_step * self.config.data.block_tokens,
        )

    def _trainer(self, model: nn.Module) -> ExtensionTrainer:
        hidden_size = model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
        args = training_arguments(
            self.config,
            output_dir=self.folder.checkpoints,
            learning_rate=learning_rate(self.config, hidden_size=hidden_size),
            bf16=self.bf16,
        )
        names = [stream.name for stream in self.data.train]
        return make_trainer(self.config, model, self.rows, args=args, corpus_names=names)

    def quick_scores(self, model: nn.Module) -> list[SetScore]:
        """The extended model on a part of what is measured on the way."""
        limit = self.config.evaluation.tokens_while_training
        return self._evaluate(model, self.data.while_training, backbone=False, max_tokens=limit)

    def _evaluate(
        self, model: nn.Module, streams: Sequence[TokenStream], **options: Any
    ) -> list[SetScore]:
        return evaluate(
            model,
            streams,
            end_of_text=end_of_text_id(self.tokenizer),
            context_tokens=self.config.context_tokens,
            stride_tokens=self.config.stride_tokens,
            batch_rows=self.config.evaluation.batch_rows,
            **options,
        )

    def train(self, model: nn.Module, weights: WeightCount) -> tuple[ExtensionTrainer, Cost]:
        """Train from the last whole checkpoint; a resumed run does not know its seconds."""
        with self._display() as display:
            checkpoint = last_checkpoint(self.folder.checkpoints)
            trainer = self._trainer(model)
            clock = StepClock()
            trainer.add_callback(clock)
            seconds = self._train_from(checkpoint, trainer, display)
        cost = weights.to_record(
            tokens=len(self.rows) * self.config.data.block_tokens,
            seconds=seconds if checkpoint is None else None,
            step_seconds=clock.median_seconds,
            peak_memory_bytes=peak_memory_bytes(self.device),
            saves_whole_model=not self.method.keeps_backbone,
        )
        return trainer, cost

    def _train_from(
        self, checkpoint: Path | None, trainer: ExtensionTrainer, display: TrainingDisplay
    ) -> float:
        """Seconds of training, without the measuring in between."""
        if checkpoint is not None:
            self.console.print(f"resuming from {checkpoint}", highlight=False)
        measure = None
        if trainer.is_world_process_zero():
            every = self.config.training.evaluate_every
            measure = Measure(self.quick_scores, every=every, trainer=trainer, display=display)
            trainer.add_callback(measure)
            trainer.add_callback(Show(display))
        start = time.monotonic()
        with stop_on_signal(trainer):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.state.global_step < self.config.training.steps:
            raise Stopped(trainer.state.global_step, self.config.training.steps)
        return time.monotonic() - start - (measure.seconds if measure else 0.0)

    def _save(self, model: nn.Module) -> None:
        with whole_folder(self.folder.extension) as partial:
            model.save_pretrained(partial)  # type: ignore[operator]
            self.tokenizer.save_pretrained(partial)

    def _measure_all(
        self, model: nn.Module, reference: nn.Module | None
    ) -> tuple[list[SetScore], list[Sample], list[GateText]]:
        self.console.print("measuring both sides ...", highlight=False)
        scores = self._evaluate(model, self.data.evaluate, reference=reference)
        samples = [
            generate_both(
                model,
                self.tokenizer,
                prompt,
                max_new_tokens=SAMPLE_TOKENS,
                temperature=self.config.evaluation.temperature,
                seed=self.config.seed,
                reference=reference,
            )
            for prompt in self.config.evaluation.prompts
        ]
        texts = default_texts(self.data.evaluate, self.tokenizer, self.config.evaluation.gate_texts)
        gates = gate_texts(model, self.tokenizer, texts, end_of_text=end_of_text_id(self.tokenizer))
        return scores, samples, gates

    def _measure_tasks(self, model: nn.Module, reference: nn.Module | None) -> list[TaskScore]:
        """Finished tasks are kept in the run's folder, so that a run stopped among them goes on
        with the next."""
        if self.tasks is None:
            return []
        with TaskDisplay(self.console) as display:
            return measure_tasks(
                model,
                self.tasks,
                model_key=weights_key(
                    self.folder.extension, self.config.model, self.config.revision
                ),
                reference=reference,
                on_progress=display.on_progress,
                on_score=display.on_score,
            )

    def _device_name(self) -> str:
        return (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else self.device.type
        )

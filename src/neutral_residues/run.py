"""From a run file to an extension with both sides measured: the order in which the other files are called.

    check -> tokenise -> attach the method -> claim the output folder -> train, measuring -> save -> measure all
    -> record

Nothing is written to the output folder before everything that can be checked is. Interrupted anywhere, the same call
goes on from the last whole checkpoint. Under torchrun every rank calls this; the first one writes and measures.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase, TrainerCallback, set_seed

from neutral_residues.config import Corpus, RunConfig, make_run
from neutral_residues.cost import WeightCount, peak_memory_bytes
from neutral_residues.data.encoding import end_of_text_id, tokenizer_key
from neutral_residues.data.mixing import Mixture
from neutral_residues.data.noise import NoisedMixture
from neutral_residues.data.tokens import TokenStream, check_not_the_same, tokenise
from neutral_residues.display import TrainingDisplay
from neutral_residues.errors import Stopped, UserError
from neutral_residues.evaluate import evaluate
from neutral_residues.files import default_cache_folder, whole_folder
from neutral_residues.generate import generate_both
from neutral_residues.loading import context_length, load_backbone, load_config, load_tokenizer, pick_device
from neutral_residues.methods import Method, check_settings_are_used, find_method, learning_rate
from neutral_residues.model_card import write_card
from neutral_residues.results import Record, Sample, provenance, read_record, write_record
from neutral_residues.run_folder import RunFolder
from neutral_residues.scores import SetScore, metrics
from neutral_residues.train import (
    ExtensionTrainer,
    check_trackers,
    last_checkpoint,
    make_trainer,
    training_arguments,
)


@dataclass(frozen=True)
class RunData:
    """Token streams of a run."""

    train: tuple[TokenStream, ...]
    evaluate: tuple[TokenStream, ...]


def extend(config: RunConfig | None = None, *, console: Console | None = None, **settings: Any) -> Record:
    """Extend a model as a run file says; returns the record that is also written to the output folder.

    Args:
        config: a checked configuration; or give its keys as `settings`, nested as in the YAML file.
        console: where progress goes; default: standard error.

    Raises:
        UserError: for whatever the user can mend, before anything is written where possible.
        Stopped: after Ctrl-C, when the checkpoint is safe.
    """
    config = make_run(settings) if config is None else config
    console = console or Console(stderr=True, quiet=not is_first_rank())
    method = find_method(config.method)
    check_settings_are_used(config)
    check_trackers(config)
    model_config = load_config(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
    check_context(config, model_config)
    folder = RunFolder(config.output)
    tokenizer = load_tokenizer(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
    end_of_text_id(tokenizer)
    folder.check(config)
    if folder.is_finished:
        console.print(f"{config.output} is finished; nothing to do", highlight=False)
        return read_record(folder.record)
    with first_rank_first():
        data = prepare_data(config, tokenizer, show_progress=console.is_terminal)
    return _Run(config, method, folder, tokenizer, data, console).go()


def check_context(config: RunConfig, model_config: PretrainedConfig) -> None:
    """Raise if a row or window is longer than the model can read."""
    longest = context_length(model_config)
    for key, tokens in (("data.block_tokens", config.data.block_tokens), ("context_tokens", config.context_tokens)):
        if longest is not None and tokens > longest:
            raise UserError(f"{key} is longer than the model's context", got=tokens, allowed=f"at most {longest}")


def prepare_data(config: RunConfig, tokenizer: PreTrainedTokenizerBase, *, show_progress: bool) -> RunData:
    """Tokenise what is not in the cache yet; hold out documents of the training text if no evaluation sets are
    given."""
    check_not_the_same([*config.data.train, *config.data.evaluate])
    share = 0.0 if config.data.evaluate else config.data.held_out_share

    def streams(corpora: tuple[Corpus, ...], held_out_share: float) -> list[tuple[TokenStream, TokenStream | None]]:
        return [
            tokenise(
                corpus,
                tokenizer,
                cache_dir=config.data.cache or default_cache_folder(),
                num_workers=config.data.workers,
                held_out_share=held_out_share,
                seed=config.seed,
                show_progress=show_progress,
            )
            for corpus in corpora
        ]

    train = streams(config.data.train, share)
    held_out = [stream for _, stream in train if stream is not None]
    evaluate_on = [stream for stream, _ in streams(config.data.evaluate, 0.0)] or held_out
    return RunData(tuple(stream for stream, _ in train), tuple(evaluate_on))


def make_rows(config: RunConfig, data: RunData, tokenizer: PreTrainedTokenizerBase) -> NoisedMixture:
    """All rows of the run, in their fixed order; noised ones only where a local loss has a use for them."""
    training, residues = config.training, config.residues
    has_local_loss = find_method(config.method).has_local_loss and residues.local_loss_weight > 0
    rows = Mixture(
        data.train,
        block_tokens=config.data.block_tokens,
        source_share=config.data.source_share,
        num_rows=training.steps * training.batch_rows * training.accumulation * world_size(),
        seed=config.seed,
    )
    return NoisedMixture(
        rows,
        share=residues.source_noise if has_local_loss else 0.0,
        vocabulary=len(tokenizer),
        end_of_text=end_of_text_id(tokenizer),
    )


def world_size() -> int:
    """Number of ranks, as torchrun and accelerate launch announce it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_rank() -> bool:
    """Whether this process is the one that writes, measures and prints."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def first_rank_first() -> Iterator[None]:
    """What the first rank writes within the block, the others find."""
    if world_size() == 1:
        yield
        return
    with PartialState(cpu=not torch.accelerator.is_available()).main_process_first():
        yield


def wants_bf16(config: RunConfig, device: torch.device) -> bool:
    """bfloat16 as set; "auto" takes it on a GPU that has it."""
    if config.training.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return config.training.precision == "bfloat16"


class _Run:
    """One run with everything it needs in hand."""

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        folder: RunFolder,
        tokenizer: PreTrainedTokenizerBase,
        data: RunData,
        console: Console,
    ) -> None:
        self.config, self.method, self.folder = config, method, folder
        self.tokenizer, self.data, self.console = tokenizer, data, console
        self.device = pick_device()
        self.bf16 = wants_bf16(config, self.device)
        self.rows = make_rows(config, data, tokenizer)

    def go(self) -> Record:
        set_seed(self.config.seed)
        backbone = self._backbone(frozen=self.method.keeps_backbone)
        weights = WeightCount.of_backbone(backbone)
        model = self.method.attach(backbone, self.config)
        weights = weights.with_model(model)
        with self._display() as display:
            with first_rank_first():
                self.folder.claim(self.config)
                checkpoint = last_checkpoint(self.folder.checkpoints)
            trainer = self._trainer(model)
            seconds = self._train(trainer, display, checkpoint)
        if trainer.is_world_process_zero():
            self._finish(model, trainer, weights, seconds if checkpoint is None else None)
        trainer.accelerator.wait_for_everyone()
        return read_record(self.folder.record)

    def _finish(self, model: nn.Module, trainer: ExtensionTrainer, weights: WeightCount, seconds: float | None) -> None:
        """Save, measure, write the record. A resumed run does not know its seconds."""
        self._save(model)
        scores, samples = self._measure_all(model)
        record = Record(
            kind="extend",
            method=self.config.method,
            metrics=metrics(scores),
            curve=[point for point in trainer.state.log_history if "train_runtime" not in point],
            samples=samples,
            cost=weights.to_record(
                tokens=len(self.rows) * self.config.data.block_tokens,
                seconds=seconds,
                peak_memory=peak_memory_bytes(self.device),
            ),
            provenance=provenance(
                seed=self.config.seed, device=self._device_name(), tokenizer_key=tokenizer_key(self.tokenizer)
            ),
            config=self.config.model_dump(mode="json"),
        )
        write_record(self.folder.record, record)
        write_card(self.folder.extension, record)
        self.folder.drop_checkpoints()

    def _backbone(self, *, frozen: bool) -> nn.Module:
        # Frozen weights can live in bfloat16; weights that train are kept in float32 and cast by autocast.
        dtype = torch.bfloat16 if self.bf16 and frozen else torch.float32
        config = self.config
        model = load_backbone(
            config.model, revision=config.revision, trust_remote_code=config.trust_remote_code, dtype=dtype
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

    def _quick_scores(self, model: nn.Module) -> list[SetScore]:
        return self._evaluate(model, backbone=False, max_tokens=self.config.evaluation.tokens_while_training)

    def _evaluate(self, model: nn.Module, **options: Any) -> list[SetScore]:
        return evaluate(
            model,
            self.data.evaluate,
            end_of_text=end_of_text_id(self.tokenizer),
            context_tokens=self.config.context_tokens,
            stride_tokens=self.config.stride_tokens,
            batch_rows=self.config.evaluation.batch_rows,
            **options,
        )

    def _train(self, trainer: ExtensionTrainer, display: TrainingDisplay, checkpoint: Path | None) -> float:
        """Seconds of training, without the measuring in between."""
        if checkpoint is not None:
            self.console.print(f"resuming from {checkpoint}", highlight=False)
        measure = None
        if trainer.is_world_process_zero():
            measure = _Measure(self, trainer, display)
            trainer.add_callback(measure)
            trainer.add_callback(_Show(display))
        start = time.monotonic()
        with _stop_on_signal(trainer):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.state.global_step < self.config.training.steps:
            raise Stopped(trainer.state.global_step, self.config.training.steps)
        return time.monotonic() - start - (measure.seconds if measure else 0.0)

    def _save(self, model: nn.Module) -> None:
        with whole_folder(self.folder.extension) as partial:
            model.save_pretrained(partial)  # type: ignore[operator]
            self.tokenizer.save_pretrained(partial)

    def _measure_all(self, model: nn.Module) -> tuple[list[SetScore], list[Sample]]:
        self.console.print("measuring both sides ...", highlight=False)
        reference = None if self.method.keeps_backbone else self._backbone(frozen=True)
        scores = self._evaluate(model, reference=reference)
        samples = [
            generate_both(
                model,
                self.tokenizer,
                prompt,
                max_new_tokens=60,
                temperature=self.config.evaluation.temperature,
                seed=self.config.seed,
                reference=reference,
            )
            for prompt in self.config.evaluation.prompts
        ]
        return scores, samples

    def _device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type


class _Measure(TrainerCallback):
    """Measures the extended model every so many steps and tells the log and the display; step 0 is the backbone."""

    def __init__(self, run: _Run, trainer: ExtensionTrainer, display: TrainingDisplay) -> None:
        self.run, self.trainer, self.display = run, trainer, display
        # Nothing is trained yet, so the model is its backbone, also where a checkpoint will be loaded.
        self.backbone = run._quick_scores(trainer.model)
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._log(self.backbone)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = self.run.config.training.evaluate_every
        if state.global_step % every == 0 or state.global_step == state.max_steps:
            start = time.monotonic()
            scores = self.run._quick_scores(self.trainer.model)
            self.seconds += time.monotonic() - start
            self._log(scores)
            before = _bits(self.backbone)
            self.display.measured(state.global_step, {n: (before[n], value) for n, value in _bits(scores).items()})

    def _log(self, scores: list[SetScore]) -> None:
        logs = {f"bits_per_byte/{name}": value for name, value in _bits(scores).items()}
        logs |= {f"neutral_tokens/{s.name}": s.neutral_share for s in scores if s.neutral_share is not None}
        # Trainer takes any line in the log for the one that is due at this step, and would leave that out.
        due = self.trainer.control.should_log
        self.trainer.log(logs)
        self.trainer.control.should_log = due


class _Show(TrainerCallback):
    """Passes steps and logs on to the display."""

    def __init__(self, display: TrainingDisplay) -> None:
        self.display = display

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.display.step(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.display.logged(state.global_step, logs)


def _bits(scores: list[SetScore]) -> dict[str, float]:
    return {score.name: score.extended_bits_per_byte for score in scores}


@contextmanager
def _stop_on_signal(trainer: ExtensionTrainer) -> Iterator[None]:
    """Ctrl-C and termination ask for a checkpoint after the step; a second Ctrl-C does not wait."""

    def ask(number: int, frame: FrameType | None) -> None:
        if trainer.stop_requested:
            raise KeyboardInterrupt
        trainer.stop_requested = True

    try:
        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: then whoever owns it decides
        yield
        return
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

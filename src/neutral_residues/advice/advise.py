"""Advice before training (`neutral advise`): from the texts, the backbone and a few real steps.

    statistics of texts -> backbone on samples -> a few training steps in another process -> advice

Only caches are written, which the run uses too; its output folder is not touched.
"""

import statistics
from collections.abc import Callable
from typing import Literal

import torch

from neutral_residues.advice.best_use import BestUse, best_use
from neutral_residues.advice.rules import CorpusFacts, DistanceFacts, TextFacts
from neutral_residues.advice.text_statistics import (
    all_warnings,
    corpus_facts,
    distances,
    sample_stream,
    text_facts,
)
from neutral_residues.evaluation.evaluate import evaluate
from neutral_residues.results.base import Part
from neutral_residues.training.models import backbone_of
from neutral_residues.training.setup import Setup
from neutral_residues.training.trial_run import check_trial_steps, run_trial

SAMPLE_TOKENS = 4000
"""Tokens of each text scored by the backbone."""


class TrialFacts(Part):
    """Time and memory of a few real steps, and the estimate for the whole run from them."""

    steps: int
    step_seconds: float | None
    """Median time of a step, without the first ones."""
    peak_memory_bytes: int | None
    """Peak memory of the process, or on the accelerator; the run will need as much."""
    run_seconds: float | None
    """Estimated wall time of the whole run."""
    target_bits: list[tuple[int, float]]
    """(step, bits per byte) at each measurement, mean over the target sets."""
    backbone_bits: float | None
    """The same of the backbone, which new tokens change before the first step."""

    @property
    def drop_share(self) -> float | None:
        """Relative decrease of the target's bits per byte during these steps, from `start_bits`;
        None if there are fewer than two measurements."""
        if len(self.target_bits) < 2 or self.start_bits is None:
            return None
        return 1 - self.target_bits[-1][1] / self.start_bits

    @property
    def start_bits(self) -> float | None:
        """Bits per byte of the backbone or the model before the first step, whichever is lower;
        None without measurements."""
        if not self.target_bits or self.backbone_bits is None:
            return None
        return min(self.target_bits[0][1], self.backbone_bits)


class Advice(Part):
    """The result of `advise`."""

    format: Literal["neutral-residues/advice"] = "neutral-residues/advice"
    version: Literal[1] = 1
    texts: list[TextFacts]
    corpora: list[CorpusFacts]
    """Repetition in each training corpus."""
    distances: list[DistanceFacts]
    """Distance of each source evaluation set from the source training text."""
    trial: TrialFacts | None = None
    """Null without a trial run."""
    best_use: BestUse | None
    """What to spend time on first; null for a method that trains nothing."""
    warnings: list[str]
    """Problems to look at before training, a sentence each."""


def advise(
    setup: Setup, *, trial_steps: int, on_stage: Callable[[str], None] = lambda stage: None
) -> Advice:
    """Examine the texts and the backbone of a run, and try a few steps of it.

    Args:
        trial_steps: optimiser steps of a trial run, 4 or more; 0 for no trial.
        on_stage: called with one line of text before each stage.

    Raises:
        UserError: for any error that the run would raise before its first step, or in the trial.
    """
    if trial_steps:
        check_trial_steps(trial_steps)
    on_stage("reading the texts ...")
    data, tokenizer = setup.data, setup.tokenizer
    setup.prepare()
    corpora, far = corpus_facts(data, tokenizer), distances(data)
    on_stage("measuring the backbone ...")
    texts = _with_bits(setup, text_facts(data, tokenizer))
    trial = None
    if trial_steps and setup.method.trains_any:
        on_stage(f"trying {trial_steps} steps ...")
        trial = _trial(setup, trial_steps)
    return Advice(
        texts=texts,
        corpora=corpora,
        distances=far,
        trial=trial,
        best_use=_best_use(setup, texts, trial),
        warnings=all_warnings(setup, texts, corpora, far),
    )


def _with_bits(setup: Setup, texts: list[TextFacts]) -> list[TextFacts]:
    """Add the backbone's bits per byte on a sample of each text."""
    data = setup.backbone_data if setup.vocabulary else setup.data
    model = backbone_of(setup, frozen=True)
    found = []
    # One by one: train and held-out parts may share a name.
    for facts, stream in zip(texts, (*data.train, *data.evaluate, *data.validate), strict=True):
        sample = sample_stream(stream, SAMPLE_TOKENS, setup.backbone_tokenizer)
        results = evaluate(model, [sample], setup.windows, reference=model)
        bits = results[sample.name].backbone_bits_per_byte
        found.append(facts.model_copy(update={"backbone_bits": bits}))
    del model
    if setup.device.type == "cuda":
        torch.cuda.empty_cache()  # the trial's process needs it
    return found


def _best_use(setup: Setup, texts: list[TextFacts], trial: TrialFacts | None) -> BestUse | None:
    if not setup.method.trains_any:
        return None
    drop = trial.drop_share if trial else None
    is_protected = max(setup.local_loss_weight, setup.config.training.kl_weight) > 0
    return best_use(setup.config, texts, trial_drop=drop, is_protected=is_protected)


def _trial(setup: Setup, num_steps: int) -> TrialFacts:
    found = run_trial(setup.config, num_steps=num_steps)
    measured = setup.data.while_training
    targets = [stream.name for stream in measured if stream.role == "target"]
    keys = [f"bits_per_byte/{name}" for name in targets]
    of_backbone = [found.backbone_bits[name] for name in targets]
    return TrialFacts(
        steps=num_steps,
        step_seconds=found.cost.step_seconds,
        peak_memory_bytes=found.cost.peak_memory_bytes,
        run_seconds=found.run_seconds(setup.config, setup.data),
        target_bits=[
            (int(point["step"]), statistics.fmean(point[key] for key in keys))
            for point in found.curve
            if keys and all(key in point for key in keys)
        ],
        backbone_bits=statistics.fmean(of_backbone) if of_backbone else None,
    )

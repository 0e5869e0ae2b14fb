"""Advice before anything is spent: the texts, the backbone and a few real steps.

    texts -> backbone on samples -> a few steps in another process -> warnings

Nothing is written but the token cache, which the run then uses. The run's own output folder stays
untouched.
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
from neutral_residues.training.setup import Setup
from neutral_residues.training.trial_run import check_trial_steps, run_trial

SAMPLE_TOKENS = 4000
"""Tokens of each text scored by the backbone."""


class TrialFacts(Part):
    """What a few real steps took, and the estimate for the whole run that follows."""

    steps: int
    step_seconds: float | None
    """Median time of one, the first ones left out."""
    peak_memory_bytes: int | None
    """Peak of the process, or of the accelerator: the estimate for the run."""
    run_seconds: float | None
    """Estimated wall time of the whole run."""
    target_bits: list[tuple[int, float]]
    """(step, bits per byte), mean over the target sets that are measured during training."""

    @property
    def drop_share(self) -> float | None:
        """Share of the target's bits per byte that these steps took away; None where it was not
        measured twice."""
        if len(self.target_bits) < 2:
            return None
        return 1 - self.target_bits[-1][1] / self.target_bits[0][1]


class Advice(Part):
    """Everything that was found."""

    format: Literal["neutral-residues/advice"] = "neutral-residues/advice"
    version: Literal[1] = 1
    texts: list[TextFacts]
    corpora: list[CorpusFacts]
    """Every training corpus."""
    distances: list[DistanceFacts]
    """Every source set."""
    trial: TrialFacts | None = None
    """None where no step was tried."""
    best_use: BestUse | None
    """What the time is best spent on; None for a method that trains nothing."""
    warnings: list[str]
    """What to look at before spending anything."""


def advise(
    setup: Setup, *, trial_steps: int, on_stage: Callable[[str], None] = lambda stage: None
) -> Advice:
    """Look at everything that a run will meet.

    Args:
        trial_steps: optimiser steps to try, 4 or more; 0 tries none.
        on_stage: called with one line before each stage.

    Raises:
        UserError: what the run would raise before its first step; what the trial run raises.
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
    """With the backbone's bits per byte on a sample of each text."""
    data = setup.backbone_data if setup.vocabulary else setup.data
    model = setup.backbone(frozen=True)
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
    targets = [f"bits_per_byte/{stream.name}" for stream in measured if stream.role == "target"]
    return TrialFacts(
        steps=num_steps,
        step_seconds=found.cost.step_seconds,
        peak_memory_bytes=found.cost.peak_memory_bytes,
        run_seconds=found.run_seconds(setup.config, setup.data),
        target_bits=[
            (int(point["step"]), statistics.fmean(point[key] for key in targets))
            for point in found.curve
            if targets and all(key in point for key in targets)
        ],
    )

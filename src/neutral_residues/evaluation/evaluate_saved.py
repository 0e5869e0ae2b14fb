"""Measures a saved extension of any method, and its backbone, on text and on tasks."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from neutral_residues.config.data import Corpus
from neutral_residues.data.run_data import RunData
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.data.tokenise import Tokenising, tokenise, tokenizer_key
from neutral_residues.evaluation.evaluate import OnProgress
from neutral_residues.evaluation.saved import Saved
from neutral_residues.evaluation.self_replay import as_was_read
from neutral_residues.evaluation.tasks.runner import TaskPlan, TaskSettings, plan_tasks
from neutral_residues.evaluation.windows import Windows
from neutral_residues.files import default_cache_folder
from neutral_residues.results.record import Record
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.results.store import provenance

DEFAULT_CONTEXT_TOKENS = 512


def evaluation_streams(
    saved: Saved, corpora: Sequence[Corpus], tokenising: Tokenising, *, of_backbone: bool = False
) -> list[TokenStream]:
    """Tokenise the texts to measure.

    Args:
        corpora: the texts; if empty, the evaluation sets of the run that made the extension, if
            there is one.
        of_backbone: use the backbone's tokenizer, not that of the extended model.
    """
    tokenizer = saved.backbone_tokenizer if of_backbone else saved.tokenizer
    cache = default_cache_folder()
    if not corpora and saved.config:
        data = saved.config.data
        if not data.evaluate:  # the sets are a held-out part of the training text
            data = as_was_read(saved.config, saved.backbone_tokenizer).data
            return list(RunData.of(data, tokenizer, tokenising=tokenising).evaluate)
        corpora, cache = data.evaluate, data.cache or cache
    read = partial(
        tokenise, cache_dir=cache, end_of_text=saved.end_of_text_token, tokenising=tokenising
    )
    return [read(corpus, tokenizer)[0] for corpus in corpora]


def windows_for(saved: Saved, context: int | None, stride: int | None) -> Windows:
    """Windows of `context` and `stride` tokens. Default: those of the run that made the extension,
    or else a context of `DEFAULT_CONTEXT_TOKENS` and a stride of half the context."""
    run = saved.config
    context = context or (run.context_tokens if run else DEFAULT_CONTEXT_TOKENS)
    if stride is None and run and context == run.context_tokens:
        stride = run.stride_tokens
    stride = max(1, context // 2) if stride is None else stride
    return Windows(saved.end_of_text, context, stride)


def plan_saved_tasks(
    saved: Saved,
    names: Sequence[str],
    streams: Sequence[TokenStream],
    windows: Windows,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    task_data: Path | None = None,
) -> TaskPlan:
    """Find and check tasks for a saved extension, before anything is measured; see
    `plan_tasks`."""
    return plan_tasks(
        names,
        settings=TaskSettings(
            saved.evaluation.batch_rows, windows.context_tokens, limit, num_fewshot
        ),
        tokenizer=saved.tokenizer,
        sets=streams,
        folder=RunFolder(saved.folder).tasks,
        task_data=task_data,
        vocabulary=saved.vocabulary,
    )


def evaluate_saved(
    saved: Saved,
    streams: Sequence[TokenStream],
    windows: Windows,
    *,
    backbone_streams: Sequence[TokenStream] = (),
    kl: bool = False,
    on_progress: OnProgress | None = None,
) -> Record:
    """Measure backbone and extended model on all texts, on their beginnings, and on text that
    alternates between the first source and the first target text; see `BothModels`. Returns a
    record without task scores."""
    measured = saved.texts(
        streams, windows, backbone_streams=backbone_streams, kl=kl, on_progress=on_progress
    )
    key = tokenizer_key(saved.backbone_tokenizer)
    return Record(
        kind="evaluate",
        method=saved.config.method if saved.config else "neutral",
        **measured._asdict(),
        promise=saved.promise,
        measured_promise=saved.promise,
        provenance=provenance(device=saved.device.type, tokenizer_key=key),
        config=_settings(saved, windows),
    )


def _settings(saved: Saved, windows: Windows) -> dict[str, Any]:
    """Settings of the run that made the extension (else only backbone and folder), with the windows
    of this evaluation."""
    alone: dict[str, Any] = {"model": saved.backbone_name, "extension": str(saved.folder)}
    settings = saved.config.model_dump(mode="json") if saved.config else alone
    measured = {"context_tokens": windows.context_tokens, "stride_tokens": windows.stride_tokens}
    return settings | {"evaluation": settings.get("evaluation", {}) | measured}

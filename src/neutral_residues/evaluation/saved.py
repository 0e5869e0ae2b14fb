"""Loads saved extensions with their backbone, for evaluation and generation: those of any method,
and several extensions in one folder."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neutral_residues.backbone import (
    computes_in_bf16,
    frozen_precision,
    load_backbone,
    load_config,
    load_tokenizer,
    on_device,
    pick_device,
    quantised,
)
from neutral_residues.config.run import EvaluationSettings, RunConfig
from neutral_residues.data.tokenise import end_of_text_id
from neutral_residues.digest import check_digests
from neutral_residues.errors import UserError
from neutral_residues.evaluation.both import BothModels
from neutral_residues.methods.wider_tables import widen_tables
from neutral_residues.results.calibration import FILE as CALIBRATION
from neutral_residues.results.calibration import read_calibration
from neutral_residues.results.composition import Composition, read_composition
from neutral_residues.results.promise import Promise
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.tuner.gates import only_strongest
from neutral_residues.tuner.saved_adapter import CONFIG, adapter_config, load_adapters
from neutral_residues.vocabulary.vocabulary import FILE as VOCABULARY
from neutral_residues.vocabulary.vocabulary import Vocabulary, load_vocabulary


@dataclass(frozen=True)
class Saved(BothModels):
    """A saved extension and its backbone, both in eval mode."""

    config: RunConfig | None  # the run that made the extension; None without a run folder
    folder: Path  # the folder that was given
    weights: Path  # the folder with the weights of the extension
    backbone_name: str  # folder or Hub name
    revision: str | None  # branch, tag or commit of the backbone on the Hub
    composition: Composition | None  # how several extensions are used together
    device: torch.device  # device of both models

    @property
    def promise(self) -> Promise | None:
        """The promise of a calibrated extension; None if it is not calibrated."""
        is_calibrated = (self.weights / CALIBRATION).is_file()
        return read_calibration(self.weights).promise if is_calibrated else None

    @property
    def end_of_text_token(self) -> str | None:
        """The setting `data.end_of_text` of the run that made the extension, if there is one."""
        return self.config.data.end_of_text if self.config else None


def load_saved(folder: Path, *, dtype: torch.dtype | None = torch.float32) -> Saved:
    """Load an extension with its backbone, in eval mode on the accelerator if there is one.

    Args:
        folder: output folder of a run, or folder of an extension.
        dtype: dtype of the weights that were not trained; None: the dtype that the run used for its
            own evaluation, float32 for an extension without a run.

    Raises:
        UserError: if the folder is neither, the run is not finished, files are damaged, or the
            extension belongs to another backbone.
    """
    config, weights = _run_and_weights(folder)
    composition, device = read_composition(weights), pick_device()
    adapters = _adapters(weights, composition)
    if config is None and not adapters:
        allowed = "a folder with adapter_config.json or run.yaml"
        raise UserError(f"{folder} is not an extension", allowed=allowed, do="check the path")
    if not adapters and not (weights / "config.json").is_file():
        do = f"finish it: neutral extend {RunFolder(folder).config}"
        raise UserError(f"the run in {folder} has no extension yet", do=do)
    dtype = dtype or measured_dtype(config, device)
    if adapters:
        adapter = adapter_config(next(iter(adapters.values())))
        name, has_own_tokens = adapter.base_model_name_or_path, getattr(adapter, "new_tokens", 0)
    else:
        name, has_own_tokens = config.model, 0  # type: ignore[union-attr]
    revision = config.revision if config else adapter.revision
    tokenizer, own_tokenizer, vocabulary = _tokenizers(weights, name, revision)
    load = partial(measured_backbone, name, config, dtype, device, revision=revision)
    reference = None
    if adapters:
        backbone = load()
        if vocabulary and not has_own_tokens:
            widen_tables(backbone, vocabulary.size)
            reference = load()
        model: nn.Module = load_adapters(backbone, adapters)
        if composition:
            only_strongest(model, composition.over)
    else:
        model = on_device(load_backbone(str(weights), dtype=torch.float32), device)
        reference = load()
    return Saved(
        model=model.eval(),
        reference=reference,
        tokenizer=tokenizer,
        backbone_tokenizer=own_tokenizer,
        vocabulary=vocabulary,
        end_of_text=end_of_text_id(own_tokenizer, config.data.end_of_text if config else None),
        evaluation=config.evaluation if config else EvaluationSettings(),
        seed=config.seed if config else 0,
        config=config,
        folder=folder,
        weights=weights,
        backbone_name=name,
        revision=revision,
        composition=composition,
        device=device,
    )


def _run_and_weights(folder: Path) -> tuple[RunConfig | None, Path]:
    """Configuration of the run in `folder`, None for the folder of an extension; and the folder
    with the weights, whose digests are checked."""
    if not folder.is_dir():
        do = "give the output folder of a run, or an extension folder"
        raise UserError(f"no such folder: {folder}", do=do)
    run = RunFolder(folder)
    config = run.read_config()
    check_digests(run.weights)
    return config, run.weights


def _adapters(weights: Path, composition: Composition | None) -> dict[str, Path]:
    """Name of each adapter -> its folder; empty for a whole model."""
    if composition:
        return {name: weights / name for name in composition.names}
    return {"default": weights} if (weights / CONFIG).is_file() else {}


def _tokenizers(
    weights: Path, backbone_name: str, revision: str | None
) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase, Vocabulary | None]:
    """The tokenizers of the extended model and of its backbone, and the new tokens, if there are
    any."""
    has_tokenizer = (weights / "tokenizer_config.json").is_file()
    load_own = partial(load_tokenizer, backbone_name, revision=revision)
    tokenizer = load_tokenizer(str(weights)) if has_tokenizer else load_own()
    if not (weights / VOCABULARY).is_file():
        return tokenizer, tokenizer, None
    own_tokenizer = load_own()
    own_tokenizer.chat_template = tokenizer.chat_template  # the run may have set another one
    return tokenizer, own_tokenizer, load_vocabulary(weights, own_tokenizer)


def measured_dtype(config: RunConfig | None, device: torch.device) -> torch.dtype:
    """The dtype of frozen weights in the evaluation of a run; float32 without a run."""
    if config is None:
        return torch.float32
    width = load_config(config.model, **config.hub_options).get_text_config().hidden_size
    bf16 = computes_in_bf16(config.training, device, hidden_size=width)
    return frozen_precision(config.training, bf16=bf16).dtype


def measured_backbone(
    name: str,
    config: RunConfig | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    revision: str | None,
) -> PreTrainedModel:
    """Load the backbone for an evaluation, in `dtype`, or quantised if it was quantised in the
    training: extended model and backbone must have the same frozen weights."""
    options: dict[str, Any] = {"revision": revision, "dtype": dtype}
    if config:
        options["trust_remote_code"] = config.trust_remote_code
        options["quantised"] = quantised(config.training)
    model = load_backbone(name, **options)
    return on_device(model, device).eval()

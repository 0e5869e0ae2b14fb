"""Saved extensions that a run uses: one to continue training (`start_from` in the run file), and
others that are active while a new one trains (`beside`)."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from neutral_residues.config.run import RunConfig, VocabularySettings
from neutral_residues.digest import check_digests
from neutral_residues.errors import UserError
from neutral_residues.methods.saved_extension import Extension
from neutral_residues.methods.table import Method
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.tuner.model import check_adapter_name
from neutral_residues.tuner.saved_adapter import CONFIG, adapter_config, comparable
from neutral_residues.vocabulary.vocabulary import FILE, Vocabulary, VocabularyFile, load_vocabulary


@dataclass(frozen=True)
class Start:
    """The saved extension that a run continues to train."""

    given: Path  # as in the run file
    weights: Path  # the folder with the adapter's weights

    @classmethod
    def of(cls, config: RunConfig) -> Self | None:
        """The extension of `start_from`; None if the run trains a new one. Raises a UserError for
        a folder that is not a complete, undamaged extension of this backbone."""
        given = config.start_from
        if given is None:
            return None
        weights = RunFolder(given).weights
        check_digests(weights)
        if not (weights / CONFIG).is_file():
            allowed = "an extension folder, or the output folder of a finished run"
            do = "finish that run, or check the path"
            if (weights / "config.json").is_file():
                do = f"it holds a whole model: set model to {weights}"
            raise UserError("start_from", got=str(given), allowed=allowed, do=do)
        start = cls(given, weights)
        _check_model("start_from", given, config, start._settings)
        start._check_vocabulary(config.vocabulary)
        return start

    def _check_vocabulary(self, wanted: VocabularySettings) -> None:
        """Raise a UserError if the extension's new tokens differ from those of the run file."""
        file = self.weights / FILE
        there = {"size": 0, "keep": wanted.keep}
        if file.is_file():
            found = VocabularyFile.read(file)
            there = {"size": len(found.new_tokens.tokens), "keep": found.keep}
        for name, value in there.items():
            if (got := getattr(wanted, name)) != value:
                what = f"start_from: vocabulary.{name} is another in {self.given}"
                do = "give vocabulary as that extension was made"
                raise UserError(what, got=got, allowed=str(value), do=do)

    @cached_property
    def _settings(self) -> PeftConfig:
        return adapter_config(self.weights)

    def check(self, model: nn.Module, adapter: str) -> None:
        """Raise a UserError unless adapter `adapter` of `model` has the kind and size of this
        extension."""
        if not isinstance(model, PeftModel):
            what = "start_from goes on with an extension, and this method trains the model itself"
            raise UserError(what, do="remove it, or set model to a trained model")
        there, wanted = comparable(self._settings), comparable(model.peft_config[adapter])
        for name in {**there, **wanted}:
            if there.get(name) != wanted.get(name):
                what = f"start_from: {name} is another in {self.given}"
                got, allowed = str(wanted.get(name))[:80], str(there.get(name))[:80]
                do = "give method, budget and their settings as that extension was made"
                raise UserError(what, got=got, allowed=allowed, do=do)

    def load(self, model: nn.Module, adapter: str) -> None:
        """Load the weights of this extension into adapter `adapter` of `model`."""
        assert isinstance(model, PeftModel)
        model.load_adapter(str(self.weights), adapter, is_trainable=True)

    def vocabulary(self, base: PreTrainedTokenizerBase) -> Vocabulary | None:
        """The extension's new tokens; None if it has none."""
        return load_vocabulary(self.weights, base)


def extensions_beside(config: RunConfig, method: Method) -> list[Extension]:
    """The saved extensions of `beside`. Raises a UserError if the method cannot be combined with
    others, or one of them does not fit the run's model."""
    if config.beside and "residues" not in method.uses:
        what = f"beside has no effect on method {method.name}, which adds no residues"
        raise UserError(what, do="remove it, or choose method: neutral")
    for name in config.extension_names:
        check_adapter_name(name)
    found = [Extension.of(name, given) for name, given in config.beside.items()]
    for it in found:
        _check_model("beside", it.given, config, it.config)
    return found


def _check_model(key: str, given: Path, config: RunConfig, adapter: PeftConfig) -> None:
    if (made_from := str(adapter.base_model_name_or_path)) != config.model:
        what = f"{key}: {given} extends another model"
        raise UserError(what, got=config.model, allowed=made_from, do="set model to it")
    if adapter.revision != config.revision:
        what = f"{key}: {given} extends another revision of the model"
        do = "set revision to it"
        raise UserError(what, got=config.revision, allowed=str(adapter.revision or "null"), do=do)

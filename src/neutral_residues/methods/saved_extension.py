"""A saved extension of neutral residues that is used together with others in one model."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neutral_residues.config.run import RunConfig
from neutral_residues.digest import check_digests
from neutral_residues.errors import UserError
from neutral_residues.results.composition import NAME
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.tuner.config import NeutralResiduesConfig
from neutral_residues.tuner.model import check_adapter_name
from neutral_residues.tuner.saved_adapter import CONFIG, adapter_config, backbone_place


@dataclass(frozen=True)
class Extension:
    """A saved extension; create it with `Extension.of`."""

    name: str  # adapter name in the joint model
    given: Path  # folder that the user gave
    weights: Path  # folder with the adapter's weights
    config: NeutralResiduesConfig
    run: RunConfig | None  # run file that made it, None if not known

    @classmethod
    def of(cls, name: str, given: Path) -> "Extension":
        """Read the extension in the output folder of a run or in an extension folder. Raises a
        UserError if there is none, it is damaged, or it cannot be combined with others (new tokens,
        `modules_to_save`)."""
        check_adapter_name(name)
        if not re.fullmatch(NAME, name):
            raise UserError("name of an extension", got=name, allowed="letters, digits, _ and -")
        folder = RunFolder(given)
        run, weights = folder.read_config(), folder.weights
        check_digests(weights)
        if not (weights / CONFIG).is_file():
            allowed = "the output folder of a finished run, or an extension folder"
            raise UserError(f"{given} holds no extension", allowed=allowed, do="check the path")
        config = adapter_config(weights)
        if not isinstance(config, NeutralResiduesConfig):
            what, do = f"{given} is not an extension of neutral residues", "use PEFT for others"
            raise UserError(what, got=str(getattr(config.peft_type, "value", "?")), do=do)
        if config.new_tokens:
            what = f"{given} has tokens of its own, and several extensions would share ids"
            do = "load both with PEFT, and name each row's with adapter_names"
            raise UserError(what, got=f"new_tokens {config.new_tokens}", do=do)
        if config.modules_to_save:
            what = f"{given} changes modules of the backbone, which the others would use too"
            raise UserError(what, got=f"modules_to_save {', '.join(config.modules_to_save)}")
        return cls(name, given, weights, config, run)

    @property
    def backbone_name(self) -> str:
        """Folder or Hub name of its backbone."""
        return str(self.config.base_model_name_or_path)

    @property
    def backbone(self) -> dict[str, Any]:
        """Name, revision and checks of its backbone, which must be equal for all extensions of a
        model."""
        place, revision = backbone_place(self.config), self.config.revision
        return {"base_model_name_or_path": place, "revision": revision} | self.config.backbone

    @property
    def start(self) -> str | None:
        """Where training of its weights started: another extension, or a seed; None if not
        known."""
        if self.run is None:
            return None
        return str(self.run.start_from) if self.run.start_from else f"seed {self.run.seed}"

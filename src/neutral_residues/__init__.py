"""Add a language or a domain to a pretrained language model without losing what it already knows.

Importing this package registers the method with PEFT, so that PEFT can load saved extensions. The
public names below are imported, with torch, when they are first used.
"""

import importlib
from typing import TYPE_CHECKING

from neutral_residues.errors import UserError
from neutral_residues.registration import register_with_peft

if TYPE_CHECKING:
    from neutral_residues.calibration.monitor import GateMonitor
    from neutral_residues.results.calibration import read_calibration
    from neutral_residues.results.record import Record
    from neutral_residues.run import extend
    from neutral_residues.training.local_loss import local_loss
    from neutral_residues.training.mixin import NeutralResiduesTrainerMixin
    from neutral_residues.tuner.config import NeutralResiduesConfig
    from neutral_residues.tuner.layer import residue_layers
    from neutral_residues.tuner.model import NeutralResiduesModel
    from neutral_residues.tuner.routing import per_request

__version__ = "0.1.0"

_HOMES = {
    "NeutralResiduesConfig": "tuner.config",
    "NeutralResiduesModel": "tuner.model",
    "residue_layers": "tuner.layer",
    "per_request": "tuner.routing",
    "NeutralResiduesTrainerMixin": "training.mixin",
    "local_loss": "training.local_loss",
    "extend": "run",
    "GateMonitor": "calibration.monitor",
    "read_calibration": "results.calibration",
    "Record": "results.record",
}

__all__ = [  # noqa: RUF022 - in the order in which people meet them
    "NeutralResiduesConfig",
    "NeutralResiduesModel",
    "NeutralResiduesTrainerMixin",
    "local_loss",
    "residue_layers",
    "per_request",
    "extend",
    "GateMonitor",
    "read_calibration",
    "Record",
    "UserError",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


register_with_peft()

"""Add a language or a domain to a pretrained language model without losing what it already knows.

Importing this package registers the method with PEFT, so that saved extensions load. The names below load what they
need when they are first used.
"""

import importlib
from typing import TYPE_CHECKING

from neutral_residues.errors import UserError
from neutral_residues.registration import register_with_peft

if TYPE_CHECKING:
    from neutral_residues.adapters.attach import NeutralResiduesModel
    from neutral_residues.adapters.fused import fuse
    from neutral_residues.adapters.layer import residue_layers
    from neutral_residues.adapters.open_tokens import per_request
    from neutral_residues.adapters.settings import NeutralResiduesConfig
    from neutral_residues.mixin import NeutralResiduesTrainerMixin, local_loss
    from neutral_residues.record import Record
    from neutral_residues.run import extend

__version__ = "0.1.0"

_HOMES = {
    "NeutralResiduesConfig": "adapters.settings",
    "NeutralResiduesModel": "adapters.attach",
    "residue_layers": "adapters.layer",
    "fuse": "adapters.fused",
    "per_request": "adapters.open_tokens",
    "NeutralResiduesTrainerMixin": "mixin",
    "local_loss": "mixin",
    "extend": "run",
    "Record": "record",
}

__all__ = [  # noqa: RUF022 - in the order in which people meet them
    "NeutralResiduesConfig",
    "NeutralResiduesModel",
    "NeutralResiduesTrainerMixin",
    "local_loss",
    "residue_layers",
    "fuse",
    "per_request",
    "extend",
    "Record",
    "UserError",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


register_with_peft()

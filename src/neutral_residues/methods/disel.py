"""DISeL: LoRA with a gate for each rank and token, which starts nearly closed.

*DISeL: Dynamic Input-Sensitive LoRA*, arXiv 2605.19028; here on PEFT's LoRA, after the formulas:

    out(x) = W x + s * B ( g(x) * A x )         A: r x D;  B: outputs x r, zero;  s: LoRA's scaling
    g(x)   = sigmoid(W_g x + b_g)               W_g: r x D, nn.Linear's own init;  b_g: -3

Its gates learn faster than the rest (the authors: 5 times) and have no weight decay; the table of
methods fixes that at 0 for all. Only the language-modelling loss trains them. It cannot be merged:
the gate depends on the token. Saving, loading and switching off are PEFT's.
"""

import enum
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from neutral_residues.errors import UserError
from neutral_residues.registration import enter_in_peft


class DiselPeftType(str, enum.Enum):  # noqa: UP042 - PEFT looks types up by the hash of a str enum
    """PEFT's enum of types is closed; one of our own with name == value is found all the same."""

    DISEL = "DISEL"


@dataclass
class DiselConfig(LoraConfig):
    """PEFT's `LoraConfig`, with gates.

    Args:
        gate_bias: b_g at the start; sigmoid(-3) is 0.05.
    """

    gate_bias: float = -3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = DiselPeftType.DISEL
        self._register_custom_module({nn.Linear: GatedLoraLinear, Conv1D: GatedLoraLinear})


class GatedLoraLinear(LoraLinear):
    """PEFT's LoRA of one linear layer, with a gate for each adapter."""

    adapter_layer_names = (*LoraLayer.adapter_layer_names, "lora_gate")

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: int, config: DiselConfig, **kwargs: Any
    ) -> None:
        """PEFT's own, which moves the gate to the base layer's device too."""
        if not hasattr(self, "lora_gate"):
            self.lora_gate = nn.ModuleDict()
        self.lora_gate[adapter_name] = gate = nn.Linear(self.in_features, r)
        nn.init.constant_(gate.bias, config.gate_bias)
        super().update_layer(adapter_name, r, lora_alpha, config=config, **kwargs)

    def resolve_lora_variant(self, **_: Any) -> LoraVariant:
        return _Gated()


class _Gated(LoraVariant):
    """How PEFT's LoRA layer computes an adapter."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """Nothing is left to do."""

    @staticmethod
    def forward(
        module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        x = module.lora_dropout[active_adapter](x)
        gate = module.lora_gate[active_adapter](x).sigmoid()
        update = module.lora_B[active_adapter](gate * module.lora_A[active_adapter](x))
        return result + module.scaling[active_adapter] * update

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        raise _not_mergeable()

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        raise _not_mergeable()


def _not_mergeable() -> UserError:
    what = "DISeL cannot be merged: the gate depends on the token, no matrix equals it"
    return UserError(what, do="keep the adapter as it is, or unload() to get the backbone back")


def disel_gates(model: nn.Module) -> list[nn.Parameter]:
    """The weights of all gates."""
    return [parameter for name, parameter in model.named_parameters() if ".lora_gate." in name]


enter_in_peft(DiselPeftType.DISEL, config=DiselConfig, tuner=LoraModel, prefix=LoraModel.prefix)

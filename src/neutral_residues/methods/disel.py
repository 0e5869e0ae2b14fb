"""DISeL: LoRA with a sigmoid gate for each rank and token, which starts nearly closed.

*DISeL: Dynamic Input-Sensitive LoRA*, arXiv 2605.19028, implemented on PEFT's LoRA from the
paper's formulas:

    out(x) = W x + s * B ( g(x) * A x )         A: r x D;  B: outputs x r, zero;  s: LoRA's scaling
    g(x)   = sigmoid(W_g x + b_g)               W_g: r x D, nn.Linear's own init;  b_g: -3

Gates have a higher learning rate than the other weights (5 times in the paper) and no weight decay;
the table of methods sets it to 0 for all weights. They are trained by the language-modelling loss
only. DISeL cannot be merged, because the gate depends on the token. PEFT saves, loads and disables
it.
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
    """A type for PEFT's registry. PEFT's enum cannot be extended, but a string enum with name ==
    value is found in it."""

    DISEL = "DISEL"


@dataclass
class DiselConfig(LoraConfig):
    """PEFT's `LoraConfig` for LoRA with DISeL's gates.

    Args:
        gate_bias: initial b_g; sigmoid(-3) is 0.05.
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
        """PEFT's `update_layer`, with a gate, which it moves to the base layer's device too."""
        if not hasattr(self, "lora_gate"):
            self.lora_gate = nn.ModuleDict()
        self.lora_gate[adapter_name] = gate = nn.Linear(self.in_features, r)
        nn.init.constant_(gate.bias, config.gate_bias)
        super().update_layer(adapter_name, r, lora_alpha, config=config, **kwargs)

    def resolve_lora_variant(self, **_: Any) -> LoraVariant:
        return _Gated()


class _Gated(LoraVariant):
    """The forward pass of an adapter, in the form that PEFT's LoRA layer calls."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """`update_layer` has already added the gate."""

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

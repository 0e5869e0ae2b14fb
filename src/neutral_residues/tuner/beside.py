"""The base class of the tuner's layers: wraps a module of the backbone together with the modules
that extensions add next to it. It has what PEFT needs, but no forward pass."""

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from neutral_residues.errors import UserError
from neutral_residues.tuner.neutral import PREFIX
from neutral_residues.tuner.routing import RoutableModule


class ModuleBeside(nn.Module, BaseTunerLayer, RoutableModule):
    """A module of the backbone, with a module of each extension next to it."""

    adapter_layer_names = (PREFIX,)
    other_param_names = ("loaded",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.neutral_residues = nn.ModuleDict()
        self.loaded: dict[str, bool] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def add(self, name: str, module: nn.Module, *, loaded: bool, inference_mode: bool) -> None:
        """Add the module of an extension, on the device of the base layer.

        Args:
            loaded: False if a checkpoint will fill its weights: these are set to NaN until then, so
                that `check_loaded` finds missing tensors, which Transformers only reports.
            inference_mode: its weights are not trainable.
        """
        if not loaded:
            for parameter in module.parameters():
                nn.init.constant_(parameter, torch.nan)
        self.neutral_residues[name] = module
        self.loaded[name] = loaded
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def known_adapters(self) -> list[str]:
        """Names of all extensions with a module here, active or not."""
        return list(self.neutral_residues)

    def active_names(self) -> list[str]:
        """Names of the extensions that a forward pass would compute now."""
        if self.disable_adapters:
            return []
        names = self.active_adapters if self.routing is None else self.routing.adapters
        return [name for name in names if name in self.neutral_residues]

    def check_loaded(self, name: str) -> None:
        """Raise a UserError if a weight was not filled by the checkpoint; checked only once."""
        if self.loaded[name] or torch.compiler.is_compiling():
            return
        for key, parameter in self.adapter_parameters(name):
            # Offloaded weights are on the meta device here; the hook of their module loads them.
            # Detached, because gradient checkpointing expects the recomputation to save the same
            # tensors, and the second pass does not check again.
            if not parameter.is_meta and not parameter.detach().isfinite().all():
                what = "adapter tensors were never loaded, or hold NaN"
                fresh = "dataclasses.replace(config, num_new_weights=None)"
                do = f"save the extension again; for fresh weights, {fresh}"
                raise UserError(f"{what}: {key}, beside {type(self.base_layer).__name__}", do=do)
        self.loaded[name] = True

    def adapter_parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Name in this layer and parameter, of all weights of extension `name` here."""
        if name in self.neutral_residues:
            module = self.neutral_residues[name]
            yield from module.named_parameters(prefix=f"{PREFIX}.{name}")

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise not_mergeable()

    def unmerge(self) -> None:
        """Nothing is ever merged."""

    def _get_base_layer_device_and_dtype(
        self, base_layer: nn.Module
    ) -> tuple[torch.device | None, torch.dtype | None]:
        parameter = next(base_layer.parameters(), None)
        if parameter is None:
            return None, None
        return parameter.device, parameter.dtype if parameter.dtype.is_floating_point else None

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets parameters on the base layer: Transformers ties weights (lm-eval calls for it) by
        setting them on the module with the original name, which is this wrapper."""
        if isinstance(value, nn.Parameter) and name not in self._parameters:
            setattr(self.base_layer, name, value)
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the base layer, because code of the backbone may read them."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


def modules_beside(model: nn.Module) -> dict[str, ModuleBeside]:
    """Module name -> wrapper, for all modules of `model` that extensions have wrapped."""
    return {n: m for n, m in model.named_modules() if isinstance(m, ModuleBeside)}


def not_mergeable() -> UserError:
    return UserError(
        "neutral residues cannot be merged: the gate depends on the token, no matrix equals it",
        do="keep the adapter as it is, or unload() to get the backbone back",
    )

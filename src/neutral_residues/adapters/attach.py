"""Neutral residues as a PEFT tuner: config, layer and tuner, registered on import.

    from peft import get_peft_model
    from neutral_residues import NeutralResiduesConfig
    model = get_peft_model(model, NeutralResiduesConfig(budget=0.20))

PEFT's verbs all work (`save_pretrained`, `from_pretrained`, `disable_adapter`, `add_adapter`, `set_adapter`, `unload`,
`modules_to_save`), and Transformers' own adapter methods too. Two things differ, and both say so: a gated residue
cannot be merged, and a checkpoint that lacks a tensor or does not fit is an error. PEFT has no plugin entry point, so
`neutral_residues` must be imported before a saved extension is loaded.

No maths here: `neutral.py` holds it. No loss either: while a `Tap` is set on the layers, they report to it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from neutral_residues.adapters.neutral import (
    BlockGate,
    Residue,
    initialise,
    new_projections,
    num_weights,
    residue,
    width_for_budget,
)
from neutral_residues.adapters.places import (
    activation_module,
    backbone_activation,
    check_same_backbone,
    check_targets,
    count_backbone_weights,
    describe_backbone,
    find_blocks,
    text_config,
)
from neutral_residues.adapters.settings import PEFT_TYPE, PREFIX, NeutralResiduesConfig
from neutral_residues.errors import UserError
from neutral_residues.registration import enter_in_peft

GATE, UP, DOWN, BLOCK = (PREFIX + role for role in ("gate", "up", "down", "block"))


class Tap(Protocol):
    """Somebody who wants to see every residue while the model runs (the local loss, the evaluation)."""

    def see(self, layer: "NeutralResiduesLayer", residue: Residue) -> None: ...


class NeutralResiduesLayer(nn.Module, BaseTunerLayer):
    """A block of the backbone with residues beside it, one for each named adapter; active ones are summed."""

    adapter_layer_names = (GATE, UP, DOWN, BLOCK)
    other_param_names = ("width", "block_gate", "activations", "loaded")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict())
        self.width: dict[str, int] = {}
        self.block_gate: dict[str, BlockGate] = {}
        self.activations = nn.ModuleDict()
        self.loaded: dict[str, bool] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.tap: Tap | None = None

    def add(self, name: str, config: NeutralResiduesConfig, *, width_in: int, num_layers: int) -> None:
        """A new residue of that name on the base layer's device: fresh, or NaN where a checkpoint is about to fill it.

        Transformers' own loading only reports the tensors that a checkpoint lacks; `_check_loaded` finds the NaN.
        """
        assert config.width is not None
        assert config.activation is not None
        w_g, w_i, w_o, w = new_projections(
            width_in=width_in,
            width=config.width,
            gated=config.gated,
            gate_start=config.gate_start,
        )
        if config.from_checkpoint:
            _fill_with_nan(w_g, w_i, w_o, w)
        else:
            initialise(
                w_g=w_g,
                w_i=w_i,
                w_o=w_o,
                w=w,
                num_layers=num_layers,
                init=config.init,
                gate_start=config.gate_start,
            )
        getattr(self, GATE)[name], getattr(self, UP)[name], getattr(self, DOWN)[name] = w_g, w_i, w_o
        if w is not None:
            getattr(self, BLOCK)[name] = w
        self.width[name], self.block_gate[name] = config.width, config.block_gate
        self.loaded[name] = not config.from_checkpoint
        self.activations[name] = activation_module(config.activation)
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        # The base layer first: Mixtral's jitter writes into its input, which autograd forbids once we have read it.
        output = self.base_layer(hidden_states, *args, **kwargs)
        names = [] if self.disable_adapters else [n for n in self.active_adapters if n in self.width]
        for name in names:
            if not self.loaded[name] and not torch.compiler.is_compiling():
                self._check_loaded(name)
            output = self._with_residue(output, self.residue(hidden_states, name))
        return output

    def residue(self, hidden_states: Tensor, name: str) -> Residue:
        """What adapter `name` adds at each token of `hidden_states` (..., D)."""
        w_g = getattr(self, GATE)[name]
        if not torch.is_autocast_enabled(hidden_states.device.type):
            hidden_states = hidden_states.to(w_g.weight.dtype)
        blocks = getattr(self, BLOCK)
        return residue(
            hidden_states,
            w_g=w_g,
            w_i=getattr(self, UP)[name],
            w_o=getattr(self, DOWN)[name],
            w=blocks[name] if name in blocks else None,  # noqa: SIM401 - a ModuleDict has no get
            activation=self.activations[name],
            gate_kind=self.block_gate[name],
        )

    def _with_residue(self, output: Any, residue: Residue) -> Any:
        if self.tap is not None:
            self.tap.see(self, residue)
        hidden_states, *rest = output if isinstance(output, tuple) else (output,)
        extended = hidden_states + residue.delta.to(hidden_states.dtype).reshape(hidden_states.shape)
        return (extended, *rest) if isinstance(output, tuple) else extended

    def _check_loaded(self, name: str) -> None:
        """Once for each adapter that was made for a checkpoint: raise unless all its weights have come."""
        for key, parameter in self.adapter_parameters(name):
            # Weights that are offloaded to disk are on the meta device here; only their own module's hook fetches them.
            if not parameter.is_meta and not parameter.isfinite().all():
                raise UserError(
                    f"adapter tensors were never loaded, or hold NaN: {key} beside {type(self.base_layer).__name__}",
                    do="save the extension again; for fresh weights, dataclasses.replace(config, num_new_weights=None)",
                )
        self.loaded[name] = True

    def adapter_parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights of adapter `name`, each with its name inside this layer."""
        for role in self.adapter_layer_names:
            if name in (adapters := getattr(self, role)):
                for key, parameter in adapters[name].named_parameters():
                    yield f"{role}.{name}.{key}", parameter

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise _not_mergeable()

    def unmerge(self) -> None:
        """Nothing is ever merged."""

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
        parameter = next(base_layer.parameters(), None)
        if parameter is None:
            return None, None
        return parameter.device, parameter.dtype if parameter.dtype.is_floating_point else None

    def __getattr__(self, name: str) -> Any:
        """Host models read attributes of their FFN; those that are not ours are the base layer's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


class NeutralResiduesModel(BaseTuner):
    """PEFT's tuner for `NeutralResiduesConfig`. Users meet it through `get_peft_model`."""

    prefix = PREFIX
    tuner_layer_cls = NeutralResiduesLayer
    target_module_mapping: dict[str, str] = {}  # noqa: RUF012 - PEFT's attribute

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        # PEFT and Transformers find adapter weights by prefix and name; a ModuleDict reserves its own attributes.
        taken = hasattr(nn.ModuleDict(), adapter_name)
        if len(adapter_name) < 2 or adapter_name in PREFIX or "." in adapter_name or taken:
            raise UserError(
                "adapter name",
                got=adapter_name,
                allowed=f"two characters or more, no dot, not a part of {PREFIX!r}, not a word of PyTorch ('train')",
            )

    def _prepare_adapter_config(
        self, peft_config: NeutralResiduesConfig, model_config: dict[str, Any]
    ) -> NeutralResiduesConfig:
        backbone = describe_backbone(self.model)
        check_same_backbone(peft_config.backbone, backbone)
        if peft_config.target_modules is None:
            peft_config.target_modules = peft_config.choose_layers(list(find_blocks(self.model, peft_config.placement)))
        if peft_config.activation is None:
            peft_config.activation = backbone_activation(text_config(self.model).to_dict())
        targets = {
            name: module
            for name, module in self.model.named_modules()
            if name and not _inside_tuner_layer(name) and self._check_target_module_exists(peft_config, name)
        }
        check_targets(targets, width_in=backbone["hidden_size"])
        self._size(peft_config, width_in=backbone["hidden_size"], num_adapters=len(targets))
        peft_config.backbone = backbone
        return peft_config

    def _size(self, config: NeutralResiduesConfig, *, width_in: int, num_adapters: int) -> None:
        config.num_backbone_weights = count_backbone_weights(self.model, added=PREFIX)
        if config.width is None:
            config.width = width_for_budget(
                config.budget,
                num_backbone_weights=config.num_backbone_weights,
                width_in=width_in,
                num_adapters=num_adapters,
                gated=config.gated,
                gate_start=config.gate_start,
            )
        config.num_new_weights = num_adapters * num_weights(
            width_in=width_in,
            width=config.width,
            gated=config.gated,
            gate_start=config.gate_start,
        )
        self._new_layer = {"width_in": width_in, "num_layers": num_adapters}

    def _create_and_replace(
        self,
        peft_config: NeutralResiduesConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, NeutralResiduesLayer) else NeutralResiduesLayer(target)
        layer.add(adapter_name, peft_config, **self._new_layer)
        if adapter_name not in self.active_adapters:
            layer.set_requires_grad(adapter_name, False)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        raise _not_mergeable()

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        check_adapter_tensors(model, adapter_name, remapped)
        return remapped


def check_adapter_tensors(model: nn.Module, adapter_name: str, tensors: dict[str, Tensor]) -> None:
    """Raise unless `tensors` hold exactly the weights of adapter `adapter_name` of `model`, each in its shape.

    Raises:
        UserError: naming the first missing, extra or misshapen tensor and how many there are.
    """
    expected = {
        f"{name}.{key}": parameter.shape
        for name, layer in residue_layers(model).items()
        for key, parameter in layer.adapter_parameters(adapter_name)
    }
    given = {key: tensor.shape for key, tensor in tensors.items() if f".{PREFIX}" in key}
    given = {k if k in expected else k.removeprefix("base_model.model."): shape for k, shape in given.items()}
    do = "save the extension again, or load the backbone that it was made for"
    for problem, keys in (("missing", expected.keys() - given.keys()), ("extra", given.keys() - expected.keys())):
        if keys:
            raise UserError(f"adapter checkpoint has {len(keys)} {problem} tensors, first {min(keys)}", do=do)
    for key, shape in expected.items():
        if given[key] != shape:
            raise UserError(
                f"adapter checkpoint: shape of {key}", got=str(tuple(given[key])), allowed=str(tuple(shape)), do=do
            )


def residue_layers(model: nn.Module) -> dict[str, NeutralResiduesLayer]:
    """The extended feed-forward blocks of `model` by module name, in layer order; empty if there are none."""
    return {name: module for name, module in model.named_modules() if isinstance(module, NeutralResiduesLayer)}


def gate_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The weights of all block gates that train."""
    layers = residue_layers(model).values()
    return [p for layer in layers for p in getattr(layer, BLOCK).parameters() if p.requires_grad]


@contextmanager
def tapped(layers: dict[str, NeutralResiduesLayer], tap: Tap) -> Iterator[None]:
    """Within the block, `tap` sees every residue that these layers compute.

    Raises:
        UserError: if something else is watching already (two local losses at once).
    """
    if any(layer.tap is not None for layer in layers.values()):
        raise UserError("the residues of this model are being watched already", do="leave the other block first")
    for layer in layers.values():
        layer.tap = tap
    try:
        yield
    finally:
        for layer in layers.values():
            layer.tap = None


def _inside_tuner_layer(name: str) -> bool:
    return ".base_layer" in name or f".{PREFIX}" in name


@torch.no_grad()
def _fill_with_nan(*linears: nn.Linear | None) -> None:
    for linear in linears:
        for parameter in () if linear is None else linear.parameters():
            parameter.fill_(torch.nan)


def _not_mergeable() -> UserError:
    return UserError(
        "neutral residues cannot be merged: the block gate depends on the token, so no single weight matrix equals it",
        do="keep the adapter beside the model, or unload() to get the backbone back",
    )


enter_in_peft(PEFT_TYPE, config=NeutralResiduesConfig, tuner=NeutralResiduesModel, prefix=PREFIX)

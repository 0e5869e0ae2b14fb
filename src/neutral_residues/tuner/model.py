"""Neutral residues as a PEFT tuner: config, layer and tuner, registered on import.

    from peft import get_peft_model
    from neutral_residues import NeutralResiduesConfig
    model = get_peft_model(model, NeutralResiduesConfig(budget=0.20))

All of PEFT's methods work (`save_pretrained`, `from_pretrained`, `disable_adapter`, `add_adapter`,
`set_adapter`, `unload`, `modules_to_save`), and so do Transformers' own adapter methods. Two things
differ, both with an error message: a gated residue cannot be merged, and a checkpoint must have all
tensors in the right shapes. PEFT has no plugin entry point, so `neutral_residues` must be imported
before a saved extension is loaded.

The forward pass is in `layer.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, _ExcludedModule
from torch import Tensor, nn

from neutral_residues.errors import UserError
from neutral_residues.registration import enter_in_peft
from neutral_residues.tuner.beside import ModuleBeside, modules_beside, not_mergeable
from neutral_residues.tuner.blocks import (
    activation_module,
    backbone_activation,
    check_same_backbone,
    check_targets,
    count_backbone_weights,
    describe_backbone,
    find_blocks,
    find_embeddings,
    find_head,
    text_config,
    undo_resizing,
)
from neutral_residues.tuner.config import PEFT_TYPE, NeutralResiduesConfig
from neutral_residues.tuner.embeddings import BesideEmbeddings, EmbeddingsLayer, embeddings_layer
from neutral_residues.tuner.gates import apply_thresholds
from neutral_residues.tuner.head import (
    LARGEST_SHARE,
    GatedHead,
    check_rank,
    num_head_weights,
    usual_rank,
)
from neutral_residues.tuner.layer import AnyAdapter, NeutralResiduesLayer, residue_layers
from neutral_residues.tuner.logit_width import forget_width, tell_width
from neutral_residues.tuner.neutral import (
    PREFIX,
    GateChoice,
    GatedAdapter,
    num_weights,
    width_for_budget,
)
from neutral_residues.tuner.new_tokens import NewTokens, num_token_weights, usual_token_rank
from neutral_residues.tuner.reader import TokenReader, num_reader_weights
from neutral_residues.tuner.routing import check_length, per_request
from neutral_residues.tuner.thresholds import Thresholds


class NeutralResiduesModel(BaseTuner):
    """PEFT's tuner for `NeutralResiduesConfig`; `get_peft_model` creates it."""

    prefix = PREFIX
    tuner_layer_cls = ModuleBeside
    target_module_mapping: dict[str, str] = {}  # noqa: RUF012 - PEFT's attribute

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        check_adapter_name(adapter_name)

    def _prepare_adapter_config(
        self, peft_config: NeutralResiduesConfig, model_config: dict[str, Any]
    ) -> NeutralResiduesConfig:
        if peft_config.new_tokens:
            undo_resizing(self.model, peft_config.backbone, peft_config.new_tokens)
        backbone = describe_backbone(self.model)
        check_same_backbone(peft_config.backbone, backbone)
        peft_config.head = peft_config.embeddings = ""
        if peft_config.target_modules is None:
            blocks = find_blocks(self.model, peft_config.placement)
            peft_config.target_modules = peft_config.choose_layers(list(blocks))
        if peft_config.activation is None:
            peft_config.activation = backbone_activation(text_config(self.model).to_dict())
        targets = {
            name: module
            for name, module in self.model.named_modules()
            if name
            and f".{PREFIX}" not in name
            and ".base_layer" not in name
            and self._check_target_module_exists(peft_config, name)
        }
        check_targets(targets, width_in=backbone["hidden_size"])
        self._size(peft_config, width_in=backbone["hidden_size"], num_adapters=len(targets))
        peft_config.backbone = backbone
        return peft_config

    def _size(self, config: NeutralResiduesConfig, *, width_in: int, num_adapters: int) -> None:
        """Choose the head's rank, the rank of new tokens and the adapters' width, and count the new
        weights; all of them are set in `config`."""
        gate = _gate_choice(config)
        config.num_backbone_weights = count_backbone_weights(self.model)
        wanted = config.budget * config.num_backbone_weights
        if config.width is not None:
            in_layers = num_adapters * num_weights(width_in, config.width, gate)
            wanted = in_layers / (1 - LARGEST_SHARE)
        others = self._size_head(config, gate, wanted) + self._size_embeddings(config, wanted)
        if config.width is None:
            config.width = width_for_budget(
                config.budget,
                num_backbone_weights=config.num_backbone_weights,
                width_in=width_in,
                num_adapters=num_adapters,
                gate=gate,
                num_other_weights=others,
            )
        in_layers = num_adapters * num_weights(width_in, config.width, gate)
        config.num_new_weights = in_layers + others
        self._num_layers = num_adapters

    def _size_head(self, config: NeutralResiduesConfig, gate: GateChoice, wanted: float) -> int:
        """Choose the rank of the residue on the output head and return its number of weights, 0
        without one; `wanted` is the number of all new weights."""
        head = self._find_head(config)
        if head is None:
            config.head_rank = 0
            return 0
        sizes = head.in_features, head.out_features
        if config.head_rank is None:
            config.head_rank = usual_rank(wanted, *sizes)
        elif config.width is None:
            check_rank(config.head_rank, wanted, *sizes)
        if config.head_rank == 0:
            config.head = ""
        return num_head_weights(*sizes, config.head_rank, gate)

    def _size_embeddings(self, config: NeutralResiduesConfig, wanted: float) -> int:
        """Number of weights of the gate that reads tokens and of new tokens, 0 without both. Sets
        the name of the embeddings, and the rank of new tokens; a UserError if the embeddings are
        not found."""
        if not config.has_embeddings:
            return 0
        found = find_embeddings(self.model)
        if found is None:
            is_for = "new_tokens need" if config.new_tokens else "gate_reads tokens needs"
            got = str(config.new_tokens or config.gate_reads)
            what = f"{is_for} embeddings and past_key_values in one decoder, which"
            what = f"{what} {type(self.model).__name__} has not"
            do = "set new_tokens to 0" if config.new_tokens else "set gate_reads to layer"
            raise UserError(what, got=got, do=do)
        config.embeddings = found[0]
        width = _embedding_width(self.model.get_submodule(found[0]))
        of_reader = num_reader_weights(width) if config.has_reader else 0
        return of_reader + self._size_new_tokens(config, wanted, width)

    def _size_new_tokens(
        self, config: NeutralResiduesConfig, wanted: float, embedding_width: int
    ) -> int:
        if not config.new_tokens:
            return 0
        widths = {"embedding_width": embedding_width, "hidden_width": self._head_width()}
        if config.new_tokens_rank is None:
            config.new_tokens_rank = usual_token_rank(wanted, config.new_tokens, **widths)
        return num_token_weights(config.new_tokens, config.new_tokens_rank, **widths)

    def _head_width(self) -> int:
        """Input width of the output head; a UserError if there is none (new tokens need it)."""
        head = find_head(self.model)
        if head is None:
            what = f"new_tokens: no output head found in {type(self.model).__name__}"
            raise UserError(what, do="set new_tokens to 0")
        return head[1].in_features

    def _beside_embeddings(
        self, config: NeutralResiduesConfig, embeddings: nn.Module
    ) -> BesideEmbeddings:
        width, reader, tokens = _embedding_width(embeddings), None, None
        if config.has_reader:
            reader = TokenReader(width, config.block_gate)
        if config.new_tokens:
            assert config.new_tokens_rank is not None
            widths = {"embedding_width": width, "hidden_width": self._head_width()}
            tokens = NewTokens(config.new_tokens, config.new_tokens_rank, **widths)
        return BesideEmbeddings(reader, tokens)

    def _find_head(self, config: NeutralResiduesConfig) -> nn.Linear | None:
        """The output head if it gets a residue, else None; sets its name in `config`. A UserError
        if `head_rank` asks for a residue that is not possible."""
        found = find_head(self.model) if config.head_rank != 0 else None
        if found is None:
            problem = f"no output head found in {type(self.model).__name__}"
        elif found[0].rpartition(".")[2] in (config.modules_to_save or ()):
            problem = "modules_to_save trains the output head itself"
        elif isinstance(self._check_target_module_exists(config, found[0]), _ExcludedModule):
            problem = "exclude_modules leaves out the output head"
        else:
            config.head = found[0]
            return found[1]
        if config.head_rank:
            raise UserError(f"head_rank: {problem}", got=config.head_rank, do="set head_rank to 0")
        return None

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> Any:
        """Whether module `key` gets an adapter. Head and embeddings are not listed in
        `target_modules`, because PEFT would then save their own weights with the adapter."""
        assert isinstance(peft_config, NeutralResiduesConfig)
        is_ours = key != "" and key in (peft_config.head, peft_config.embeddings)
        return is_ours or BaseTuner._check_target_module_exists(peft_config, key)

    def _get_tied_target_modules(self, model: nn.Module) -> list[str]:
        """None, to avoid PEFT's warning about merging: residues do not change tied weights."""
        return []

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
        is_embeddings = current_key == peft_config.embeddings
        place = target if isinstance(target, ModuleBeside) else None
        if place is None:
            place = EmbeddingsLayer(target) if is_embeddings else NeutralResiduesLayer(target)
            self._replace_module(parent, target_name, place, target)
        if is_embeddings:
            module: Any = self._beside_embeddings(peft_config, place.base_layer)
        else:
            is_head = current_key == peft_config.head
            module = _new_adapter(peft_config, place.base_layer, is_head=is_head)
        module.reset_parameters(num_layers=self._num_layers, init=peft_config.init)
        loaded, inference = not peft_config.from_checkpoint, peft_config.inference_mode
        place.add(adapter_name, module, loaded=loaded, inference_mode=inference)
        if adapter_name not in self.active_adapters:
            place.set_requires_grad(adapter_name, False)

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """PEFT's `inject_adapter`; then sets thresholds, registers the hooks of the embeddings, and
        connects every layer with the embeddings, which hold gates that read tokens."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        apply_thresholds(model, adapter_name, self.peft_config[adapter_name].thresholds)
        for name, place in modules_beside(model).items():
            if isinstance(place, EmbeddingsLayer):
                decoder = model.get_submodule(name.rpartition(".")[0])
                place.watch(model, decoder, _output_head(model))
                if place.has_tokens:
                    tell_width(model)
                for layer in residue_layers(model).values():
                    layer.connect(place)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        if (layer := embeddings_layer(self.model)) is not None:
            layer.unwatch()
            forget_width(self.model)
        return super()._unload_and_optionally_merge(*args, **kwargs)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        raise not_mergeable()

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *args: Any, adapter_names: Any = None, **kwargs: Any
    ) -> Iterator[None]:
        """Context of PEFT around every forward pass and generation; with `adapter_names` each row
        of the batch uses its own adapter."""
        if adapter_names is None:
            yield
            return
        names = ("input_ids", "inputs_embeds", "inputs")
        inputs = args[0] if args else next(kwargs[name] for name in names if name in kwargs)
        check_length(adapter_names, num_rows=len(inputs))
        with per_request(self.model, adapter_names, rows_per_name=None):
            yield

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT expects the adapter's name second to last in a key; here, it is followed by the path
        # in a module.
        return key.replace(f".{PREFIX}.{adapter_name}.", f".{PREFIX}.")

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        remap = super()._remap_adapter_state_dict_for_load
        remapped: dict[str, Tensor] = remap(model, config, adapter_name, state_dict)
        check_adapter_tensors(model, adapter_name, remapped)
        assert isinstance(config, NeutralResiduesConfig)
        if config.thresholds is not None:
            own = [tensor for key, tensor in remapped.items() if f".{PREFIX}." in key]
            Thresholds.of(config.thresholds).check_weights(own)
        return remapped


def _gate_choice(config: NeutralResiduesConfig) -> GateChoice:
    return GateChoice(config.block_gate, config.gate_start, config.gate_reads)


def _new_adapter(config: NeutralResiduesConfig, block: nn.Module, *, is_head: bool) -> AnyAdapter:
    """A new adapter parallel to `block`, a block of the backbone or its output head."""
    gate = _gate_choice(config)
    if is_head:
        assert isinstance(block, nn.Linear)
        assert config.head_rank is not None
        return GatedHead(block.in_features, block.out_features, config.head_rank, gate)
    assert config.width is not None
    assert config.activation is not None
    activation = activation_module(config.activation)
    return GatedAdapter(config.backbone["hidden_size"], config.width, gate, activation=activation)


def _output_head(model: Any) -> nn.Module | None:
    """The output head of `model`, in its wrapper if it has a residue."""
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def _embedding_width(embeddings: nn.Module) -> int:
    weight = embeddings.weight
    assert isinstance(weight, Tensor)
    return weight.shape[1]


def check_adapter_name(name: str) -> None:
    """Raise a UserError for a name that an adapter cannot have: PEFT and Transformers find adapter
    weights by prefix and name, and a ModuleDict refuses the names of its attributes."""
    parts = {"gate", "up", "down", "block_gate", "activation", "weight", "bias"}
    parts |= {"reader", "rows", "code", "window", "tokens", "codes", "into", "out_of"}
    taken = name in parts or hasattr(nn.ModuleDict(), name)
    if len(name) < 2 or name in PREFIX or "." in name or taken:
        allowed = f"""two characters or more, no dot, not a part of {PREFIX!r} or of an adapter
            ('gate'), not a word of PyTorch ('train')"""
        raise UserError("adapter name", got=name, allowed=allowed)


def check_adapter_tensors(model: nn.Module, adapter_name: str, tensors: dict[str, Tensor]) -> None:
    """Raise a UserError unless `tensors` has exactly the tensors of adapter `adapter_name` in their
    shapes; it names the first that is missing, extra or of another shape."""
    expected = {
        f"{name}.{key}": tuple(parameter.shape)
        for name, place in modules_beside(model).items()
        for key, parameter in place.adapter_parameters(adapter_name)
    }
    given = {key: tuple(tensor.shape) for key, tensor in tensors.items() if f".{PREFIX}." in key}
    do = "save the extension again, or load the backbone that it was made for"
    missing, extra = expected.keys() - given.keys(), given.keys() - expected.keys()
    for problem, keys in (("missing", missing), ("extra", extra)):
        if keys:
            what = f"adapter checkpoint has {len(keys)} {problem} tensors, first {min(keys)}"
            raise UserError(what, do=do)
    for key, shape in expected.items():
        if given[key] != shape:
            what = f"adapter checkpoint: shape of {key}"
            raise UserError(what, got=str(given[key]), allowed=str(shape), do=do)


enter_in_peft(PEFT_TYPE, config=NeutralResiduesConfig, tuner=NeutralResiduesModel, prefix=PREFIX)

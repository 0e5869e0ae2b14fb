"""Low-rank methods of PEFT: LoRA, rsLoRA, DoRA and OSF.

This file decides only what PEFT leaves open: which linear layers are extended (those inside the
decoder's layers, not embeddings and head), and which rank gives a certain share of new weights.
"""

import re
import warnings
from typing import Any

from peft import LoraConfig, OSFConfig, PeftConfig, get_peft_model
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from neutral_residues.errors import UserError, first_line
from neutral_residues.methods.budget import units_for_budget
from neutral_residues.methods.disel import DiselConfig
from neutral_residues.methods.wider_tables import new_rows, num_row_weights
from neutral_residues.tuner.blocks import find_blocks, find_layers

KNOWN_EMBEDDINGS = tuple(EMBEDDING_LAYER_NAMES)
"""Names by which PEFT recognises embeddings that are tied to the head."""


def attach_lora(
    model: PreTrainedModel,
    *,
    budget: float,
    only_ffn: bool,
    alpha_over_rank: float,
    alpha: float | None = None,
    embeddings: bool = False,
    gated: bool = False,
    num_new_tokens: int = 0,
    **kind: bool,
) -> nn.Module:
    """Attach LoRA to the linear layers of every decoder layer, or of its FFN only.

    Args:
        budget: new weights as a share of the backbone's; determines the rank.
        only_ffn: leave out the linear layers outside FFNs.
        alpha_over_rank: LoRA's alpha as a multiple of the rank.
        alpha: LoRA's alpha itself, which takes precedence.
        embeddings: also train embeddings and head in full, not counted in the budget. PEFT trains
            copies of them (one if they are tied), which replace the backbone's when merged.
        gated: with the gates of DISeL.
        num_new_tokens: number of last rows of embeddings and head that also train, not counted in
            the budget.
        kind: PEFT's `use_rslora` or `use_dora`.

    Raises:
        UserError: if no rank comes within 2 % of the budget (names the nearest), or PEFT cannot
            attach the method to this model.
    """
    if num_new_tokens:
        # PEFT saves the whole wider tables in addition to the trained rows, and warns about it at
        # each checkpoint.
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
    shapes = linear_modules(model, only_ffn=only_ffn)
    per_rank = sum(sum(shape) for shape in shapes.values())
    if gated:
        per_rank += sum(inputs + 1 for inputs, _ in shapes.values())
    magnitudes = sum(out for _, out in shapes.values()) if kind.get("use_dora") else 0
    rank = units_for_budget(
        model,
        budget,
        unit="rank",
        weights_per_unit=per_rank,
        fixed_weights=magnitudes,
        num_other_weights=num_row_weights(model, num_new_tokens),
    )
    config = (DiselConfig if gated else LoraConfig)(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha_over_rank * rank if alpha is None else alpha,
        target_modules=list(shapes),
        fan_in_fan_out=isinstance(model.get_submodule(next(iter(shapes))), Conv1D),
        **(_in_full(model) if embeddings else _new_rows(model, num_new_tokens)),
        **kind,
    )
    return _attached(model, config)


def _in_full(model: PreTrainedModel) -> dict[str, Any]:
    """Settings of PEFT that train embeddings and head in full, and keep them tied if they are."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module in (embeddings, head)]
    tied = head is not None and embeddings.weight is head.weight
    if head is None or (tied and not any(n.endswith(KNOWN_EMBEDDINGS) for n in names)):
        got, do = f"{', '.join(names)}", "choose lora"
        raise UserError("PEFT does not know embeddings and head of this model", got=got, do=do)
    return {"modules_to_save": names, "ensure_weight_tying": tied}


def _new_rows(model: PreTrainedModel, num_tokens: int) -> dict[str, Any]:
    return {"trainable_token_indices": new_rows(model, num_tokens)} if num_tokens else {}


def embedding_weights(model: nn.Module) -> list[nn.Parameter]:
    """Weights of the trained copies of embeddings and head."""
    return [p for name, p in model.named_parameters() if ".modules_to_save." in name]


def attach_osf(model: PreTrainedModel, *, budget: float) -> nn.Module:
    """Attach OSF: the smallest singular directions of every linear layer train, and are kept
    orthogonal to the large ones.

    Args:
        budget: weights of the trained directions as a share of the backbone's (PEFT's
            `effective_rank` is the number of directions that do not train).

    Raises:
        UserError: as `attach_lora`, and if a layer is not `nn.Linear` or all of its directions
            would train.
    """
    # A layer with a single output, such as a gate, has a single direction.
    shapes = {n: s for n, s in linear_modules(model, only_ffn=False).items() if min(s) > 1}
    other = [name for name in shapes if not isinstance(model.get_submodule(name), nn.Linear)]
    if other:
        what, got = "osf works on nn.Linear layers only", f"{other[0]} is another kind"
        raise UserError(what, got=got, do="choose lora")
    # In each layer, a direction has two vectors, as in LoRA, and a singular value.
    per_direction = sum(sum(shape) + 1 for shape in shapes.values())
    rank = units_for_budget(model, budget, unit="rank", weights_per_unit=per_direction)
    smallest = min(min(shape) for shape in shapes.values())
    if rank >= smallest:
        allowed = f"up to {smallest - 1} directions per layer"
        raise UserError("budget leaves OSF no direction to protect", got=budget, allowed=allowed)
    preserved = {f"^{re.escape(name)}$": min(shape) - rank for name, shape in shapes.items()}
    config = OSFConfig(task_type="CAUSAL_LM", target_modules=list(shapes), rank_pattern=preserved)
    return _attached(model, config)


def _attached(model: PreTrainedModel, config: PeftConfig) -> nn.Module:
    try:
        return get_peft_model(model, config)
    except ValueError as error:  # PEFT refuses some modules of some architectures
        what, do = "PEFT cannot attach this method", "choose another method"
        raise UserError(what, got=first_line(error), do=do) from error


def linear_modules(model: nn.Module, *, only_ffn: bool) -> dict[str, tuple[int, int]]:
    """Full name -> (input size, output size) of the linear layers inside the decoder's layers; a
    UserError if there are none."""
    scope = find_blocks(model, "ffn") if only_ffn else find_layers(model)
    inside = tuple(f"{name}." for name in scope)
    shapes = {
        name: shape
        for name, module in model.named_modules()
        if name.startswith(inside) and (shape := _shape(module))
    }
    if not shapes:
        what = f"no linear layers found in {type(model).__name__}"
        raise UserError(what, do="choose the method neutral or adapter")
    return shapes


def _shape(module: Any) -> tuple[int, int] | None:
    # A router that is a subclass of Linear returns several tensors, which PEFT does not expect.
    if isinstance(module, nn.Linear) and "Router" not in type(module).__name__:
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):  # GPT-2's linear layer
        return int(module.nx), int(module.nf)
    return None

"""The formats `qwen2_moe` and `qwen3_next`: an adapter with a sigmoid gate as the gated shared
expert of a mixture of experts that Transformers and other runtimes have ("stock").

    stock layer:  sum over chosen experts of  p_e(x) E_e(x)  +  sigmoid(s . x) S(x)
    ours:         FFN(x)                                    +  sigmoid(w . x) A(x)

With a single routed expert the router's softmax is over one number, so p_1 = 1 on every token. The
backbone's FFN becomes that expert, the adapter becomes S and its gate s; as s has no bias, the gate
must not have one either. The stock model must also have the backbone's attention, norms and
embeddings:

    backbone                       stock model   weights that are not simply copied
    Llama, Mistral, Ministral      qwen2_moe     nothing
    Qwen2                          qwen2_moe     nothing (biases of q, k and v)
    Gemma (the first)              qwen2_moe     norms 1 + w; embeddings times sqrt(D)
    Qwen3                          qwen3_next    norms w - 1; zeros in q hold the output gate of its
                                                 attention at 1/2, and o is doubled (exact: powers
                                                 of two)

Other runtimes that know the architecture (LAB.md, "llama.cpp") need more than Transformers does:
every layer must be a mixture, and the head a matrix of its own. So a layer without an adapter gets
a shared expert of zeros, whose gate has nonzero weights (llama.cpp computes 0/0 for the sigmoid of
exactly 0).

Other backbones do not fit a stock model with a gated shared expert. Gemma 2 and 3 and GLM 4 have a
norm after the FFN, OLMo 2 and 3 have it instead of the one before; Granite scales its branches,
SmolLM 3 has layers without positions, and the FFNs of GPT-NeoX and Phi are not gated.
`qwen3_5_moe`, `qwen4_exp` and the talker of `qwen3_omni_moe` have the same expert as `qwen3_next`,
but inside models with vision, hyper-connections or audio.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM

from neutral_residues.export.formats.saving import save_model
from neutral_residues.export.parts import Parts
from neutral_residues.tuner.gated_mlp import GatedMLP
from neutral_residues.tuner.neutral import GatedAdapter

# fmt: off
SAME_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings",
    "initializer_range", "rms_norm_eps", "use_cache", "rope_parameters", "attention_dropout",
    "pad_token_id", "bos_token_id", "eos_token_id",
)
# fmt: on


@dataclass(frozen=True)
class Stock:
    """A stock mixture-of-experts architecture."""

    config: type[Any]
    model: type[Any]
    holds: tuple[str, ...]  # model types of the backbones that fit
    # Backbone's configuration -> settings of the stock one besides `SAME_KEYS` and the experts.
    settings: Callable[[Any], dict[str, Any]]
    # (key, tensor, backbone's configuration) -> the stock model's tensor with that key.
    convert: Callable[[str, Tensor, Any], Tensor]
    has_output_bias: bool = False  # its attention can have a bias in the output projection
    has_windows: bool = False  # its attention can have a sliding window


def _qwen2_moe_settings(config: Any) -> dict[str, Any]:
    window = getattr(config, "sliding_window", None)
    windowed = window and config.model_type == "mistral"
    kind = "sliding_attention" if windowed else "full_attention"
    layer_types = getattr(config, "layer_types", None) or [kind] * config.num_hidden_layers
    return {
        "qkv_bias": config.model_type == "qwen2",
        "layer_types": list(layer_types),
        "use_sliding_window": "sliding_attention" in layer_types,
        "sliding_window": window,
    }


def _to_qwen2_moe(key: str, tensor: Tensor, config: Any) -> Tensor:
    if config.model_type == "gemma" and key.endswith("norm.weight"):
        return 1.0 + tensor
    if config.model_type == "gemma" and key.endswith("embed_tokens.weight"):
        return tensor * torch.tensor(config.hidden_size**0.5)
    return tensor


def _qwen3_next_settings(config: Any) -> dict[str, Any]:
    rotary = {"partial_rotary_factor": 1.0}
    return rotary | {
        "attention_bias": config.attention_bias,
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        "rope_parameters": config.rope_parameters | rotary,
    }


def _to_qwen3_next(key: str, tensor: Tensor, config: Any) -> Tensor:
    if key.endswith("norm.weight"):
        return tensor - 1.0
    if ".self_attn.q_proj." in key:  # Qwen3-Next has queries, then output gates, for each head
        heads = tensor.view(config.num_attention_heads, config.head_dim, *tensor.shape[1:])
        return torch.cat([heads, torch.zeros_like(heads)], dim=1).flatten(0, 1)
    if key.endswith(".self_attn.o_proj.weight"):
        return 2.0 * tensor
    return tensor


QWEN2_MOE = Stock(
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    ("llama", "mistral", "ministral", "qwen2", "gemma"),
    _qwen2_moe_settings,
    _to_qwen2_moe,
    has_windows=True,
)
QWEN3_NEXT = Stock(
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    ("qwen3",),
    _qwen3_next_settings,
    _to_qwen3_next,
    has_output_bias=True,
)


def moe_refusal(stock: Stock, parts: Parts) -> str | None:
    """The reason why `stock` cannot hold the extension, or None if it can."""
    if (kind := parts.model_type) not in stock.holds:
        return f"it holds backbones of the types {', '.join(stock.holds)}; this one is {kind}"
    if len(parts.adapters) != 1:
        return f"it holds one adapter; this model has {len(parts.adapters)}"
    return _adapter_refusal(parts) or _backbone_refusal(stock, parts)


def _adapter_refusal(parts: Parts) -> str | None:
    adapter, activation = parts.adapters[0], parts.backbone.config.hidden_act
    if adapter.kind != "sigmoid":
        return f"its expert has a sigmoid gate; this one is {adapter.kind} (train neutral-sigmoid)"
    if parts.has_reader:
        reason = "the gate of each expert reads its own input; that of this extension reads tokens"
        return f"{reason}; train with residues.gate_reads: layer"
    if parts.has_head:
        reason = "its output head is one matrix, and this extension has a residue on it"
        return f"{reason}; train with residues.head_rank: 0, which learns less"
    if adapter.has_bias:
        return "its gate has no bias, and this one has; train with residues.gate_start: half"
    if target := parts.first_non_ffn_target(adapter):
        return f"its expert is parallel to the feed-forward block; this adapter to {target}"
    if (own := adapter.activation) != activation:
        return f"its experts have the backbone's activation {activation}; this adapter has {own}"
    return None


def _backbone_refusal(stock: Stock, parts: Parts) -> str | None:
    config = parts.backbone.config
    for name, mlp in parts.ffns.items():
        if mlp is None or any(linear.bias is not None for linear in (mlp.gate, mlp.up, mlp.down)):
            return f"its experts are gated MLPs without biases; {name} is not"
    keys = parts.backbone.state_dict()
    if not stock.has_output_bias and any(key.endswith("o_proj.bias") for key in keys):
        return "its attention has no bias after the heads; this backbone has (attention_bias)"
    layer_types = getattr(config, "layer_types", None) or ()
    if not stock.has_windows and "sliding_attention" in layer_types:
        return "its attention has no sliding window; this backbone has"
    if getattr(config, "use_bidirectional_attention", None):
        return "its attention is causal; that of this backbone is not"
    return None


def write_moe(stock: Stock, parts: Parts, folder: Path, dtype: torch.dtype) -> None:
    """Write the extended model as a stock model: configuration and weights in `folder`."""
    backbone, adapter, config = parts.backbone, parts.adapters[0], parts.backbone.config
    same = {key: getattr(config, key, None) for key in SAME_KEYS}
    settings = {key: value for key, value in same.items() if value is not None}
    settings |= stock.settings(config) | {
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "norm_topk_prob": True,
        "moe_intermediate_size": config.intermediate_size,
        "shared_expert_intermediate_size": adapter.width,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "tie_word_embeddings": False,
    }
    weights = {
        key: stock.convert(key, tensor, config)
        for key, tensor in backbone.state_dict().items()
        if not any(key.startswith(f"{name}.") for name in parts.ffns)
    }
    # A copy: it would not be saved if it shared memory with the embeddings.
    weights["lm_head.weight"] = backbone.get_output_embeddings().weight.detach().clone()
    for name, mlp in parts.ffns.items():
        assert mlp is not None
        mixture = _mixture(mlp, adapter.at(name))
        weights |= {f"{name}.{key}": tensor for key, tensor in mixture.items()}
    save_model(stock.model, stock.config(**settings), weights, folder, dtype=dtype, like=backbone)


@torch.no_grad()
def _mixture(mlp: GatedMLP, adapter: GatedAdapter) -> dict[str, Tensor]:
    """Tensors of a mixture layer: the FFN as the only routed expert, a router for it, and the
    adapter as the gated shared expert."""
    assert adapter.block_gate is not None
    return {
        "experts.gate_up_proj": torch.cat([mlp.gate.weight, mlp.up.weight])[None],
        "experts.down_proj": mlp.down.weight.detach()[None],
        "gate.weight": torch.zeros(1, mlp.gate.in_features, dtype=mlp.gate.weight.dtype),
        "shared_expert.gate_proj.weight": adapter.gate.weight.detach(),
        "shared_expert.up_proj.weight": adapter.up.weight.detach(),
        "shared_expert.down_proj.weight": adapter.down.weight.detach(),
        "shared_expert_gate.weight": adapter.block_gate.weight.detach(),
    }

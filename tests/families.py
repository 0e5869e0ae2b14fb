"""One tiny configuration for each family of decoders that the contract test extends: model type ->
config arguments.

Random weights, width 32, two or three layers, vocabulary 64. A family is listed here because its
feed-forward block differs in name, call or position from the others, or because people use it.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from neutral_residues import UserError
from tiny_llama import logits, token_ids

VOCAB_SIZE = 64

_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_ATTENTION = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
MODERN = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    **_ATTENTION,
    **_IDS,
}
# Families that have no grouped-query attention, or no head_dim of their own.
PLAIN = {
    key: value for key, value in MODERN.items() if key not in ("num_key_value_heads", "head_dim")
}
NO_HEAD_DIM = {key: value for key, value in MODERN.items() if key != "head_dim"}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
DEEPSEEK = PLAIN | {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
MAMBA_2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4, "mamba_n_groups": 1}
MAMBA = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "state_size": 4,
    "num_hidden_layers": 2,
    "time_step_rank": 4,
    **_IDS,
}
LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
GPT = {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **_IDS}

# The documentation shows these groups.
GROUPS: dict[str, dict[str, dict[str, object]]] = {
    "a dense GLU or MLP in `mlp`, before the residual sum": {
        "llama": MODERN,
        "mistral": MODERN,
        "ministral": MODERN
        | {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8},
        "qwen2": NO_HEAD_DIM,
        "qwen3": MODERN,
        "gemma": MODERN,
        "phi3": NO_HEAD_DIM,
        "smollm3": NO_HEAD_DIM,
        "starcoder2": NO_HEAD_DIM,
        "helium": MODERN,
        "nemotron": MODERN,
        "arcee": MODERN,
        "apertus": NO_HEAD_DIM,
        "ernie4_5": MODERN,
        "glm": MODERN,
        "persimmon": PLAIN,
        "stablelm": NO_HEAD_DIM,
        "granite": NO_HEAD_DIM,
        "olmo": NO_HEAD_DIM,
        "hunyuan_v1_dense": MODERN,
        "seed_oss": MODERN,
        "bitnet": NO_HEAD_DIM,
    },
    "a norm after the block, with or without one before it": {
        "gemma2": MODERN,
        "gemma3_text": MODERN,
        "gemma3n_text": MODERN
        | {
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCAB_SIZE,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.5, 0.0],
            "intermediate_size": [48, 48],
        },
        "gemma4_text": MODERN
        | {
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
            "global_head_dim": 8,
            "hidden_size_per_layer_input": 0,
        },
        "glm4": MODERN,
        "olmo2": NO_HEAD_DIM,
        "olmo3": NO_HEAD_DIM,
        "exaone4": MODERN
        | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    },
    "parallel to attention": {
        "phi": NO_HEAD_DIM,
        "gpt_neox": PLAIN,
        "cohere": NO_HEAD_DIM,
        "cohere2": MODERN,
        "gptj": GPT | {"rotary_dim": 4},
        "codegen": GPT | {"rotary_dim": 4, "n_ctx": 64},
        "falcon": {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            **_IDS,
        },
    },
    "the GPT-2 line": {
        "gpt2": GPT,
        "gpt_bigcode": GPT,
        "gpt_neo": {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            **_IDS,
        },
    },
    "the residual sum is inside the block": {
        "bloom": {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "n_layer": 2, "n_head": 4, **_IDS},
        "mpt": {
            "vocab_size": VOCAB_SIZE,
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "max_seq_len": 64,
            **_IDS,
        },
    },
    "sparse blocks": {
        "granitemoe": NO_HEAD_DIM | LOCAL_EXPERTS,
        "granitemoehybrid": NO_HEAD_DIM
        | {
            "layer_types": ["attention", "attention"],
            "num_local_experts": 0,
            "shared_intermediate_size": 48,
            "mamba_n_heads": 4,
        },
        "mixtral": MODERN | LOCAL_EXPERTS,
        "qwen2_moe": NO_HEAD_DIM | EXPERTS | {"shared_expert_intermediate_size": 16},
        "qwen3_moe": MODERN | EXPERTS,
        "olmoe": NO_HEAD_DIM | {"num_experts": 4, "num_experts_per_tok": 2},
        "phimoe": NO_HEAD_DIM | LOCAL_EXPERTS,
        "gpt_oss": MODERN | LOCAL_EXPERTS | {"sliding_window": 8},
        "llama4_text": MODERN
        | LOCAL_EXPERTS
        | {"intermediate_size_mlp": 48, "interleave_moe_layer_step": 2},
        "deepseek_v3": DEEPSEEK,
        "deepseek_v2": DEEPSEEK,
        "glm4_moe": MODERN
        | {
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
        "ernie4_5_moe": NO_HEAD_DIM
        | {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 16,
            "moe_layer_start_index": 1,
        },
        "cohere2_moe": MODERN,
        "minimax": MODERN
        | LOCAL_EXPERTS
        | {"layer_types": ["linear_attention", "full_attention"], "block_size": 8},
        "qwen3_next": MODERN | EXPERTS | LINEAR_ATTENTION | {"shared_expert_intermediate_size": 16},
    },
    "no softmax attention in some or all layers": {
        "qwen3_5_text": MODERN | LINEAR_ATTENTION,
        "olmo_hybrid": NO_HEAD_DIM,
        "recurrent_gemma": {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "lru_width": 32,
            "attention_window_size": 16,
            **_IDS,
        },
        "bamba": NO_HEAD_DIM | MAMBA_2 | {"attn_layer_indices": [1], "mamba_expand": 2},
        "falcon_h1": NO_HEAD_DIM | MAMBA_2 | {"mamba_d_ssm": 64},
        "lfm2": NO_HEAD_DIM | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16},
        "rwkv": {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "attention_hidden_size": 32,
            "context_length": 64,
            **_IDS,
        },
        "kimi_linear": DEEPSEEK
        | {
            "layer_types": ["linear_attention", "full_attention"],
            "q_lora_rank": None,
            "head_dim": 8,
            "num_experts": 4,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
        },
        "jamba": NO_HEAD_DIM
        | {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    },
    "a mixer alone: beside it, or only beside those that are feed-forward": {
        "mamba": MAMBA,
        "falcon_mamba": MAMBA,
        "mamba2": {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "head_dim": 16,
            "state_size": 4,
            "n_groups": 1,
            "chunk_size": 8,
            **_IDS,
        },
        "nemotron_h": NO_HEAD_DIM
        | {
            "layer_types": ["linear_attention", "mlp", "full_attention", "moe"],
            "head_dim": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 4,
            "n_groups": 1,
            "chunk_size": 8,
            "n_routed_experts": 4,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 16,
        },
        "zamba": NO_HEAD_DIM
        | {
            "num_hidden_layers": 3,
            "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
            "num_key_value_heads": 4,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
        },
        "zamba2": NO_HEAD_DIM
        | {
            "num_hidden_layers": 3,
            "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
            "num_key_value_heads": 4,
            "mamba_d_state": 4,
            "mamba_ngroups": 1,
            "n_mamba_heads": 4,
            "num_mem_blocks": 1,
            "chunk_size": 8,
            "adapter_rank": 4,
        },
    },
}


FAMILIES = {name: settings for group in GROUPS.values() for name, settings in group.items()}
"""Model type -> config arguments."""


# No module that is the feed-forward block: refused, with the children that were found.
WITHOUT_FFN: dict[str, dict[str, object]] = {
    "opt": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 64,
        **_IDS,
    },
    "xglm": {
        "vocab_size": VOCAB_SIZE,
        "d_model": 32,
        "ffn_dim": 48,
        "num_layers": 2,
        "attention_heads": 4,
        "max_position_embeddings": 64,
        **_IDS,
    },
    "biogpt": PLAIN,
}


# Its cache, of a class of its own, holds no codes; and with it Transformers cannot train it.
XLSTM: dict[str, object] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,  # what it rounds its widths to
    "num_hidden_layers": 2,
    "num_heads": 4,
    "qk_dim_factor": 1.0,
    "chunk_size": 8,
    **_IDS,
}


def build(model_type: str, settings: dict[str, object]) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings)).eval()


def greedy(model: nn.Module, *, use_cache: bool) -> torch.Tensor:
    ids = token_ids(batch=1, length=10)
    return model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=5,
        min_new_tokens=5,
        do_sample=False,
        use_cache=use_cache,
    )


DENSE = ["llama", "qwen3", "gemma2", "gpt_neox", "olmo2", "phi3", "falcon", "bloom"]


def on_nearest_budget(
    family: str, attach: Callable[[PreTrainedModel, float], nn.Module]
) -> tuple[Tensor, nn.Module]:
    """Logits of the backbone, and the model attached on 0.2 or the budget that the refusal of 0.2
    names."""
    backbone = build(family, FAMILIES[family])
    before = logits(backbone)
    try:
        return before, attach(backbone, 0.2).eval()
    except UserError as error:
        nearest = re.search(r"the nearest is ([0-9.]+)", str(error))
        if nearest is None:
            raise
        backbone = build(family, FAMILIES[family])
        return before, attach(backbone, float(nearest[1])).eval()

"""A tiny Llama as a GGUF file."""

from pathlib import Path

import pytest
from torch import Tensor
from transformers import PreTrainedModel

MERGES = ["l e", "Ġ l"]


def write_gguf(model: PreTrainedModel, path: Path) -> None:
    """A Llama with a byte-level BPE tokenizer, as llama.cpp's script writes one."""
    gguf = pytest.importorskip("gguf", reason="writing the file needs the package gguf")
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    letters = ["<eos>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "le", "Ġl"]
    tokens = letters + [f"<{number}>" for number in range(len(letters), config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        module = name.removesuffix(".weight")
        num_heads = heads.get(module.split(".")[-1])
        stored = tensor if num_heads is None else interleaved(tensor, num_heads)
        writer.add_tensor(f"{names.get_name(module)}.weight", stored.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(weight_DD: Tensor, num_heads: int) -> Tensor:
    """Rows in the order of llama.cpp's rotary embedding."""
    halves = weight_DD.view(num_heads, 2, -1, weight_DD.shape[1])
    return halves.transpose(1, 2).reshape(weight_DD.shape)

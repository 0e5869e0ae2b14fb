"""Loads backbones and tokenizers from a folder, a GGUF file or the Hub, with one-line errors."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from neutral_residues.config.run import TrainingSettings
from neutral_residues.digest import known_digest, short_hash
from neutral_residues.errors import UserError, first_line
from neutral_residues.files import disk_errors

Quantised = Literal["int8", "nf4"]
CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "HeadModel")
"""Endings of class names in `config.architectures` that are accepted as causal language models."""


def load_config(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """Load the configuration of a causal language model. Raises a UserError if there is no model,
    it cannot be downloaded, or it is not a causal language model."""
    folder = Path(name)
    if not _is_gguf(name) and folder.exists() and not (folder / "config.json").is_file():
        holds_adapter = (folder / "adapter_config.json").is_file()
        do = "it holds an adapter: give its backbone" if holds_adapter else "check the path"
        raise UserError(f"{name} is not a model folder", got="no config.json in it", do=do)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(**_location(name), **options)
    except UserError:
        raise
    except Exception as error:  # gguf has its own exceptions for truncated files
        what = f"cannot load the model {name}"
        do = "give a folder with config.json, or a name on the Hub that can be reached"
        raise UserError(what, got=first_line(error), do=do) from error
    _check_causal(name, config)
    return config


def _check_causal(name: str, config: PretrainedConfig) -> None:
    architectures = config.architectures or []
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or {}
    )
    causal = any(a.endswith(CAUSAL_ENDINGS) for a in architectures) or not architectures
    if not (known and causal) or getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{name} is not a causal language model",
            got=f"model_type {config.model_type} ({', '.join(architectures or ['?'])})",
            allowed="a decoder such as Llama, Qwen, Gemma, Mistral, GPT-2",
        )


def backbone_key(name: str, config: PretrainedConfig) -> str:
    """A string that identifies a model: a hash of its files, or its name and commit on the Hub."""
    path = Path(name)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        patterns = ("config.json", "*.safetensors", "*.bin")
        files = sorted(file for pattern in patterns for file in path.glob(pattern))
    else:
        return f"{name}@{getattr(config, '_commit_hash', None)}"
    with disk_errors(path):
        return short_hash([[file.name, known_digest(file)] for file in files])


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model. Raises a UserError if that is not possible."""
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**_location(name), **options)
        tokenizer.model_max_length = int(tokenizer.model_max_length)
        return tokenizer
    except UserError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions for broken files
        what = f"cannot load the tokenizer of {name}"
        raise UserError(what, got=first_line(error), do="check the folder") from error


def load_backbone(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype,
    quantised: Quantised | None = None,
) -> PreTrainedModel:
    """Load a model with its weights.

    Args:
        name: a folder, a GGUF file, or a name on the Hub.
        dtype: dtype of the weights, which are on the CPU; of computations if `quantised`.
        quantised: quantise the linear layers with bitsandbytes; the model is then on the
            accelerator, if there is one.

    Raises:
        UserError: if the model cannot be loaded, weights are missing or files truncated, or a
            package is not installed.
    """
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    load_config(name, **options)
    options |= _quantisation(quantised, dtype) if quantised else {}
    do = "fetch the model again"
    try:
        options |= {"dtype": dtype, "output_loading_info": True}
        model, info = AutoModelForCausalLM.from_pretrained(**_location(name), **options)
    except Exception as error:  # safetensors has its own exceptions for truncated files
        what = f"cannot load the weights of {name}"
        raise UserError(what, got=first_line(error), do=do) from error
    if missing := info["missing_keys"]:
        got = f"{len(missing)} missing, first {min(missing)}"
        raise UserError(f"the weights of {name} are incomplete", got=got, do=do)
    if _is_gguf(name):
        _forget_gguf(model, name)
    for module in model.modules():
        # Else, on some CPUs, a forward pass in eval mode changes the format of 4-bit weights to one
        # without gradients.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _is_gguf(name: str) -> bool:
    return name.endswith(".gguf")


def _location(name: str) -> dict[str, str]:
    """Keyword arguments of `from_pretrained` for a folder, a file or a name on the Hub."""
    if not _is_gguf(name):
        return {"pretrained_model_name_or_path": name}
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"reading {name} needs the package gguf", do="pip install gguf")
    path = Path(name)
    if not path.is_file():
        raise UserError(f"no such file: {name}", do="check the path")
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def _forget_gguf(model: PreTrainedModel, name: str) -> None:
    """Mark a model from a GGUF file as not quantised, because its weights were converted to floats:
    Transformers would not save it otherwise. Its name is set to that of the file."""
    # PEFT looks for a configuration under this name, to see if the vocabulary has changed.
    warnings.filterwarnings("ignore", message=r"Could not find a config file in .*\.gguf")
    del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    model.name_or_path = name


def _quantisation(kind: Quantised, dtype: torch.dtype) -> dict[str, Any]:
    if importlib.util.find_spec("bitsandbytes") is None:
        what = f"{kind} weights need the package bitsandbytes"
        raise UserError(what, do="pip install 'neutral-residues[quantised]'")
    # bitsandbytes warns whenever it casts float32 activations to float16, which is intended here.
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    four_bit = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    config = BitsAndBytesConfig(**four_bit if kind == "nf4" else {"load_in_8bit": True})
    return {"quantization_config": config, "device_map": {"": pick_device()}}


def on_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Move the model to `device`, unless it is quantised: it is there already, and cannot be
    moved."""
    return model if getattr(model, "is_quantized", False) else model.to(device)


def empty_backbone(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model on the meta device, without weights, to count its parameters."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def first_new_id(config: PretrainedConfig) -> int:
    """Id of the first new token of an extension: the number of rows of the backbone's embeddings,
    including rows for padding."""
    return int(config.get_text_config().vocab_size)


def context_length(config: PretrainedConfig) -> int | None:
    """Maximum number of tokens of the model's context, or None if its configuration has none."""
    value: Any = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(value) if value else None


def pick_device() -> torch.device:
    """The accelerator, if there is one, else the CPU."""
    available = torch.accelerator.is_available()
    return (torch.accelerator.current_accelerator() if available else None) or torch.device("cpu")


def device_name(device: torch.device) -> str:
    """The name of the GPU, else "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


SMALLEST_BF16_WIDTH = 512
"""Smallest hidden size for which precision "auto" is bfloat16 on a CPU. Smaller backbones are fast
in float32 too, and have the same results on all CPUs then (LAB.md, "a step with 49,152 logits, and
bfloat16 on a CPU")."""


def computes_in_bf16(training: TrainingSettings, device: torch.device, *, hidden_size: int) -> bool:
    """Whether `training.precision` means bfloat16. "auto" does on a GPU that supports it, and on a
    CPU with bfloat16 instructions if `hidden_size` is at least `SMALLEST_BF16_WIDTH`."""
    if training.precision != "auto":
        return training.precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and cpu_has_bf16() and hidden_size >= SMALLEST_BF16_WIDTH


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for matrix products in bfloat16: AVX512-BF16 or AMX."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


class FrozenPrecision(NamedTuple):
    """How weights that are not trained are stored."""

    dtype: torch.dtype
    quantised: Quantised | None


def frozen_precision(training: TrainingSettings, *, bf16: bool) -> FrozenPrecision:
    """The storage set by `training.frozen_weights`. For "auto" and quantised weights the dtype is
    that of the training: bfloat16 if `bf16`, else float32."""
    held = training.frozen_weights
    if held in ("float32", "bfloat16"):
        bf16 = held == "bfloat16"
    return FrozenPrecision(torch.bfloat16 if bf16 else torch.float32, quantised(training))


def quantised(training: TrainingSettings) -> Quantised | None:
    """The quantisation of frozen weights, or None."""
    held = training.frozen_weights
    return held if held == "int8" or held == "nf4" else None

"""Backbones and tokenizers from a folder, a GGUF file or the Hub; whatever is wrong with them is
one line."""

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
"""Of the class names in a configuration's `architectures`."""


def load_config(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """The configuration of a causal language model; a UserError if there is no model, it cannot be
    reached, or it is not causal."""
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
    except Exception as error:  # gguf raises types of its own for a file cut short
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
    """What tells a model from every other: the digests of its files, or on the Hub its commit."""
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
    """The tokenizer that belongs to a model."""
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
    """The model's weights, all of them: in `dtype` in main memory, or with its linear layers
    quantised on the device; a UserError also for a file cut short or a missing package."""
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    load_config(name, **options)
    options |= _quantisation(quantised, dtype) if quantised else {}
    do = "fetch the model again"
    try:
        options |= {"dtype": dtype, "output_loading_info": True}
        model, info = AutoModelForCausalLM.from_pretrained(**_location(name), **options)
    except Exception as error:  # safetensors raises its own type for a file cut short
        what = f"cannot load the weights of {name}"
        raise UserError(what, got=first_line(error), do=do) from error
    if missing := info["missing_keys"]:
        got = f"{len(missing)} missing, first {min(missing)}"
        raise UserError(f"the weights of {name} are incomplete", got=got, do=do)
    if _is_gguf(name):
        _forget_gguf(model, name)
    for module in model.modules():
        # On some CPUs a pass in eval mode would make 4-bit weights a form without gradients.
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
    """Its weights are plain numbers now: Transformers calls them quantised, would not save them,
    and would name the folder as their origin."""
    # PEFT looks for the configuration in a folder of that name, to see if the vocabulary changed.
    warnings.filterwarnings("ignore", message=r"Could not find a config file in .*\.gguf")
    del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    model.name_or_path = name


def _quantisation(kind: Quantised, dtype: torch.dtype) -> dict[str, Any]:
    if importlib.util.find_spec("bitsandbytes") is None:
        what = f"{kind} weights need the package bitsandbytes"
        raise UserError(what, do="pip install 'neutral-residues[quantised]'")
    # It warns at every product in float32, where it casts activations to float16: intended.
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    four_bit = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    config = BitsAndBytesConfig(**four_bit if kind == "nf4" else {"load_in_8bit": True})
    return {"quantization_config": config, "device_map": {"": pick_device()}}


def on_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on `device`; a quantised one is there already and must not be moved."""
    return model if getattr(model, "is_quantized", False) else model.to(device)


def empty_backbone(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model's structure without its weights (on the meta device): for counting."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def first_new_id(config: PretrainedConfig) -> int:
    """The id of an extension's first new token: the rows of the embeddings, padding included."""
    return int(config.get_text_config().vocab_size)


def context_length(config: PretrainedConfig) -> int | None:
    """How many tokens the model can read, where its configuration says so."""
    value: Any = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(value) if value else None


def pick_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    available = torch.accelerator.is_available()
    return (torch.accelerator.current_accelerator() if available else None) or torch.device("cpu")


def device_name(device: torch.device) -> str:
    """The name of the GPU, else "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


SMALLEST_BF16_WIDTH = 512
"""On CPUs, "auto" computes narrower backbones in float32: they are quick, and come out the same on
every CPU (LAB.md, "a step with 49,152 logits, and bfloat16 on a CPU")."""


def computes_in_bf16(training: TrainingSettings, device: torch.device, *, hidden_size: int) -> bool:
    """bfloat16 as set; "auto" takes it on a GPU that has it, and on a CPU that multiplies in it
    where the backbone is wide enough for a difference."""
    if training.precision != "auto":
        return training.precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and cpu_has_bf16() and hidden_size >= SMALLEST_BF16_WIDTH


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies matrices in bfloat16: AVX512-BF16 or AMX."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


class FrozenPrecision(NamedTuple):
    """How weights that do not train are stored."""

    dtype: torch.dtype
    quantised: Quantised | None


def frozen_precision(training: TrainingSettings, *, bf16: bool) -> FrozenPrecision:
    """As the run file says; "auto" and quantised weights compute in the precision of training,
    bfloat16 or not."""
    held = training.frozen_weights
    if held in ("float32", "bfloat16"):
        bf16 = held == "bfloat16"
    return FrozenPrecision(torch.bfloat16 if bf16 else torch.float32, quantised(training))


def quantised(training: TrainingSettings) -> Quantised | None:
    """The frozen weights' kind of quantisation, if they are quantised."""
    held = training.frozen_weights
    return held if held == "int8" or held == "nf4" else None

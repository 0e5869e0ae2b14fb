"""A tiny model with gates that open on about half of the tokens, and text to calibrate it on."""

from typing import Any

import numpy as np
import torch
from peft import PeftModel

from neutral_residues.calibration.calibrate import Wanted
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.windows import Windows
from tiny_llama import extended_llama

WINDOWS = Windows(0, context_tokens=16, stride_tokens=8, batch_rows=16)
END_OF_TEXT = 0
LOOSE = Wanted(at_most=0.2, confidence=0.9)


def text(num_documents: int = 120, seed: int = 0, name: str = "en") -> TokenStream:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(10, 40, num_documents)
    documents = [np.append(rng.integers(3, 64, length), END_OF_TEXT) for length in lengths]
    ends = np.cumsum([len(document) for document in documents])
    tokens = np.concatenate(documents).astype(np.uint16)
    return TokenStream(name, "source", tokens, ends, lengths.astype(np.int64))


def model(**settings: Any) -> PeftModel:
    """Gates open on about half of the tokens."""
    found = extended_llama(**settings)
    with torch.no_grad():
        for key, parameter in found.named_parameters():
            if key.endswith("block_gate.bias"):
                parameter.fill_(0.0)
            if key.endswith("down.weight"):
                parameter.mul_(0.2)
    return found

"""Adds merges to a tokenizer; class, ids, special tokens and chat template stay the same."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neutral_residues.errors import UserError
from neutral_residues.vocabulary.learn import NewTokens
from neutral_residues.vocabulary.spelling import bpe_content

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def extended_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", new_tokens: NewTokens
) -> "PreTrainedTokenizerBase":
    """The tokenizer with the new merges after its own.

    It is loaded from saved files, as users do: after `save_pretrained`, plain
    `AutoTokenizer.from_pretrained` gives the same tokens.

    Raises:
        UserError: for a tokenizer that takes no new merges, or whose class does not load what it
            saves.
    """
    content = with_merges(bpe_content(tokenizer), new_tokens)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        extended = type(tokenizer).from_pretrained(folder)
    extended.name_or_path = tokenizer.name_or_path
    if bpe_content(extended) != content:
        what = f"{type(tokenizer).__name__} does not load the tokenizer.json that it saves"
        raise UserError(what, do="set vocabulary.size: 0")
    return extended


def with_merges(content: dict[str, Any], new_tokens: NewTokens) -> dict[str, Any]:
    """The content of a tokenizer.json with the new tokens and merges after the others."""
    model = content["model"]
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    new = {t.token: new_tokens.first_id + i for i, t in enumerate(new_tokens.tokens)}
    # When a tokenizer is loaded, an added token that is not in the vocabulary gets the next free
    # id, which would change with new tokens: so added tokens are listed in it.
    vocabulary = model["vocab"] | added | new
    merges = [*model["merges"], *([t.left, t.right] for t in new_tokens.tokens)]
    return content | {"model": model | {"vocab": vocabulary, "merges": merges}}

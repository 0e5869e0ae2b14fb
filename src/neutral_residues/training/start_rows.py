"""Initial embedding and output rows of a run's new tokens; distilled ones, which take long, are
cached."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch import uint8 as byte
from transformers import PreTrainedModel

from neutral_residues.config.run import RunConfig
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.data.tokenise import Tokenising
from neutral_residues.digest import check_digests, from_cache, short_hash, write_digests
from neutral_residues.evaluation.possible import Pieces
from neutral_residues.files import default_cache_folder, locked, whole_folder
from neutral_residues.methods.token_distillation import (
    SNIPPET_TOKENS,
    distilled_embeddings,
    num_snippets,
)
from neutral_residues.methods.token_starts import StartRows, mean_of_pieces

VERSION = 2
"""Part of the cache key; increase it when the same text gives other rows."""
FILE = "rows.safetensors"


def start_rows(
    config: RunConfig,
    backbone: PreTrainedModel,
    pieces: Pieces,
    target: Sequence[TokenStream],
    *,
    bf16: bool,
    tokenising: Tokenising,
) -> StartRows | None:
    """The initial rows of the new tokens that `vocabulary.start` asks for; None for "random".

    Args:
        pieces: for each new token, the backbone's tokens that spell the same text.
        target: target text in tokens of the extended tokenizer; used by "distilled".
        bf16: compute in bfloat16.
        tokenising: how progress is shown.

    Raises:
        UserError: for distillation with a backbone that does not allow it, or a full disk.
    """
    if config.vocabulary.start == "random":
        return None
    means = mean_of_pieces(backbone, pieces)
    if config.vocabulary.start == "pieces":
        return means
    snippets_RT = _snippets(target, config.data.block_tokens, num_new_tokens=len(pieces))
    key = short_hash(VERSION, _weights_key(backbone), _array_key(snippets_RT), pieces, bf16)
    folder = (config.data.cache or default_cache_folder()) / f"distilled-{key}"
    with locked(folder.with_name(f".{folder.name}.lock"), on_wait=lambda: None):
        embeddings_ND = from_cache(folder, lambda: _read(folder))
        if embeddings_ND is None:
            bytes_per_token = sum(s.num_bytes for s in target) / sum(s.num_tokens for s in target)
            first_id = len(backbone.get_input_embeddings().weight)
            with tokenising(_work(snippets_RT, first_id, len(pieces))) as advance:
                embeddings_ND = distilled_embeddings(
                    backbone,
                    snippets_RT,
                    pieces,
                    means.embeddings_ND,
                    bf16=bf16,
                    advance=lambda tokens: advance(round(tokens * bytes_per_token)),
                )
            _write(folder, embeddings_ND)
    return means._replace(embeddings_ND=embeddings_ND)


def _snippets(
    target: Sequence[TokenStream], block_tokens: int, *, num_new_tokens: int
) -> NDArray[np.int64]:
    """Rows (R, T) of the target text, in an order that does not depend on the run's seed; if there
    are too few, they are repeated."""
    length = min(SNIPPET_TOKENS, block_tokens)
    rows_RT = np.concatenate([stream.blocks(length) for stream in target])
    order = np.random.default_rng(0).permutation(len(rows_RT))
    return rows_RT[np.resize(order, num_snippets(num_new_tokens, length))].astype(np.int64)


def _work(snippets_RT: NDArray[np.int64], first_id: int, num_new_tokens: int) -> str:
    """Text of the progress display."""
    absent = num_new_tokens - int((np.unique(snippets_RT) >= first_id).sum())
    kept = f"; {absent:,} are not in the text and keep the mean of their pieces" if absent else ""
    return f"distilling {num_new_tokens:,} new tokens{kept}"


def _read(folder: Path) -> Tensor:
    check_digests(folder, required=True)
    return load_file(folder / FILE)["embeddings"]


def _write(folder: Path, embeddings_ND: Tensor) -> None:
    with whole_folder(folder) as partial:
        save_file({"embeddings": embeddings_ND.contiguous()}, partial / FILE)
        write_digests(partial)


def _weights_key(model: nn.Module) -> str:
    """Hash of all weights, in the precision in which they are loaded."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            digest.update(tensor.detach().cpu().contiguous().flatten().view(byte).numpy().data)
    return digest.hexdigest()


def _array_key(array: NDArray[np.int64]) -> str:
    return hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()

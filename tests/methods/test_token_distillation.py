"""Token distillation: what is compared with what, and what it teaches a small model."""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from families import FAMILIES, build
from neutral_residues.methods.token_distillation import (
    _Reader,
    distilled_embeddings,
    in_pieces,
    num_snippets,
)
from neutral_residues.methods.token_starts import mean_of_pieces
from tiny_llama import tiny_llama

V = 64
PIECES = [[3, 4], [5], [6, 7, 8], [9, 10]]
ABSENT = 3


def snippets(rows: int = 400, tokens: int = 12) -> np.ndarray:
    """Old and new tokens, but for the last new one."""
    generator = np.random.default_rng(0)
    old = generator.integers(0, V, (rows, tokens))
    new = V + generator.integers(0, ABSENT, (rows, tokens))
    return np.where(generator.random((rows, tokens)) < 0.3, new, old)


@torch.no_grad()
def distance(model: PreTrainedModel, rows_ND: Tensor, tokens_RT: np.ndarray) -> float:
    return float(_Reader(model, PIECES).distance(tokens_RT, rows_ND))


def test_the_same_text_in_pieces() -> None:
    ids_RS, ends_RT = in_pieces(np.array([[1, V, V + 2], [V + 1, 2, 2]]), PIECES, V)
    assert ids_RS.tolist() == [[1, 3, 4, 6, 7, 8], [5, 2, 2, 0, 0, 0]]
    assert ends_RT.tolist() == [[0, 2, 5], [0, 1, 2]]


def test_a_new_token_of_one_piece_is_read_as_that_piece() -> None:
    model = tiny_llama().eval()
    text = np.array([[1, V + 1, 2, V + 1]])
    rows_ND = mean_of_pieces(model, PIECES).embeddings_ND
    assert distance(model, rows_ND, text) < 1e-12
    assert distance(model, rows_ND + 0.02, text) > 1e-6


def test_it_reads_more_like_the_pieces_and_changes_nothing_else() -> None:
    model = tiny_llama().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    means_ND, read = mean_of_pieces(model, PIECES).embeddings_ND, []
    found_ND = distilled_embeddings(model, snippets(), PIECES, means_ND, advance=read.append)
    text = snippets(64)
    assert distance(model, found_ND, text) < 0.9 * distance(model, means_ND, text)
    assert torch.equal(found_ND[ABSENT], means_ND[ABSENT])
    assert sum(read) == snippets().size
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks
    assert torch.equal(found_ND, distilled_embeddings(model, snippets(), PIECES, means_ND))


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "falcon_h1"])
def test_other_families(family: str) -> None:
    """Scaled embeddings, learnt positions, a state beside attention."""
    model = build(family, FAMILIES[family]).eval()
    means_ND = mean_of_pieces(model, PIECES).embeddings_ND
    found_ND = distilled_embeddings(model, snippets(64), PIECES, means_ND)
    text = snippets(16)
    assert distance(model, found_ND, text) < distance(model, means_ND, text)


def test_text_beyond_the_context_is_not_read() -> None:
    model = tiny_llama(max_position_embeddings=8).eval()
    rows_ND = mean_of_pieces(model, PIECES).embeddings_ND
    text, longer = np.array([[V, V + 2, V, 1]]), np.array([[V, V + 2, V, 1, V + 2, 1]])
    found = [distance(model, rows_ND, tokens) for tokens in (text, longer)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_the_text_grows_with_the_number_of_new_tokens() -> None:
    assert num_snippets(1, 32) == 1
    assert num_snippets(640, 32) == 500

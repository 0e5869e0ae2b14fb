"""Rows of new tokens at the start: at both ends, beside the backbone and in its tables."""

import pytest
import torch
from torch import Tensor

from families import FAMILIES, build
from neutral_residues.methods.token_starts import StartRows, mean_of_pieces
from neutral_residues.methods.wider_tables import start_rows, widen_tables
from neutral_residues.tuner.new_tokens import NewTokens
from tiny_llama import tiny_llama

PIECES = [[3, 4], [5, 6, 7], *([i] for i in range(10, 20))]


def means_of(table: Tensor) -> Tensor:
    return torch.stack([table[torch.tensor(ids)].mean(0) for ids in PIECES])


def test_the_mean_of_pieces_at_both_ends() -> None:
    model = tiny_llama()
    found = mean_of_pieces(model, PIECES)
    torch.testing.assert_close(found.embeddings_ND, means_of(model.get_input_embeddings().weight))
    torch.testing.assert_close(found.head_rows_ND, means_of(model.get_output_embeddings().weight))


def test_a_large_enough_rank_keeps_them() -> None:
    found = mean_of_pieces(tiny_llama(), PIECES)
    tokens = NewTokens(len(PIECES), len(PIECES), embedding_width=32, hidden_width=32)
    tokens.start_from(*found)
    embedded = tokens.embed(torch.arange(len(PIECES)))
    torch.testing.assert_close(embedded, found.embeddings_ND, atol=1e-5, rtol=1e-3)
    head_rows = tokens.codes.weight @ tokens.out_of.weight
    torch.testing.assert_close(head_rows, found.head_rows_ND, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_in_tables_the_embeddings_put_them_out(family: str) -> None:
    """Gemma 3 scales its rows where it puts them out."""
    model = build(family, FAMILIES[family])
    old = len(model.get_input_embeddings().weight)
    found = mean_of_pieces(model, PIECES)
    other = StartRows(found.embeddings_ND + 0.1, found.head_rows_ND)
    widen_tables(model, len(PIECES))
    start_rows(model, other)
    embedded = model.get_input_embeddings()(torch.arange(old, old + len(PIECES)))
    torch.testing.assert_close(embedded, other.embeddings_ND)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if not tied:
        rows = model.get_output_embeddings().weight[old:]
        torch.testing.assert_close(rows, other.head_rows_ND)

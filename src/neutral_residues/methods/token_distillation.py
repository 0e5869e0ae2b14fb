"""Token distillation: initial embeddings of new tokens, learnt from the backbone's hidden states
(Dobler, Elliott and de Melo 2025, arXiv 2505.20133, section 3).

The backbone reads the same text twice, in its own tokens and with new ones. Only the embeddings of
the new tokens train, such that at the end of each token the last hidden states of both agree:

    loss = sum |h_new(t) - h_pieces(end of t)|^2 / sum |h_pieces(end of t)|^2     over all tokens t

As in the paper, embeddings start from the mean of their pieces, Adam trains them, and the hidden
states are those of the last layer. Where we choose: the learning rate is proportional to the size
of the embeddings and falls to 0, and the amount of text is proportional to the number of new
tokens. Embeddings learn only what the backbone knows of the pieces.

Suffixes: R rows, T tokens of a row, S pieces of the same text, N new tokens, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from neutral_residues.backbone import context_length
from neutral_residues.errors import UserError
from neutral_residues.tuner.blocks import find_embeddings

SNIPPET_TOKENS = 32
"""Maximum number of tokens in a row of text (a snippet)."""
SNIPPETS_PER_STEP = 8
TOKENS_PER_NEW_TOKEN = 25
"""Tokens of text read in training, per new token."""
LEARNING_RATE = 0.02
"""Initial learning rate of Adam, as a multiple of the root mean square of the embeddings."""


def num_snippets(num_new_tokens: int, snippet_tokens: int) -> int:
    """Number of rows of text to train on."""
    return -(-num_new_tokens * TOKENS_PER_NEW_TOKEN // snippet_tokens)


def distilled_embeddings(
    model: PreTrainedModel,
    snippets_RT: NDArray[Any],
    pieces: Sequence[Sequence[int]],
    start_ND: Tensor,
    *,
    bf16: bool = False,
    advance: Callable[[int], object] = lambda tokens: None,
) -> Tensor:
    """Train embeddings of new tokens by token distillation.

    Args:
        model: the backbone, in eval mode.
        snippets_RT: text as ids of the extended tokenizer, in the order of training.
        pieces: for each new token, the backbone's tokens that spell the same text.
        start_ND: the initial embeddings.
        bf16: compute in bfloat16.
        advance: called with the number of tokens read since its last call.

    Returns:
        (N, D) outputs of the embeddings module for the new tokens, on the CPU. A token that is not
        in the text keeps its initial embedding.

    Raises:
        UserError: for a backbone whose decoder does not contain its embeddings.
    """
    reader = _Reader(model, pieces)
    rows_ND = nn.Parameter(start_ND.to(model.device, torch.float32, copy=True))
    rate = LEARNING_RATE * float(start_ND.square().mean().sqrt())
    optimizer = torch.optim.Adam([rows_ND], lr=rate)
    batches = np.array_split(snippets_RT, -(-len(snippets_RT) // SNIPPETS_PER_STEP))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=len(batches))
    with _frozen(model), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        for tokens_RT in batches:
            loss = reader.distance(tokens_RT.astype(np.int64), rows_ND)
            (rows_ND.grad,) = torch.autograd.grad(loss, rows_ND)
            optimizer.step()
            schedule.step()
            advance(tokens_RT.size)
    return rows_ND.detach().cpu()


class _Reader:
    """A backbone that reads text in its own tokens and with new ones."""

    def __init__(self, model: PreTrainedModel, pieces: Sequence[Sequence[int]]) -> None:
        found = find_embeddings(model)
        if found is None:
            what = f"token distillation cannot put new tokens into {type(model).__name__}"
            raise UserError(what, do="set vocabulary.start: pieces")
        self.decoder, self.embeddings = found[1], model.get_input_embeddings()
        self.pieces, self.first_id = pieces, len(self.embeddings.weight)
        self.longest = context_length(model.config)

    def distance(self, tokens_RT: NDArray[np.int64], rows_ND: Tensor) -> Tensor:
        """The loss on this text, see the module docstring; 0 if all hidden states agree."""
        device = rows_ND.device
        pieces_RS, ends_RT = in_pieces(tokens_RT, self.pieces, self.first_id)
        pieces_RS, ends_RT = pieces_RS[:, : self.longest].to(device), ends_RT.to(device)
        with torch.no_grad():
            whole_RSD = self._hidden(pieces_RS)
        num_pieces = pieces_RS.shape[1]
        at_RT1 = ends_RT.clamp(max=num_pieces - 1)[..., None]
        wanted_RTD = whole_RSD.gather(1, at_RT1.expand(-1, -1, whole_RSD.shape[-1]))
        with self._with_rows(torch.from_numpy(tokens_RT).to(device), rows_ND) as own_ids_RT:
            found_RTD = self._hidden(own_ids_RT)
        is_read_RT = ends_RT < num_pieces
        wanted, found = wanted_RTD[is_read_RT], found_RTD[is_read_RT]
        return (found - wanted).square().sum() / wanted.square().sum()

    def _hidden(self, ids_RT: Tensor) -> Tensor:
        hidden: Tensor = self.decoder(input_ids=ids_RT, use_cache=False).last_hidden_state
        return hidden.float()

    @contextmanager
    def _with_rows(self, tokens_RT: Tensor, rows_ND: Tensor) -> Iterator[Tensor]:
        """Inside this context, the model reads new tokens too: yields ids for it in which new
        tokens are replaced, and a hook puts `rows_ND` in the place of their embeddings."""
        numbers_RT = tokens_RT - self.first_id
        is_new_RT = numbers_RT >= 0

        def put_rows(module: nn.Module, args: tuple[Any, ...], embedded_RTD: Tensor) -> Tensor:
            rows_RTD = rows_ND[numbers_RT.clamp(min=0)].to(embedded_RTD.dtype)
            return torch.where(is_new_RT[..., None], rows_RTD, embedded_RTD)

        hook = self.embeddings.register_forward_hook(put_rows)
        try:
            yield tokens_RT.masked_fill(is_new_RT, 0)
        finally:
            hook.remove()


def in_pieces(
    tokens_RT: NDArray[np.int64], pieces: Sequence[Sequence[int]], first_id: int
) -> tuple[Tensor, Tensor]:
    """Replace new tokens by their pieces: returns the ids (R, S), padded on the right, and for each
    token (R, T) the position of its last piece in them."""
    split = [
        [pieces[id - first_id] if id >= first_id else (id,) for id in row]
        for row in tokens_RT.tolist()
    ]
    ends_RT = torch.tensor([[len(part) for part in row] for row in split]).cumsum(1) - 1
    rows = [torch.tensor([id for part in row for id in part]) for row in split]
    return pad_sequence(rows, batch_first=True), ends_RT


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Inside this context no weight of `model` needs a gradient, which saves memory for
    activations."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)

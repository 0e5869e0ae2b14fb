"""During training, computes the codes of new tokens from their pieces with a small network; after
grounded compositional outputs (GroC, Pappas, Mulcaire and Smith 2020, arXiv 2009.11523, section 3),
which compute words from characters.

    c_i = own_i + s V silu(sum_j p_j * (U x_j) / sqrt(n_i))       over the n_i pieces j of token i

x_j is the backbone's embedding of piece j, p_j a vector of weights for position j, and s the root
mean square of the initial codes. V starts at 0, so that codes do not change at first. Codes are
used for both embeddings and head (`tuner/new_tokens.py`), so the network is too. Other than in
GroC, each token also has its own row (own_i), because 4,000 tokens are few. After training, c_i
replaces the rows, so that nothing else is saved.

    compose(model, pieces)      before training
    settle(model)               before saving

Experimental, because it has not been shown to help: of three seeds on one backbone, one was better,
and two were worse by more (LAB.md, "what new tokens start from"). During training, the weights of
the network are not counted in the budget.

Suffixes: N new tokens, K their rank, P pieces of all tokens in a row, U different pieces, D width
of the embeddings.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from neutral_residues.errors import UserError
from neutral_residues.tuner.embeddings import embeddings_layer
from neutral_residues.tuner.new_tokens import NewTokens

PLACES = 16
"""Number of positions of a piece in its token with weights of their own; later ones share the
last."""


class ComposedCodes(nn.Module):
    """The network, as a parametrisation (`torch.nn.utils.parametrize`) of the codes (N, K); see the
    module docstring.

    Args:
        codes_NK: the initial codes.
        pieces: for each new token, the backbone's tokens that spell the same text.
        embeddings: the backbone's embeddings.
    """

    rows_UD: Tensor
    piece_P: Tensor
    place_P: Tensor
    token_P: Tensor
    shrink_N1: Tensor

    def __init__(
        self, codes_NK: Tensor, pieces: Sequence[Sequence[int]], embeddings: nn.Module
    ) -> None:
        super().__init__()
        device, rank = codes_NK.device, codes_NK.shape[1]
        ids_U = sorted({id for token in pieces for id in token})
        number = {id: i for i, id in enumerate(ids_U)}
        with torch.no_grad():
            rows_UD = embeddings(torch.tensor(ids_U, device=device)).float()
            self.size = float(codes_NK.square().mean().sqrt())
        places = [min(j, PLACES - 1) for token in pieces for j in range(len(token))]
        lengths_N = torch.tensor([len(token) for token in pieces], device=device)
        constants = {
            "rows_UD": rows_UD / rows_UD.square().mean().sqrt(),
            "piece_P": torch.tensor([number[id] for token in pieces for id in token]),
            "place_P": torch.tensor(places),
            "token_P": torch.arange(len(pieces), device=device).repeat_interleave(lengths_N),
            "shrink_N1": lengths_N[:, None].float().rsqrt(),
        }
        for name, tensor in constants.items():
            self.register_buffer(name, tensor.to(device), persistent=False)
        settings: dict[str, Any] = {"bias": False, "device": device}
        self.project = nn.Linear(rows_UD.shape[1], rank, **settings)
        self.places = nn.Parameter(1 + 0.5 * torch.randn(PLACES, rank, device=device))
        self.out = nn.Linear(rank, rank, **settings)
        nn.init.normal_(self.project.weight, std=1 / math.sqrt(rows_UD.shape[1]))
        nn.init.zeros_(self.out.weight)

    def forward(self, own_NK: Tensor) -> Tensor:
        """(N, K) own rows of the tokens -> (N, K) their codes."""
        with torch.autocast(own_NK.device.type, enabled=False):
            in_place_PK = self.project(self.rows_UD)[self.piece_P] * self.places[self.place_P]
            sums_NK = torch.zeros_like(own_NK).index_add(0, self.token_P, in_place_PK)
            return own_NK + self.size * self.out(F.silu(sums_NK * self.shrink_N1))


def compose(model: nn.Module, pieces: Sequence[Sequence[int]], name: str = "default") -> int:
    """Let the network compute the codes of extension `name`. Returns the number of its weights,
    which are trained.

    Args:
        pieces: for each new token, the backbone's tokens that spell the same text.

    Raises:
        UserError: for an extension without new tokens, or with another number of them.
    """
    tokens, embeddings = _place(model, name)
    if len(pieces) != tokens.num_tokens:
        allowed = f"those of {tokens.num_tokens} new tokens"
        raise UserError("pieces", got=len(pieces), allowed=allowed)
    network = ComposedCodes(tokens.codes.weight, pieces, embeddings)
    parametrize.register_parametrization(tokens.codes, "weight", network)
    return sum(parameter.numel() for parameter in network.parameters())


def settle(model: nn.Module, name: str = "default") -> None:
    """Replace the rows of extension `name` by its computed codes, and remove the network."""
    tokens, _ = _place(model, name)
    parametrize.remove_parametrizations(tokens.codes, "weight", leave_parametrized=True)


def _place(model: nn.Module, name: str) -> tuple[NewTokens, nn.Module]:
    """The new tokens of extension `name`, and the backbone's embeddings."""
    layer = embeddings_layer(model)
    tokens = layer.tokens(name) if layer is not None and name in layer.known_adapters() else None
    if layer is None or tokens is None:
        raise UserError(f"extension {name!r} has no new tokens", do="set new_tokens")
    return tokens, layer.base_layer

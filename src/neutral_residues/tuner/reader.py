"""One gate for a whole extension, which reads the last tokens of the text; ours and not the
paper's.

    e_t = W_2 silu(W_1 r_t)                       r_t: embedding of token t, divided by its RMS
    s_t = v . silu(c + sum_j C_j e_{t-j}) + b     j = 0 ... 15, e is 0 before the text's first token
    g_t = relu(s_t)                               the gate of every layer and of the head at token t

At the first token of a text s is 0: one token does not tell the language, and later tokens attend
to the first more than to any other, so a gate that opens there changes them all (LAB.md, "the gate
on a text's first token").

A gate that reads its layer's input knows only what the backbone has found out about the language up
to that layer, which is little in the first layers, and each layer decides separately. This gate
decides once for each token, from the text alone: it does not depend on the adapters, on the layer,
or on text more than 16 tokens back (LAB.md, "what a gate could know, and gates that read the
text").

    symbol   shape       name in checkpoints             meaning
    W_1      32 x D      neutral_residues.rows           two layers that see one token
    W_2      8 x 32      neutral_residues.code
    C_j, c   32 x 8, 32  neutral_residues.window         the last 16 tokens, the oldest first
    v, b     1 x 32, 1   neutral_residues.block_gate     v = 0 and b = 1 at the start: open

In training, the gate treats every 128 tokens as a new text. Rows of 512 tokens have few beginnings
of texts, and gates trained on so few opened at the beginning of chat prompts (LAB.md, "windows of
512 tokens, and how texts begin"). That is still not enough: a second gate, with the same weights,
is computed at each token as if the text had begun 1 to 8 tokens before it. It gates nothing; the
local loss trains it (`losses.py`; LAB.md, "a gate that learns how texts begin").

In generation, the codes e of earlier tokens are stored in the backbone's cache (`kept_codes.py`).

Suffixes: B rows, T tokens of this pass, S of these and earlier tokens, W = 16 tokens of a window,
C = 8 numbers of a code, H = 32 hidden numbers.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neutral_residues.config.choices import BlockGate
from neutral_residues.tuner.neutral import Gate
from neutral_residues.tuner.thresholds import Threshold

WINDOW, HIDDEN, CODE = 16, 32, 8
BEGINS_ANEW, MOST_BEFORE = 128, 8


class TokenReader(nn.Module):
    """A gate that reads embeddings; see the module docstring. `width_in` is D, their width."""

    def __init__(self, width_in: int, kind: BlockGate = "relu") -> None:
        super().__init__()
        self.kind = kind
        self.threshold: Threshold | None = None
        self.rows = nn.Linear(width_in, HIDDEN)
        self.code = nn.Linear(HIDDEN, CODE)
        self.window = nn.Linear(CODE * WINDOW, HIDDEN)
        self.block_gate = nn.Linear(HIDDEN, 1)

    @torch.no_grad()
    def reset_parameters(self, **_: Any) -> None:
        """Initialise for training: v = 0 and b = 1, so that the gate is open at every token; W_1
        and W_2 as `nn.Linear` does, C_j with variance 2/(8 x 16), c = 0."""
        self.rows.reset_parameters()
        self.code.reset_parameters()
        nn.init.normal_(self.window.weight, std=math.sqrt(2 / self.window.in_features))
        nn.init.zeros_(self.window.bias)
        nn.init.zeros_(self.block_gate.weight)
        nn.init.ones_(self.block_gate.bias)

    def codes(self, embeddings_BTD: Tensor) -> Tensor:
        """Embeddings (B, T, D) -> codes e (B, T, C), each token separately."""
        if not torch.is_autocast_enabled(embeddings_BTD.device.type):
            embeddings_BTD = embeddings_BTD.to(self.rows.weight.dtype)
        rows_BTD = F.rms_norm(embeddings_BTD, embeddings_BTD.shape[-1:], eps=1e-12)
        codes: Tensor = self.code(F.silu(self.rows(rows_BTD)))
        return codes

    def forward(self, windows_BSCW: Tensor) -> Tensor:
        """Gate logits s (B, S, 1) from the codes of the last W tokens at each token, which are 0
        where there is no text."""
        hidden_BSH = F.silu(self.window(windows_BSCW.transpose(-1, -2).flatten(-2)))
        logits_BS1: Tensor = self.block_gate(hidden_BSH)
        if self.kind != "relu":
            return logits_BS1
        is_first_BS1 = ~windows_BSCW[..., -2].any(-1, keepdim=True)
        return logits_BS1.masked_fill(is_first_BS1, 0)

    def gates(
        self,
        codes_BTC: Tensor,
        before_BWC: Tensor | None,
        positions_BT: Tensor | None,
        num_more: int = 0,
    ) -> Gate:
        """The gates at the T tokens of a pass, and at `num_more` tokens before it; in training (not
        in generation) with the second gate.

        Args:
            codes_BTC: codes of the pass.
            before_BWC: codes of earlier tokens, from the cache; None if there are none.
            positions_BT: position of each token in its text, for packed rows, so that windows stop
                at the beginning of a text; None for one text per row.
        """
        if not self.training or before_BWC is not None:
            return self._gates(codes_BTC, before_BWC, positions_BT, num_more)
        if positions_BT is None:  # padding, also on the left, has codes of 0
            positions_BT = codes_BTC.any(-1).cumsum(1).sub(1).clamp(min=0)
        positions_BT = positions_BT % BEGINS_ANEW
        lately_BT = positions_BT.minimum(1 + positions_BT % MOST_BEFORE)
        gate, begun = (
            self._gates(codes_BTC, before_BWC, it, num_more) for it in (positions_BT, lately_BT)
        )
        return Gate(gate.gate, gate.logits, begun.gate)

    def _gates(
        self,
        codes_BTC: Tensor,
        before_BWC: Tensor | None,
        positions_BT: Tensor | None,
        num_more: int,
    ) -> Gate:
        num_earlier = self.over - 1 + num_more
        num_tokens = num_earlier + codes_BTC.shape[1]
        if before_BWC is not None:
            codes_BTC = torch.cat([before_BWC.to(codes_BTC.dtype), codes_BTC], dim=1)
        num_missing = WINDOW - 1 + num_tokens - codes_BTC.shape[1]
        padded_BSC = F.pad(codes_BTC, (0, 0, num_missing, 0))
        windows_BSCW = padded_BSC.unfold(1, WINDOW, 1)
        if positions_BT is not None:
            positions_BT = with_earlier(positions_BT, num_earlier)
            same_text_BSW = in_same_text(positions_BT, WINDOW)
            windows_BSCW = windows_BSCW * same_text_BSW[:, :, None].to(codes_BTC.device)
        logits_BS1 = self(windows_BSCW)
        if self.over == 1:
            return Gate.of(self.kind, logits_BS1, self.threshold)
        is_text_BS = padded_BSC[:, WINDOW - 1 :].any(-1)  # other codes are 0
        mean_BS1 = mean_gates(logits_BS1, is_text_BS, positions_BT, self.over)
        return Gate.of(self.kind, logits_BS1[:, self.over - 1 :], self.threshold, mean_BS1)

    @property
    def over(self) -> int:
        """Number of tokens over which its threshold takes the mean gate; 1 without a threshold."""
        return 1 if self.threshold is None else self.threshold.over

    @property
    def num_before(self) -> int:
        """Number of tokens before a pass whose codes it needs."""
        return WINDOW - 1 + self.over - 1


def mean_gates(
    logits_BS1: Tensor, is_text_BS: Tensor, positions_BS: Tensor | None, over: int
) -> Tensor:
    """Mean (B, T, 1) of the gates relu(logits) over the last `over` tokens, or over fewer if the
    text has fewer so far. S counts the T tokens and the over - 1 before them."""
    counts_BTW = is_text_BS.unfold(1, over, 1)
    if positions_BS is not None:
        counts_BTW = counts_BTW & in_same_text(positions_BS[:, over - 1 :], over)
    gates_BTW = F.relu(logits_BS1[..., 0]).unfold(1, over, 1) * counts_BTW
    return (gates_BTW.sum(-1) / counts_BTW.sum(-1).clamp(min=1))[..., None]


def in_same_text(positions_BT: Tensor, window: int) -> Tensor:
    """(B, T, W): whether each of the last W tokens, oldest first, belongs to the same text as the
    token, from the token's position in its text."""
    distances_W = torch.arange(window - 1, -1, -1, device=positions_BT.device)
    return positions_BT[..., None] >= distances_W


def with_earlier(positions_BT: Tensor, number: int) -> Tensor:
    """The positions with those of `number` earlier tokens before them, as if all were in the same
    text."""
    if not number:
        return positions_BT
    earlier = torch.arange(-number, 0, device=positions_BT.device)
    return torch.cat([positions_BT[:, :1] + earlier, positions_BT], dim=1)


def num_reader_weights(width_in: int) -> int:
    """Number of weights of a `TokenReader`."""
    per_token = (width_in + 1) * HIDDEN + (HIDDEN + 1) * CODE
    return per_token + (CODE * WINDOW + 1) * HIDDEN + HIDDEN + 1

"""One gate for a whole extension, ours and not the paper's: it reads the last tokens of the text.

    e_t = W_2 silu(W_1 r_t)                       r_t: embedding of token t, divided by its RMS
    s_t = v . silu(c + sum_j C_j e_{t-j}) + b     j = 0 ... 15, e is 0 before the text's first token
    g_t = relu(s_t)                               the gate of every layer and of the head at token t

At the first token of a text s is 0: one token tells no language, and every later token attends to
that one more than to any other, so a gate that opens there changes them all (LAB.md, "the gate on a
text's first token").

A gate that reads its layer's input knows what the backbone knows of the language there, in the
first layers little, and each layer decides for itself. This one decides once for each token, from
the text alone: what it says does not depend on the adapters, on the layer, or on text more than 16
tokens back (LAB.md, "what a gate could know, and gates that read the text").

    symbol   shape       name in checkpoints             meaning
    W_1      32 x D      neutral_residues.rows           two layers that see one token
    W_2      8 x 32      neutral_residues.code
    C_j, c   32 x 8, 32  neutral_residues.window         the last 16 tokens, the oldest first
    v, b     1 x 32, 1   neutral_residues.block_gate     v = 0 and b = 1 at the start: open

While it trains, every text begins anew for it after 128 tokens. Rows of 512 tokens hold few
beginnings, and a gate that had met few of them opened on those of chat prompts (LAB.md, "windows of
512 tokens, and how texts begin").

Where text is generated token by token, the codes e of earlier tokens are kept with what the
backbone keeps of them (`kept_codes.py`).

Suffixes: B rows, T tokens of this pass, W of a window, C 8 numbers of a code.
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
BEGINS_ANEW = 128


class TokenReader(nn.Module):
    """The gate's logit from embeddings; see the head of this file. `width_in` is D."""

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
        """Open on every token: v = 0, b = 1; W_1 and W_2 as fresh linear layers, C_j with the usual
        variance 2/(8 x 16)."""
        self.rows.reset_parameters()
        self.code.reset_parameters()
        nn.init.normal_(self.window.weight, std=math.sqrt(2 / self.window.in_features))
        nn.init.zeros_(self.window.bias)
        nn.init.zeros_(self.block_gate.weight)
        nn.init.ones_(self.block_gate.bias)

    def codes(self, embeddings_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, C), each token by itself."""
        if not torch.is_autocast_enabled(embeddings_BTD.device.type):
            embeddings_BTD = embeddings_BTD.to(self.rows.weight.dtype)
        rows_BTD = F.rms_norm(embeddings_BTD, embeddings_BTD.shape[-1:], eps=1e-12)
        codes: Tensor = self.code(F.silu(self.rows(rows_BTD)))
        return codes

    def forward(self, windows_BSCW: Tensor) -> Tensor:
        """s, (B, S, 1), from the codes of the last W tokens, which are 0 where there is no text."""
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
        """The gates at T tokens and at `num_more` before them, from their codes and those of the
        tokens before them, in the same text where positions within texts are known."""
        if self.training and codes_BTC.shape[1] > BEGINS_ANEW:
            begun_1T = torch.arange(codes_BTC.shape[1], device=codes_BTC.device)[None] % BEGINS_ANEW
            positions_BT = begun_1T if positions_BT is None else positions_BT.minimum(begun_1T)
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
        is_text_BS = padded_BSC[:, WINDOW - 1 :].any(-1)  # codes are 0 before it, and for padding
        mean_BS1 = mean_gates(logits_BS1, is_text_BS, positions_BT, self.over)
        return Gate.of(self.kind, logits_BS1[:, self.over - 1 :], self.threshold, mean_BS1)

    @property
    def over(self) -> int:
        """Over how many tokens its threshold, if it has one, takes the mean of gates."""
        return 1 if self.threshold is None else self.threshold.over

    @property
    def num_before(self) -> int:
        """How many tokens before a pass can matter to it."""
        return WINDOW - 1 + self.over - 1


def mean_gates(
    logits_BS1: Tensor, is_text_BS: Tensor, positions_BS: Tensor | None, over: int
) -> Tensor:
    """(B, T, 1) the mean of the trained gates over the last `over` tokens, as many as there are in
    the same text; S is T and the over - 1 tokens before them."""
    counts_BTW = is_text_BS.unfold(1, over, 1)
    if positions_BS is not None:
        counts_BTW = counts_BTW & in_same_text(positions_BS[:, over - 1 :], over)
    gates_BTW = F.relu(logits_BS1[..., 0]).unfold(1, over, 1) * counts_BTW
    return (gates_BTW.sum(-1) / counts_BTW.sum(-1).clamp(min=1))[..., None]


def in_same_text(positions_BT: Tensor, window: int) -> Tensor:
    """(B, T, W) whether the last W tokens, the oldest first, are of the text that each token is
    in, by its place there."""
    distances_W = torch.arange(window - 1, -1, -1, device=positions_BT.device)
    return positions_BT[..., None] >= distances_W


def with_earlier(positions_BT: Tensor, number: int) -> Tensor:
    """The places of so many tokens before these as well, as if they were of the same text."""
    if not number:
        return positions_BT
    earlier = torch.arange(-number, 0, device=positions_BT.device)
    return torch.cat([positions_BT[:, :1] + earlier, positions_BT], dim=1)


def num_reader_weights(width_in: int) -> int:
    """Of one `TokenReader`."""
    per_token = (width_in + 1) * HIDDEN + (HIDDEN + 1) * CODE
    return per_token + (CODE * WINDOW + 1) * HIDDEN + HIDDEN + 1

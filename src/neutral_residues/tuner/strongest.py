"""Several extensions in one model, ours and not the paper's: at a token where several gates are
open, only one extension is active.

    m_i = sum of g_i over the last N tokens of the text
    of the extensions with g_i > 0 at a token, the one with the largest m_i keeps its gate there

Gates open on the text of another extension if they were not trained to stay closed there, and the
sum of residues that were trained separately is not useful. With N = 1 a single token decides, which
is nearly random; 32 tokens tell the language. Extensions with a closed gate are left out, so
another one becomes active as soon as the text switches its language (LAB.md, "several extensions in
one model").

Suffixes: B rows, T tokens of a pass, S of these and the N - 1 before them, E extensions.
"""

import torch
from torch import Tensor

from neutral_residues.tuner.neutral import Gate
from neutral_residues.tuner.reader import in_same_text


def strongest(gates: dict[str, Gate], positions_BT: Tensor | None, over: int) -> dict[str, Gate]:
    """Close all gates but the strongest at each token.

    Args:
        gates: extension -> ReLU gates (B, S, 1).
        positions_BT: position of each token in its text, for packed rows; None for one text a row.
        over: N.

    Returns:
        Extension -> gates (B, T, 1).
    """
    sums_EBT = torch.stack([_sums(gate.gate, positions_BT, over) for gate in gates.values()])
    now_EBT = torch.stack([gate.gate[:, over - 1 :, 0] for gate in gates.values()])
    first_BT = sums_EBT.where(now_EBT > 0, -1).argmax(0)
    return {
        name: _only_where(first_BT == number, gate.map(lambda values: values[:, over - 1 :]))
        for number, (name, gate) in enumerate(gates.items())
    }


def _sums(gate_BS1: Tensor, positions_BT: Tensor | None, over: int) -> Tensor:
    """Sums (B, T) of the gates over the last tokens of the same text."""
    last_BTN = gate_BS1[..., 0].unfold(1, over, 1)
    if positions_BT is not None:
        last_BTN = last_BTN * in_same_text(positions_BT, over).to(last_BTN.device)
    return last_BTN.sum(-1)


def _only_where(is_first_BT: Tensor, gate: Gate) -> Gate:
    here_BT1 = is_first_BT[..., None]
    logits_BT1 = torch.where(here_BT1, gate.logits, gate.logits.clamp(max=0))
    return Gate(torch.where(here_BT1, gate.gate, 0), logits_BT1, gate.begun)

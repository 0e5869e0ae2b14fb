"""Several extensions in one pass, ours and not the paper's: the one whose text it is stills the
others.

    m_i = sum of g_i over the last N tokens of the text
    extension i keeps its gate at a token where m_i is the largest, and has 0 elsewhere

A gate that was never taught to stay shut on another extension's text opens there, and residues that
were trained apart do not add up (LAB.md, "several languages in one model, a first look"). N = 1
decides token by token, which is a coin tossed anew; over 32 tokens it is a detector of language.
Where every gate was 0, every gate stays 0.

Suffixes: B rows, T tokens of a pass, S of these and the N - 1 before them, E extensions.
"""

import torch
from torch import Tensor

from neutral_residues.tuner.neutral import Gate
from neutral_residues.tuner.reader import in_same_text


def strongest(gates: dict[str, Gate], positions_BT: Tensor | None, over: int) -> dict[str, Gate]:
    """(B, S, 1) gates of all extensions by name -> (B, T, 1), 0 but for the strongest one's; ReLU
    gates, and `over` is N."""
    sums_EBT = torch.stack([_sums(gate.gate, positions_BT, over) for gate in gates.values()])
    first_BT = sums_EBT.argmax(0)
    return {
        name: _only_where(first_BT == number, Gate(*(it[:, over - 1 :] for it in gate)))
        for number, (name, gate) in enumerate(gates.items())
    }


def _sums(gate_BS1: Tensor, positions_BT: Tensor | None, over: int) -> Tensor:
    """(B, T) over the last tokens of the same text."""
    last_BTN = gate_BS1[..., 0].unfold(1, over, 1)
    if positions_BT is not None:
        last_BTN = last_BTN * in_same_text(positions_BT, over).to(last_BTN.device)
    return last_BTN.sum(-1)


def _only_where(is_first_BT: Tensor, gate: Gate) -> Gate:
    shut = [torch.zeros_like(gate.gate), gate.logits.clamp(max=0)]
    return Gate(
        *(torch.where(is_first_BT[..., None], *pair) for pair in zip(gate, shut, strict=True))
    )

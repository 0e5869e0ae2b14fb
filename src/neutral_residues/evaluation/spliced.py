"""Text that switches between source and target: what it costs, and which gates close again.

Windows are made of blocks of both sets as training rows are spliced (`data/splicing.py`), each text
going on where it stopped; every other window begins with target text. Both models score the window
and the two blocks alone: so a token's nats after a switch stand against those of the same token,
after the same words of its own language, without the other language between them.

Suffixes: T tokens of a window, L layers.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from neutral_residues.config.run import SPLICED_TOKENS, Role
from neutral_residues.data.splicing import segments, splice, starts
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.inference import as_backbone, inference
from neutral_residues.evaluation.sums import ResidueStats
from neutral_residues.losses import next_token_nats
from neutral_residues.results.spliced import AfterSwitch, GatesSinceSwitch, Spliced
from neutral_residues.tuner.layer import observe_residues, residue_layers

Array = NDArray[Any]
Since = tuple[int, int | None]
SINCE: tuple[Since, ...] = ((1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, None))
"""Tokens since a switch, the first and the last that are counted together."""
ROLES: tuple[Role, Role] = ("source", "target")


def measure_spliced(
    model: nn.Module,
    streams: Sequence[TokenStream],
    *,
    context_tokens: int,
    num_windows: int,
    reference: nn.Module | None = None,
) -> Spliced | None:
    """Measure the first source and the first target set in turns, with at most `num_windows`
    windows of `context_tokens`; for `reference` see `evaluate`. Chats are not measured so.

    Returns:
        None without a set of each role, or where a set or a window is too short.
    """
    texts = [stream for stream in streams if stream.predicted is None]
    sets = [next((s for s in texts if s.role == role), None) for role in ROLES]
    found = [stream for stream in sets if stream is not None]
    num_windows = min([num_windows, *(stream.num_tokens // context_tokens for stream in found)])
    if len(found) < len(ROLES) or num_windows == 0 or context_tokens < SPLICED_TOKENS:
        return None
    stats = ResidueStats(residue_layers(model))
    sums = [_Sums(), _Sums()]
    with inference(model, reference):
        for number in range(num_windows):
            window = _Window.of(found, number, num_windows, context_tokens)
            rows = torch.from_numpy(window.rows_3T).to(next(model.parameters()).device)
            stats.start(*rows.shape)
            with observe_residues(stats.layers, stats):
                nats_3T = {"extended": _nats(model, rows)}
            with as_backbone(model, reference) as backbone:
                nats_3T["backbone"] = _nats(backbone, rows)
            for role, of_role in enumerate(sums):
                of_role.add_nats(window, role, nats_3T)
                if stats.gated:
                    closed_LT = torch.stack([zero[2].cpu() for zero in stats.gate_zero_BT.values()])
                    of_role.add_gates(window, role, closed_LT.numpy())
    if not all(of_role.num_tokens for of_role in sums):
        return None
    source, target = (s.result(stream) for s, stream in zip(sums, found, strict=True))
    size = {"num_windows": num_windows, "context_tokens": context_tokens}
    return Spliced(**size, source=source, target=target)


@dataclass(frozen=True)
class _Window:
    """One window and the texts that it is made of."""

    rows_3T: NDArray[np.int64]  # source block, target block, both in turns
    role_T: NDArray[np.int64]  # of each token in the third row: 0 source, 1 target
    own_T: NDArray[np.int64]  # where each stands in its own block
    since_T: NDArray[np.int64]  # tokens since the switch, itself included; 0 before the first

    @classmethod
    def of(
        cls, streams: Sequence[TokenStream], number: int, num_windows: int, context_tokens: int
    ) -> "_Window":
        blocks = [stream.blocks(context_tokens) for stream in streams]
        texts = [b[number * len(b) // num_windows].astype(np.int64) for b in blocks]
        segments_T = segments(context_tokens, np.random.default_rng((0, number)))
        first, second = (0, 1) if number % 2 == 0 else (1, 0)
        place_T = np.arange(context_tokens)
        since_T = place_T - np.maximum.accumulate(np.where(starts(segments_T), place_T, 0)) + 1
        return cls(
            rows_3T=np.stack([*texts, splice(texts[first], texts[second], segments_T)]),
            role_T=np.where(segments_T % 2 == 0, first, second),
            own_T=splice(place_T, place_T, segments_T),
            since_T=np.where(segments_T == 0, 0, since_T),
        )


@dataclass
class _Sums:
    """What adds up over the windows for tokens of one role."""

    num_tokens: int = 0
    nats: Counter[str] = field(default_factory=Counter)  # by model and text, as the result has them
    num_gates: Counter[Since] = field(default_factory=Counter)
    num_closed: Counter[Since] = field(default_factory=Counter)

    def add_nats(self, window: _Window, role: int, nats_3T: Mapping[str, Array]) -> None:
        """Nats by model, of the tokens of that role after a switch, but the first of each
        segment."""
        here_T = (window.role_T == role) & (window.since_T > 1)
        self.num_tokens += int(here_T.sum())
        for model, of_model in nats_3T.items():
            self.nats[f"{model}_nats"] += of_model[2, here_T].sum()
            self.nats[f"{model}_alone_nats"] += of_model[role, window.own_T[here_T]].sum()

    def add_gates(self, window: _Window, role: int, closed_LT: Array) -> None:
        """`closed_LT`: whether the gate of each layer is exactly 0 on reading each token."""
        for since in SINCE:
            first, last = since[0], since[1] or len(window.since_T)
            here_T = (first <= window.since_T) & (window.since_T <= last)
            closed = closed_LT[:, here_T & (window.role_T == role)]
            self.num_gates[since] += closed.size
            self.num_closed[since] += int(closed.sum())

    def result(self, stream: TokenStream) -> AfterSwitch:
        """These sums, named."""
        gates = [
            GatesSinceSwitch(
                first=since[0], last=since[1], num_gates=n, num_closed=self.num_closed[since]
            )
            for since, n in self.num_gates.items()
            if n
        ]
        num_bytes = self.num_tokens * stream.num_bytes / stream.num_tokens
        return AfterSwitch(
            name=stream.name,
            num_tokens=self.num_tokens,
            num_bytes=num_bytes,
            gates=gates,
            **self.nats,
        )


def _nats(model: nn.Module, rows: torch.Tensor) -> Array:
    """(3, T) nats of each token given those before in its row; 0 for the first, which has none."""
    nats = next_token_nats(model(input_ids=rows, use_cache=False).logits, rows)
    return np.pad(nats.double().cpu().numpy(), ((0, 0), (1, 0)))

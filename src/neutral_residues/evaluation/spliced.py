"""Measures both models on text that alternates between source and target (spliced text): the loss
after a switch, and whether gates close again.

A window alternates between a block of the source set and one of the target set, like spliced
training rows (`data/splicing.py`): after each switch, a text continues where it stopped, and every
other window begins with target text. Both models score the window, and what it holds of each block
alone. The nats of a token after a switch can thus be compared with those of the same token in its
own text, without the other language in between.

Windows, segments and distances are counted in the backbone's tokens. A new token of the extended
model stands for several of them (its pieces). It is replaced by its pieces if it would contain a
switch or the first token after one, or if its gate makes it impossible (`possible.py`). The nats of
a new token are counted at its first piece, its gates at its last.

Suffixes: T tokens of a window for the backbone, U for the extended model, L layers.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from neutral_residues.config.data import SPLICED_TOKENS, Role
from neutral_residues.data.splicing import segments, splice, starts
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.evaluate import OnProgress, vocabulary_size
from neutral_residues.evaluation.inference import as_backbone, inference
from neutral_residues.evaluation.possible import Pieces, cut_tokens, possible_tokens
from neutral_residues.evaluation.sums import ResidueStats
from neutral_residues.losses import next_token_nats
from neutral_residues.results.spliced import AfterSwitch, GatesSinceSwitch, Spliced
from neutral_residues.tuner.layer import observe_residues, residue_layers

Array = NDArray[Any]
Since = tuple[int, int | None]
SINCE: tuple[Since, ...] = ((1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, None))
"""Ranges (first, last) of the distance from a switch, in tokens, that are counted together."""
ROLES: tuple[Role, Role] = ("source", "target")


def measure_spliced(
    model: nn.Module,
    streams: Sequence[TokenStream],
    *,
    context_tokens: int,
    num_windows: int,
    reference: nn.Module | None = None,
    pieces: Pieces = (),
    on_progress: OnProgress | None = None,
) -> Spliced | None:
    """Measure both models on text that alternates between the first source set and the first target
    set of `streams` (chats are not used). `reference` and `pieces` are those of `evaluate`.

    Args:
        context_tokens: tokens of a window, in the backbone's tokenizer.
        num_windows: maximum number of windows.
        on_progress: called after each window with the names of both sets, the windows done and
            their total.

    Returns:
        None without a set of each role, or if a set or a window is too short.
    """
    found = [s for s in streams if s.predicted is None]
    sets = [next((s for s in found if s.role == role), None) for role in ROLES]
    first_new_id = vocabulary_size(model) - len(pieces)
    texts = [_Text.of(s, first_new_id, pieces) for s in sets if s is not None]
    num_windows = min([num_windows, *(it.stream.num_tokens // context_tokens for it in texts)])
    if len(texts) < len(ROLES) or num_windows == 0 or context_tokens < SPLICED_TOKENS:
        return None
    stats = ResidueStats(residue_layers(model))
    sums = [_Sums(), _Sums()]
    name = " and ".join(it.stream.name for it in texts) + " in turns"
    with inference(model, reference):
        for number in range(num_windows):
            window = _Window.of(texts, number, num_windows, context_tokens)
            own = [_Row.of(model, *row, first_new_id, pieces) for row in window.rows]
            *alone, spliced = own
            alone_T = {"extended": window.in_turns(_nats(model, alone))}
            stats.start(1, len(spliced.tokens))
            with observe_residues(stats.layers, stats):
                nats_T = {"extended": _nats(model, [spliced])[0]}
            *alone, spliced = (_Row.of_backbone(block_4T) for block_4T, _ in window.rows)
            with as_backbone(model, reference) as backbone:
                alone_T["backbone"] = window.in_turns(_nats(backbone, alone))
                nats_T["backbone"] = _nats(backbone, [spliced])[0]
            for role, of_role in enumerate(sums):
                of_role.add_nats(window, role, nats_T, alone_T)
                if stats.gated:
                    closed_LU = torch.stack([zero[0].cpu() for zero in stats.gate_zero_BT.values()])
                    of_role.add_gates(window, role, own[-1].last_U, closed_LU.numpy())
            if on_progress is not None:
                on_progress(name, number + 1, num_windows)
    if not all(of_role.num_tokens for of_role in sums):
        return None
    source, target = (s.result(it.stream) for s, it in zip(sums, texts, strict=True))
    size = {"num_windows": num_windows, "context_tokens": context_tokens}
    return Spliced(**size, source=source, target=target)


@dataclass(frozen=True)
class _Text:
    """A set in the backbone's tokens; for each of them, the extended model's token that contains
    it."""

    stream: TokenStream
    token: Array  # id of the containing token
    number: Array  # index of the containing token in the extended model's stream
    length: Array  # number of backbone tokens in the containing token

    @classmethod
    def of(cls, stream: TokenStream, first_new_id: int, pieces: Pieces) -> "_Text":
        is_new, lengths = stream.tokens >= first_new_id, np.ones(stream.num_tokens, dtype=np.int64)
        numbers = stream.tokens[is_new].astype(np.int64) - first_new_id
        lengths[is_new] = [len(pieces[number]) for number in numbers.tolist()]
        number = np.repeat(np.arange(stream.num_tokens), lengths)
        cut = cut_tokens(stream, is_new, first_new_id, pieces)
        return cls(cut, stream.tokens[number], number, lengths[number])

    def block(self, start: int, num_tokens: int) -> Array:
        """(4, T) for T backbone tokens from `start` on: their ids, and id, index and length of the
        extended model's token that contains each."""
        parts = (self.stream.tokens, self.token, self.number, self.length)
        return np.stack([part[start : start + num_tokens].astype(np.int64) for part in parts])


@dataclass(frozen=True)
class _Window:
    """One window: the spliced text, and those parts of both blocks that it consists of."""

    rows: list[tuple[Array, Array]]
    """Of the source part, the target part and the spliced text: (4, T) as `_Text.block`, and (T,)
    numbers; a new token must not contain tokens with different ones."""
    role_T: Array  # role of each token of the spliced text: 0 source, 1 target
    since_T: Array  # its distance from the last switch, from 1; 0 before the first

    @classmethod
    def of(
        cls, texts: Sequence[_Text], number: int, num_windows: int, context_tokens: int
    ) -> "_Window":
        numbers = [number * (it.stream.num_tokens // context_tokens) // num_windows for it in texts]
        blocks = [
            text.block(n * context_tokens, context_tokens)
            for text, n in zip(texts, numbers, strict=True)
        ]
        segments_T = segments(context_tokens, np.random.default_rng((0, number)))
        first, second = (0, 1) if number % 2 == 0 else (1, 0)
        place_T = np.arange(context_tokens)
        since_T = place_T - np.maximum.accumulate(np.where(starts(segments_T), place_T, 0)) + 1
        since_T = np.where(segments_T == 0, 0, since_T)
        role_T = np.where(segments_T % 2 == 0, first, second)
        spliced = splice(blocks[first], blocks[second], segments_T)
        part_T = 2 * segments_T + (since_T == 1)
        parts = [(spliced[:, here_T], part_T[here_T]) for here_T in (role_T == 0, role_T == 1)]
        return cls([*parts, (spliced, part_T)], role_T, since_T)

    def in_turns(self, values: Sequence[Array]) -> Array:
        """(T,) values for the tokens of the source part and of the target part, each at its place
        in the spliced text."""
        found_T = np.empty(len(self.role_T))
        for role, of_role in enumerate(values):
            found_T[self.role_T == role] = of_role
        return found_T


@dataclass(frozen=True)
class _Row:
    """A row as a model reads it."""

    tokens: torch.Tensor  # (U,)
    lengths: Array  # (U,) number of backbone tokens in each

    @classmethod
    def of(
        cls, model: nn.Module, block_4T: Array, part_T: Array, first_new_id: int, pieces: Pieces
    ) -> "_Row":
        """The row in the extended model's tokens."""
        found = _in_own_tokens(block_4T, part_T)
        found[1:] = possible_tokens(model, found[:1], found[1:], pieces)
        lengths = [1 if id < first_new_id else len(pieces[id - first_new_id]) for id in found]
        return cls(torch.tensor(found), np.array(lengths))

    @classmethod
    def of_backbone(cls, block_4T: Array) -> "_Row":
        """The row in the backbone's tokens."""
        return cls(torch.from_numpy(block_4T[0]), np.ones_like(block_4T[0]))

    @property
    def last_U(self) -> Array:
        """(U,) position of the last backbone token in each token."""
        return np.cumsum(self.lengths) - 1

    def at_first(self, values_U: Array) -> Array:
        """(T,) the value of each token at the first backbone token that it contains, 0 at the
        others."""
        found_T = np.zeros(self.lengths.sum())
        found_T[self.last_U + 1 - self.lengths] = values_U
        return found_T


def _in_own_tokens(block_4T: Array, part_T: Array) -> list[int]:
    """A row in the extended model's tokens; a token that is cut by the row, or by a change of
    `part_T`, is replaced by its backbone tokens."""
    old_T, token_T, number_T, length_T = block_4T
    ends = np.flatnonzero(np.diff(number_T) | np.diff(part_T)) + 1
    found: list[int] = []
    for place in np.split(np.arange(len(old_T)), ends):
        is_whole = len(place) == length_T[place[0]]
        found += token_T[place[:1]].tolist() if is_whole else old_T[place].tolist()
    return found


@dataclass
class _Sums:
    """Sums over all windows, for the tokens of one role."""

    num_tokens: int = 0
    nats: Counter[str] = field(default_factory=Counter)  # by the names of fields of `AfterSwitch`
    num_gates: Counter[Since] = field(default_factory=Counter)
    num_closed: Counter[Since] = field(default_factory=Counter)

    def add_nats(
        self, window: _Window, role: int, nats_T: Mapping[str, Array], alone_T: Mapping[str, Array]
    ) -> None:
        """Add the nats, under each model, of the tokens of this role after a switch, except the
        first token of each segment: in the spliced text, and each text alone."""
        here_T = (window.role_T == role) & (window.since_T > 1)
        self.num_tokens += int(here_T.sum())
        for model in nats_T:
            self.nats[f"{model}_nats"] += nats_T[model][here_T].sum()
            self.nats[f"{model}_alone_nats"] += alone_T[model][here_T].sum()

    def add_gates(self, window: _Window, role: int, last_U: Array, closed_LU: Array) -> None:
        """Count gates. `closed_LU`: whether the gate of each layer is exactly 0 at each token;
        `last_U`: position of the last backbone token in each token."""
        since_U, role_U = window.since_T[last_U], window.role_T[last_U]
        for since in SINCE:
            first, last = since[0], since[1] or len(window.since_T)
            here_U = (first <= since_U) & (since_U <= last) & (role_U == role)
            closed = closed_LU[:, here_U]
            self.num_gates[since] += closed.size
            self.num_closed[since] += int(closed.sum())

    def result(self, stream: TokenStream) -> AfterSwitch:
        """The sums as a part of the record."""
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


def _nats(model: nn.Module, rows: Sequence[_Row]) -> list[Array]:
    """For each row, (T,) nats of each token, given those before it in the row, at the first
    backbone token that it contains; 0 for the first token. Rows are padded on the right."""
    padded = pad_sequence([row.tokens for row in rows], batch_first=True)
    padded = padded.to(next(model.parameters()).device)
    nats = next_token_nats(model(input_ids=padded, use_cache=False).logits, padded)
    nats_BU = np.pad(nats.double().cpu().numpy(), ((0, 0), (1, 0)))
    return [
        row.at_first(nats_U[: len(row.tokens)]) for row, nats_U in zip(rows, nats_BU, strict=True)
    ]

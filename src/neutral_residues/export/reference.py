"""What the live model makes of some tokens on which its adapters speak, to be found again in what
was exported.

A gate that is trained to stay shut stays shut on most strange text too, and a silent adapter proves
nothing about an export. So rows of the user's text, if there is one, and of random tokens are tried
until every layer's residue is heard on one of those that are kept. Layers that stay silent all the
same are counted, and the count is shown; if all do, nothing can be said, and that is an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from neutral_residues.backbone import context_length
from neutral_residues.errors import UserError
from neutral_residues.tuner.layer import NeutralResiduesLayer, no_skipping, residue_layers

PROBE_TOKENS = 32
MAX_ROWS, MIN_ROWS = 4, 2
ROWS_PER_DRAW, MAX_DRAWS = 32, 8


@dataclass(frozen=True)
class Seen:
    """What the live model made of the probe.

    Attributes:
        token_ids_BT: the tokens.
        logits_BTV: its logits.
        inputs: name of a block -> what it and its residue read, (B, T, D).
        residues: name of a block -> what the active adapters added to it, (B, T, D).
    """

    token_ids_BT: Tensor
    logits_BTV: Tensor
    inputs: dict[str, Tensor]
    residues: dict[str, Tensor]

    @property
    def loudness_BL(self) -> Tensor:
        """Largest absolute number of each row's residue, layer by layer; (B, 0) where nothing
        stands beside a block."""
        rows = self.token_ids_BT.shape[0]
        by_layer = [
            residue.reshape(rows, -1).abs().amax(dim=1) for residue in self.residues.values()
        ]
        return torch.stack(by_layer, dim=1) if by_layer else torch.zeros(rows, 0)

    @property
    def num_silent(self) -> int:
        """Layers whose residue is 0 on every token, so that nothing is known of them."""
        return int((self.loudness_BL.amax(dim=0) == 0).sum())

    def check_heard(self) -> None:
        """Raise a UserError if there are adapters and none of them did anything."""
        if self.residues and self.num_silent == len(self.residues):
            raise UserError(
                "every gate stayed shut on every token that was tried, so the export could not be"
                " compared",
                do=(
                    f"give some text of the target, {self.token_ids_BT.shape[1]} tokens or more"
                    " (--text)"
                ),
            )


def look_at(model: PeftModel, text_ids: Sequence[int] = ()) -> Seen:
    """Run the live model on up to `MAX_ROWS` rows of tokens on which as many layers as possible
    speak.

    Args:
        text_ids: tokens of a text on which they should.
    """
    length = min(PROBE_TOKENS, context_length(model.config) or PROBE_TOKENS)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(0)
    num_rows = min(len(text_ids) // length, ROWS_PER_DRAW)
    kept_BT = torch.tensor(text_ids[: num_rows * length], dtype=torch.long).view(num_rows, length)
    for _ in range(MAX_DRAWS):
        drawn_BT = torch.randint(vocabulary, (ROWS_PER_DRAW, length), generator=generator)
        candidates_BT = torch.cat([kept_BT, drawn_BT])
        kept_BT = candidates_BT[_covering_rows(_run(model, candidates_BT).loudness_BL > 0)]
        seen = _run(model, kept_BT)
        if seen.num_silent == 0:
            break
    return seen


def _covering_rows(speaks_BL: Tensor) -> list[int]:
    """Rows that together have as many layers speak as `MAX_ROWS` rows taken one by one can."""
    chosen: list[int] = []
    missing_L = torch.ones(speaks_BL.shape[1], dtype=torch.bool)
    while len(chosen) < MAX_ROWS and (bool(missing_L.any()) or len(chosen) < MIN_ROWS):
        gains_B = (speaks_BL & missing_L).sum(dim=1)
        gains_B[chosen] = -1
        row = int(gains_B.argmax())
        if gains_B[row] <= 0 and len(chosen) >= MIN_ROWS:
            break
        chosen.append(row)
        missing_L &= ~speaks_BL[row]
    return chosen


@torch.no_grad()
def _run(model: PeftModel, token_ids_BT: Tensor) -> Seen:
    inputs: dict[str, Tensor] = {}
    residues: dict[str, Tensor] = {}

    def listen(name: str) -> Any:
        def hook(
            layer: NeutralResiduesLayer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            x = inputs[name] = args[0] if args else kwargs["hidden_states"]
            active = layer.active_names()
            if active:
                residues[name] = torch.stack(
                    [layer.residue(x, adapter).delta for adapter in active]
                ).sum(dim=0)

        return hook

    layers = residue_layers(model.get_base_model())
    handles = [
        layer.register_forward_hook(listen(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        with no_skipping(model):  # exported code skips nothing
            logits_BTV = model(input_ids=token_ids_BT).logits
    finally:
        for handle in handles:
            handle.remove()
    return Seen(token_ids_BT, logits_BTV, inputs, residues)

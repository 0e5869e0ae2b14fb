"""The local loss during one forward pass, for a training loop of your own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from neutral_residues.config.choices import LocalLoss, check_choices
from neutral_residues.data.labels import SOURCE, TARGET
from neutral_residues.errors import UserError
from neutral_residues.losses import counted_tokens, local_loss_sum
from neutral_residues.tuner.layer import (
    AnyResidue,
    NeutralResiduesLayer,
    observe_residues,
    residue_layers,
)


class LocalLossTerm:
    """Collects the local loss of every residue during one forward pass.

    Attributes:
        open_gates: for SOURCE and TARGET, how many (token, layer) gates were not exactly 0: float32
            scalars.
        num_gated: residues computed so far that have a block gate.
    """

    def __init__(self, domain_labels: Tensor, kind: LocalLoss, num_residues: int) -> None:
        self.domain_labels = domain_labels
        self.kind = kind
        self.num_residues = num_residues
        self.open_gates: dict[int, Tensor] = {}
        self.num_gated = 0
        self._terms: list[Tensor] = []
        self._recording = True

    def on_residue(
        self, layer: NeutralResiduesLayer, residue: AnyResidue, base_output: Tensor
    ) -> None:
        """Add the sum of one residue over its tokens, in nats or as relative sizes.

        Raises:
            UserError: if the model runs a second time.
        """
        # Recomputation under gradient checkpointing runs this again and must save the same tensors,
        # so the term is computed every time and only kept the first.
        term = local_loss_sum(residue, base_output, self.domain_labels, self.kind)
        if not self._recording:
            return
        if len(self._terms) < self.num_residues:
            self._terms.append(term)
            self._count_open(residue)
        elif term.requires_grad == self._terms[0].requires_grad:
            # One without gradients after one with them only makes outputs (SFTTrainer does that).
            what = "the local loss is that of one forward pass, and the model ran twice"
            raise UserError(what, do="run it once")

    def _count_open(self, residue: AnyResidue) -> None:
        if residue.gate is None:
            return
        self.num_gated += 1
        is_open = residue.gate.detach().squeeze(-1) != 0
        labels = self.domain_labels.reshape(is_open.shape)
        for domain in (SOURCE, TARGET):
            count = (is_open & (labels == domain)).sum(dtype=torch.float32)
            self.open_gates[domain] = self.open_gates.get(domain, 0) + count

    def mean(self, num_tokens: Tensor | int | None = None) -> Tensor:
        """The local loss per counted token, of all residues together, in float32. Call it after the
        forward pass.

        Args:
            num_tokens: what to divide by: counted tokens of the whole accumulated batch; default:
                of this pass.

        Raises:
            UserError: if not every residue ran, or the term lost its gradient (reentrant gradient
                checkpointing).
        """
        self._recording = False
        if len(self._terms) != self.num_residues:
            raise UserError(
                f"the local loss got {len(self._terms)} of {self.num_residues} residues",
                do="run the forward pass inside the block, with the adapter enabled",
            )
        if torch.is_grad_enabled() and not all(term.requires_grad for term in self._terms):
            raise UserError(
                "the local loss has no gradient: reentrant gradient checkpointing drops it, or the"
                " adapter is frozen",
                do='give checkpointing the kwargs {"use_reentrant": False}, and load adapters with'
                " is_trainable=True",
            )
        if num_tokens is None:
            num_tokens = counted_tokens(self.domain_labels, self.kind)
        # A batch without a counted token has a sum of 0: the divisor must not make it 0/0.
        divisor = torch.as_tensor(num_tokens, device=self._terms[0].device).clamp(min=1)
        return torch.stack(self._terms).sum() / divisor


@contextmanager
def local_loss(
    model: nn.Module, domain_labels: Tensor, kind: LocalLoss = "l1"
) -> Iterator[LocalLossTerm]:
    """For a training loop of your own. One forward pass and its backward pass belong inside the
    block:

        with local_loss(model, domain_labels) as local:
            loss = model(**batch).loss + 0.06 * local.mean()
            loss.backward()

    When you accumulate gradients, give `mean` the `counted_tokens` of all the batches of a step, as
    for the other loss.

    Args:
        domain_labels: (B, T) SOURCE, TARGET or IGNORE for each token of the batch.

    Raises:
        UserError: if the model has no enabled neutral residues, the loss does not fit their gates,
            or another is open.
    """
    layers = residue_layers(model)
    term = LocalLossTerm(domain_labels, kind, num_residues=check_local_loss(layers, kind))
    with observe_residues(layers, term):
        yield term


def check_local_loss(layers: Mapping[str, NeutralResiduesLayer], kind: str) -> int:
    """How many residues one forward pass computes.

    Raises:
        UserError: if there are none, or the loss does not fit their gates.
    """
    if not layers:
        raise UserError(
            "the model has no neutral residues",
            do="attach them: get_peft_model(model, NeutralResiduesConfig())",
        )
    gates = [layer.adapter(name).kind for layer in layers.values() for name in layer.active_names()]
    if not gates:
        what = "the neutral residues are all switched off"
        raise UserError(what, do="enable or activate an adapter")
    for gate in gates:
        check_choices(block_gate=gate, local_loss=kind)
    return len(gates)

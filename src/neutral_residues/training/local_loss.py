"""The local loss of one forward pass, for a training loop of your own."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from neutral_residues.config.choices import LocalLoss, check_choices
from neutral_residues.data.labels import SOURCE, TARGET
from neutral_residues.errors import UserError
from neutral_residues.losses import beginnings_loss_sums, counted_tokens, local_loss_sum
from neutral_residues.tuner.layer import (
    AnyResidue,
    NeutralResiduesLayer,
    observe_residues,
    residue_layers,
)

Labels = Tensor | Mapping[str, Tensor]
"""Labels (B, T) of a batch: SOURCE (1), TARGET (0) or IGNORE (-100) for each token; or a mapping
from adapter name to such labels. Adapters that are not in the mapping have no local loss."""
ALL = ""
"""Key that stands for every adapter, used if all have the same labels."""


def by_adapter(labels: Labels) -> Mapping[str, Tensor]:
    """Labels as a mapping from adapter name; labels given as one tensor are under `ALL`."""
    return {ALL: labels} if isinstance(labels, Tensor) else labels


class LocalLossTerm:
    """Collects the local loss of every residue during one forward pass.

    Attributes:
        open_gates: for SOURCE and TARGET, the number of gates (one per token and layer) that were
            not exactly 0, a float32 scalar tensor.
        num_gates: for SOURCE and TARGET, the number of all gates, likewise.
    """

    def __init__(self, domain_labels: Labels, kind: LocalLoss, num_residues: int) -> None:
        self.labels = by_adapter(domain_labels)
        self.kind = kind
        self.num_residues = num_residues
        self.open_gates: dict[int, Tensor] = {}
        self.num_gates: dict[int, Tensor] = {}
        self._terms: dict[str, list[Tensor]] = {key: [] for key in self.labels}
        self._beginnings: dict[str, list[Tensor]] = {key: [] for key in self.labels}
        self._recording = True

    def on_residue(
        self, layer: NeutralResiduesLayer, residue: AnyResidue, base_output: Tensor, name: str
    ) -> None:
        """Add the local loss of one residue, summed over its tokens. Called by each layer in the
        forward pass (`observe_residues`).

        Raises:
            UserError: if the model runs a second time.
        """
        # Gradient checkpointing calls this again in the backward pass, where autograd must save the
        # same tensors: so the term is always computed, but added only once.
        key = name if name in self.labels else ALL
        if key not in self.labels:
            return
        labels, begun = self.labels[key], None
        term = local_loss_sum(residue, base_output, labels, self.kind)
        if residue.begun_gate is not None and self.kind == "l1":
            begun = beginnings_loss_sums(residue, base_output, labels)
        if not self._recording:
            return
        known = self._known
        if len(known) < self.num_residues:
            self._terms[key].append(term)
            self._beginnings[key] += [] if begun is None else [begun]
            self._count_open(residue, labels)
        elif term.requires_grad == known[0].requires_grad:
            # SFTTrainer runs a second pass without gradients for its metrics: that is allowed.
            what = "the model ran twice inside one local_loss block"
            raise UserError(what, do="run one forward pass in each block")

    @property
    def _known(self) -> list[Tensor]:
        return [term for terms in self._terms.values() for term in terms]

    def _count_open(self, residue: AnyResidue, domain_labels: Tensor) -> None:
        if residue.gate is None:
            return
        is_open = residue.gate.detach().squeeze(-1) != 0
        labels = domain_labels.reshape(is_open.shape)
        for domain in (SOURCE, TARGET):
            here = labels == domain
            for counts, what in ((self.open_gates, is_open & here), (self.num_gates, here)):
                counts[domain] = counts.get(domain, 0) + what.sum(dtype=torch.float32)

    def mean(self, num_tokens: Tensor | Mapping[str, Tensor] | None = None) -> Tensor:
        """The local loss per counted token, summed over all residues: a float32 scalar. Call it
        after the forward pass.

        Args:
            num_tokens: the divisors: `losses.counted_tokens` of the whole accumulated batch, or a
                mapping from adapter name to them if labels differ; default: those of this pass.

        Raises:
            UserError: if not every residue ran, or the term has no gradient (reentrant gradient
                checkpointing drops it).
        """
        self._recording = False
        known = self._known
        if len(known) != self.num_residues:
            raise UserError(
                f"the local loss got {len(known)} of {self.num_residues} residues",
                do="run the forward pass inside the block, with the adapter enabled",
            )
        if torch.is_grad_enabled() and not all(term.requires_grad for term in known):
            raise UserError(
                "the local loss has no gradient: reentrant gradient checkpointing drops it, or the"
                " adapter is frozen",
                do='give checkpointing the kwargs {"use_reentrant": False}, and load adapters with'
                " is_trainable=True",
            )
        if num_tokens is None:
            num_tokens = {key: counted_tokens(it) for key, it in self.labels.items()}
        numbers = num_tokens if isinstance(num_tokens, Mapping) else {ALL: num_tokens}
        return torch.stack([self._mean(key, numbers[key]) for key in self._terms]).sum()

    def _mean(self, key: str, num_tokens_2: Tensor) -> Tensor:
        terms, begun = self._terms[key], self._beginnings[key]
        num_tokens_2 = num_tokens_2.to(terms[0].device)
        # A batch without a counted token has a sum of 0: the divisor must not make it 0/0.
        divisor = num_tokens_2[0] if self.kind == "l1" else num_tokens_2.sum()
        mean = torch.stack(terms).sum() / divisor.clamp(min=1)
        if not begun:
            return mean
        # Both sides weigh alike also where only some batches have source text.
        sums_2 = torch.stack(begun).sum(0) / num_tokens_2.clamp(min=1)
        return mean + sums_2.sum() * (num_tokens_2[0] > 0)


@contextmanager
def local_loss(
    model: nn.Module, domain_labels: Labels, kind: LocalLoss = "l1"
) -> Iterator[LocalLossTerm]:
    """The local loss in a training loop of your own (paper, section 3, "Training"). Run one forward
    pass and its backward pass inside the block:

        with local_loss(model, domain_labels) as local:
            loss = model(**batch).loss + 0.06 * local.mean()
            loss.backward()

    With gradient accumulation, pass the number of counted tokens of all batches of a step
    (`losses.counted_tokens`) to `mean`.

    Args:
        model: a model with neutral residues, in PEFT's wrapper or without it.
        domain_labels: (B, T), for each token 1 (source), 0 (target) or -100 (padding); a dictionary
            from adapter name to such labels if several adapters train on different ones.
        kind: "l1", or "cross_entropy" for sigmoid gates.

    Yields:
        An object whose `mean()` is the loss per counted token (source tokens for "l1", all tokens
        for "cross_entropy"), a float32 scalar with gradient.

    Raises:
        UserError: if the model has no enabled neutral residues, the loss does not fit their gates,
            or another `local_loss` block is open.
    """
    layers = residue_layers(model)
    num_residues = check_local_loss(layers, kind, by_adapter(domain_labels))
    term = LocalLossTerm(domain_labels, kind, num_residues=num_residues)
    with observe_residues(layers, term):
        yield term


def check_local_loss(
    layers: Mapping[str, NeutralResiduesLayer], kind: str, names: Collection[str] = (ALL,)
) -> int:
    """Check that the local loss can be computed, and return the number of residues that have one in
    a forward pass.

    Args:
        names: adapters with a local loss; default: all active ones.

    Raises:
        UserError: if no residue is active, or the loss does not fit their gates.
    """
    if not layers:
        raise UserError(
            "the model has no neutral residues",
            do="attach them: get_peft_model(model, NeutralResiduesConfig())",
        )
    gates = [
        layer.adapter(name).kind
        for layer in layers.values()
        for name in layer.active_names()
        if name in names or ALL in names
    ]
    if not gates:
        what = "the neutral residues are all switched off"
        raise UserError(what, do="enable or activate an adapter")
    for gate in gates:
        check_choices(block_gate=gate, local_loss=kind)
    return len(gates)

"""The local loss in somebody's training loop: a context manager, and a mixin for Transformers' `Trainer`.

Three lines in a script of your own:

    from neutral_residues import NeutralResiduesTrainerMixin
    class MyTrainer(NeutralResiduesTrainerMixin, Trainer): pass          # or SFTTrainer
    MyTrainer(model, args, train_dataset=rows_with_domain_labels, local_loss_weight=3.0).train()

Each row carries `domain_labels` beside `input_ids`: 1 (source), 0 (target) or -100 for each token, or one number for the row.

Promise: the term is exact under gradient accumulation, padding, packing, (non-reentrant) gradient checkpointing and several
ranks: it equals what one big batch gives. A mode in which its gradient would be lost raises.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from neutral_residues.adapters.attach import NeutralResiduesLayer, residue_layers, tapped
from neutral_residues.adapters.neutral import Residue
from neutral_residues.errors import UserError
from neutral_residues.losses import IGNORE, LOCAL_LOSSES, SOURCE, TARGET, LocalLoss, counted_tokens, local_loss_sum

DOMAIN_LABELS = "domain_labels"
DEFAULT_WEIGHT = 3.0


class LocalLossTerm:
    """Collects the local loss of every layer during one forward pass.

    Attributes:
        open_gates: for SOURCE and TARGET, how many (token, layer) gates were not exactly 0: float32 scalars.
    """

    def __init__(self, domain_labels: Tensor, kind: LocalLoss, num_layers: int) -> None:
        self.domain_labels = domain_labels
        self.kind = kind
        self.num_layers = num_layers
        self.open_gates: dict[int, Tensor] = {}
        self._terms: list[Tensor] = []
        self._recording = True

    def see(self, layer: NeutralResiduesLayer, residue: Residue) -> None:
        # Recomputation under gradient checkpointing runs this again and must save the same tensors, so the term is
        # computed every time and only kept the first.
        term = local_loss_sum(residue, self.domain_labels, self.kind)
        if self._recording:
            self._terms.append(term)
            self._count_open(residue)

    def _count_open(self, residue: Residue) -> None:
        if residue.gate is None:
            return
        is_open = residue.gate.detach().squeeze(-1) != 0
        labels = self.domain_labels.reshape(is_open.shape)
        for domain in (SOURCE, TARGET):
            count = (is_open & (labels == domain)).sum(dtype=torch.float32)
            self.open_gates[domain] = self.open_gates.get(domain, 0) + count

    def mean(self, num_tokens: Tensor | int | None = None) -> Tensor:
        """The local loss per counted token and layer, in float32. Call it once, after the forward pass.

        Args:
            num_tokens: what to divide by: counted tokens of the whole accumulated batch; default: of this pass.

        Raises:
            UserError: if no residue ran, or the term lost its gradient (reentrant gradient checkpointing).
        """
        self._recording = False
        if not self._terms:
            raise UserError(
                "the local loss saw no residue", do="enable the adapter and run the forward pass inside the block"
            )
        total = torch.stack(self._terms).sum()
        if torch.is_grad_enabled() and not total.requires_grad:
            raise UserError(
                "the local loss has no gradient: reentrant gradient checkpointing drops it",
                do='set gradient_checkpointing_kwargs={"use_reentrant": False}',
            )
        if num_tokens is None:
            num_tokens = counted_tokens(self.domain_labels, self.kind)
        # A batch without a counted token has a sum of 0: the divisor must not make it 0/0.
        divisor = torch.as_tensor(num_tokens, device=total.device).clamp(min=1)
        return total / (divisor * self.num_layers)


@contextmanager
def local_loss(model: nn.Module, domain_labels: Tensor, kind: LocalLoss = "l1") -> Iterator[LocalLossTerm]:
    """For a training loop of your own. Forward and backward both belong inside the block:

        with local_loss(model, domain_labels) as local:
            loss = model(**batch).loss + 3.0 * local.mean()
            loss.backward()

    Args:
        domain_labels: (B, T) SOURCE, TARGET or IGNORE for each token of the batch.

    Raises:
        UserError: if the model has no neutral residues, or the loss does not fit its gates.
    """
    layers = residue_layers(model)
    check_local_loss(layers, kind)
    term = LocalLossTerm(domain_labels, kind, num_layers=len(layers))
    with tapped(layers, term):
        yield term


def check_local_loss(layers: Mapping[str, NeutralResiduesLayer], kind: str) -> None:
    """Raise unless these layers can have a local loss of that kind."""
    if kind not in LOCAL_LOSSES:
        raise UserError("local_loss", got=kind, allowed=", ".join(LOCAL_LOSSES))
    if not layers:
        raise UserError(
            "the model has no neutral residues", do="attach them: get_peft_model(model, NeutralResiduesConfig())"
        )
    if kind == "cross_entropy":
        gates = {layer.block_gate[name] for layer in layers.values() for name in layer.active_adapters}
        if gates != {"sigmoid"}:
            raise UserError("local_loss cross_entropy", got=f"block_gate {', '.join(sorted(gates))}", allowed="sigmoid")


class DomainLabelCollator:
    """Any collator, with `domain_labels` carried along and padded or flattened exactly as its `input_ids` are."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        labels = [_token_labels(feature) for feature in features if DOMAIN_LABELS in feature]
        batch = dict(self.collator([{k: v for k, v in f.items() if k != DOMAIN_LABELS} for f in features]))
        if labels:
            if len(labels) < len(features):
                raise UserError(f"{DOMAIN_LABELS} is missing in some rows", do="give it in every row")
            batch[DOMAIN_LABELS] = _place(labels, batch["input_ids"], batch.get("attention_mask"))
        return batch


def _token_labels(feature: Mapping[str, Any]) -> Tensor:
    labels = torch.as_tensor(feature[DOMAIN_LABELS], dtype=torch.long)
    num_tokens = len(feature["input_ids"])
    if labels.dim() == 0:
        return labels.expand(num_tokens)
    if len(labels) != num_tokens:
        raise UserError(f"{DOMAIN_LABELS} of a row", got=f"{len(labels)} for {num_tokens} tokens", allowed="one each")
    return labels


def _place(labels: list[Tensor], input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    placed = torch.full_like(input_ids, IGNORE)
    flat = torch.cat(labels)
    if input_ids.shape[0] != len(labels):  # padding-free: all rows one after another
        keep = torch.ones_like(input_ids, dtype=torch.bool)
    elif attention_mask is not None and attention_mask.shape == input_ids.shape:
        keep = attention_mask.bool()
    else:
        keep = torch.arange(input_ids.shape[1]) < torch.tensor([[len(row)] for row in labels])
    if int(keep.sum()) != len(flat):
        raise UserError(
            f"the collator kept {int(keep.sum())} of {len(flat)} tokens, so {DOMAIN_LABELS} no longer fit",
            do="truncate the rows before training",
        )
    placed[keep] = flat
    return placed


class DeviceSums:
    """Named sums for the log that stay on the device until somebody reads them, so that no step waits for the host."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, key: str, value: Tensor) -> None:
        """Add `value` (any shape, the same at every call) to the sum named `key`."""
        self._sums[key] = self._sums[key] + value if key in self._sums else value

    def flush(self, accelerator: Any) -> dict[str, Any]:
        """The sums over all ranks since the last flush, as numbers or lists of numbers."""
        reduced = {key: accelerator.reduce(value, "sum").tolist() for key, value in self._sums.items()}
        self._sums = {}
        return reduced

    def state(self) -> dict[str, Any]:
        """This rank's sums, for a checkpoint."""
        return {key: value.tolist() for key, value in self._sums.items()}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from `state()`."""
        self._sums = {key: torch.tensor(value, device=device) for key, value in state.items()}


class NeutralResiduesTrainerMixin:
    """Adds alpha x local loss to any `Trainer`: put it before `Trainer` or TRL's `SFTTrainer` among the bases.

    Args:
        local_loss_weight: alpha.
        local_loss: "l1" or "cross_entropy".

    Logs `local_loss`, `open_gates_source` and `open_gates_target` (shares of gates not exactly 0) with everything else.
    """

    def __init__(
        self, *args: Any, local_loss_weight: float = DEFAULT_WEIGHT, local_loss: LocalLoss = "l1", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.local_loss_weight = local_loss_weight
        self.local_loss = local_loss
        self.data_collator: Any = DomainLabelCollator(self.data_collator)
        self._layers = residue_layers(self.model)  # type: ignore[attr-defined]
        self._term: LocalLossTerm | None = None
        self._counted: Tensor | None = None
        self._sums = DeviceSums()
        self._check_modes()

    def _check_modes(self) -> None:
        if self.local_loss_weight < 0:
            raise UserError("local_loss_weight", got=self.local_loss_weight, allowed="0 or more")
        if not self._has_local_loss:
            return
        check_local_loss(self._layers, self.local_loss)
        args = self.args  # type: ignore[attr-defined]
        lost = None
        if args.n_gpu > 1:
            lost = "DataParallel (several GPUs in one process): start it with torchrun or accelerate launch"
        parallelism = getattr(self.accelerator, "parallelism_config", None)  # type: ignore[attr-defined]
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            lost = "context or sequence parallelism: tokens and their domain labels would be split differently"
        if lost:
            raise UserError(f"the local loss does not work under {lost}")

    @property
    def _has_local_loss(self) -> bool:
        return self.local_loss_weight > 0

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        columns: list[str] = self._signature_columns  # type: ignore[has-type]
        if DOMAIN_LABELS not in columns:
            self._signature_columns = [*columns, DOMAIN_LABELS]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Also counts, over the whole accumulated batch and all ranks, the tokens that the local loss will be divided by."""
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        if self._has_local_loss and samples and DOMAIN_LABELS in samples[0]:
            counted = sum(counted_tokens(batch[DOMAIN_LABELS], self.local_loss) for batch in samples)
            gathered = self.accelerator.gather(torch.as_tensor(counted, device=device))  # type: ignore[attr-defined]
            self._counted = gathered.sum()
        return samples, num_items

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        labels = inputs.pop(DOMAIN_LABELS, None)
        if not self._has_local_loss:
            return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        if labels is None:
            raise UserError(
                f"rows have no {DOMAIN_LABELS}",
                allowed=f"{SOURCE} (source) or {TARGET} (target) for each token or row",
                do="add the column, and for SFTTrainer set dataset_kwargs={'skip_prepare_dataset': True}",
            )
        labels = labels.to(self.args.device)  # type: ignore[attr-defined]
        term = LocalLossTerm(labels, self.local_loss, num_layers=len(self._layers))
        self._term = term
        try:
            with tapped(self._layers, term):
                return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        finally:
            self._term = None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs.pop(DOMAIN_LABELS, None)
        # What `super` returns beside the loss is passed on as it is: asking for outputs makes SFTTrainer run a second
        # forward pass, whose residues must not be counted again.
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        if self._term is None:
            return result
        loss = result[0] if return_outputs else result
        loss = loss + self.local_loss_weight * self._scaled(self._term, num_items_in_batch)
        return (loss, *result[1:]) if return_outputs else loss

    def _scaled(self, term: LocalLossTerm, num_items_in_batch: Any) -> Tensor:
        """The term such that its gradient, after all the averaging that follows, is that of one big batch."""
        mean = term.mean(self._counted)
        self._note_local_loss(mean.detach(), term)
        # Ranks average their gradients, while the divisor already counts the tokens of all of them.
        mean = mean * self.accelerator.num_processes  # type: ignore[attr-defined]
        scaled = self.loss_is_scaled_for_ga  # type: ignore[attr-defined]
        if scaled is None:
            accepts = self.model_accepts_loss_kwargs and num_items_in_batch is not None  # type: ignore[attr-defined]
            scaled = accepts or self.compute_loss_func is not None  # type: ignore[attr-defined]
        return mean if scaled else mean * self.current_gradient_accumulation_steps  # type: ignore[attr-defined]

    def _note_local_loss(self, mean: Tensor, term: LocalLossTerm) -> None:
        self._sums.add("local_loss", mean)
        # Every rank sees every accumulated batch in 1 / (ranks x batches) of its passes: these parts sum to one a step.
        share = self.current_gradient_accumulation_steps * self.accelerator.num_processes  # type: ignore[attr-defined]
        self._sums.add("steps", torch.ones_like(mean) / share)
        for domain, name in ((SOURCE, "source"), (TARGET, "target")):
            if domain in term.open_gates:
                self._sums.add(f"open_{name}", term.open_gates[domain])
                self._sums.add(f"gates_{name}", (term.domain_labels == domain).sum() * float(term.num_layers))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self._has_local_loss and "loss" in logs:
            logs |= _local_loss_logs(self._sums.flush(self.accelerator))  # type: ignore[attr-defined]
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def _local_loss_logs(sums: dict[str, float]) -> dict[str, float]:
    if not sums:
        return {}
    logs = {"local_loss": sums["local_loss"] / sums["steps"]}
    for name in ("source", "target"):
        if sums.get(f"gates_{name}"):
            logs[f"open_gates_{name}"] = sums[f"open_{name}"] / sums[f"gates_{name}"]
    return logs

"""The local loss as a mixin for Transformers' `Trainer`; for other loops see `local_loss.py`.

    from neutral_residues import NeutralResiduesTrainerMixin
    class MyTrainer(NeutralResiduesTrainerMixin, Trainer): pass          # or SFTTrainer
    MyTrainer(model, args, train_dataset=rows_with_domain_labels, local_loss_weight=0.06).train()

Each row carries `domain_labels` with its `input_ids`: 1 (source), 0 (target) or -100 for each
token, or one number for the row. TRL's `SFTTrainer` computes logits from the output head's weight,
so it refuses a residue on the head (`head_rank` other than 0).

Promise: with gradient accumulation, padding, packing, (non-reentrant) gradient checkpointing and
several ranks, the local loss and its gradient equal those of one big batch. Training modes in which
the gradient would be lost raise an error.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neutral_residues.config.choices import LocalLoss
from neutral_residues.config.run import ResidueSettings
from neutral_residues.data.labels import DOMAIN_LABELS, SOURCE, TARGET
from neutral_residues.errors import UserError
from neutral_residues.losses import counted_tokens
from neutral_residues.training.collator import DomainLabelCollator
from neutral_residues.training.device_sums import DeviceSums
from neutral_residues.training.gate_rates import gate_rates
from neutral_residues.training.local_loss import ALL, LocalLossTerm, check_local_loss, local_loss
from neutral_residues.training.muon import add_muon
from neutral_residues.training.param_groups import split_param_group
from neutral_residues.tuner.embeddings import embeddings_layer
from neutral_residues.tuner.layer import residue_layers, trained_names

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # the user's class names its Trainer as the next base class

DEFAULTS = ResidueSettings()  # a script gets the same, measured defaults as a run file


class NeutralResiduesTrainerMixin(_Trainer):
    """Adds the local loss (paper, section 3, "Training") to the loss of `Trainer` or TRL's
    `SFTTrainer`; make it the first base class. Logs `local_loss` (without its weight),
    `open_gates_source` and `open_gates_target` (shares of the gates that are not exactly 0).

    Args:
        local_loss_weight: alpha, the factor on the local loss, 0 or more; 0 trains without it.
        local_loss: "l1", or "cross_entropy" for sigmoid gates.
        gate_learning_rate_factor: learning rate of the gates, as a multiple of that of the other
            weights; raised further for gates whose input is small (`gate_rates.py`). With a higher
            rate gates close sooner and more sharply (LAB.md, "what moved the curve, and what did
            not").
        muon: train the matrices inside the layers with Muon (`muon.py`), as `neutral extend` does,
            and only the other weights with the optimizer of `args`, for which half the learning
            rate of a training without it was best.

    Raises:
        UserError: for a value out of range, or a training mode that the local loss does not
            support; during training, for rows without `domain_labels`.
    """

    _signature_columns: Any
    optimizer: Any

    def __init__(
        self,
        *args: Any,
        local_loss_weight: float = DEFAULTS.local_loss_weight,
        local_loss: LocalLoss = "l1",
        gate_learning_rate_factor: float = DEFAULTS.gate_learning_rate_factor,
        muon: bool = False,
        **kwargs: Any,
    ) -> None:
        try:
            super().__init__(*args, **kwargs)
        except ValueError as error:
            # SFTTrainer computes logits from `lm_head.weight`, so it refuses any adapter there.
            if "PEFT adapter to `lm_head`" not in str(error):
                raise
            what = f"{type(self).__name__} does not train the residue on the output head"
            raise UserError(what, do="use Trainer, or set head_rank=0") from error
        self.local_loss_weight = local_loss_weight
        self.local_loss = local_loss
        self.gate_learning_rate_factor = gate_learning_rate_factor
        self.muon = muon
        self.data_collator: Any = DomainLabelCollator(self.data_collator)
        self._term: LocalLossTerm | None = None
        self._counted: dict[str, Tensor] | None = None
        self._sums = DeviceSums()
        self._check_modes()

    def _check_modes(self) -> None:
        weight, factor = self.local_loss_weight, self.gate_learning_rate_factor
        if not 0 <= weight < math.inf:
            raise UserError("local_loss_weight", got=weight, allowed="0 or more")
        if not 0 < factor < math.inf:
            raise UserError("gate_learning_rate_factor", got=factor, allowed="above 0")
        if self.muon and self.optimizer is not None:
            raise UserError("muon=True has no effect on optimizers=...", do="remove one of them")
        configs = getattr(self.model, "peft_config", {})
        if any(getattr(configs.get(name), "thresholds", None) for name in self._trained_names):
            what = "this extension is calibrated: its thresholds hold for its weights as they are"
            do = "remove them first (neutral calibrate --remove), and calibrate again afterwards"
            raise UserError(what, do=do)
        embeddings = embeddings_layer(self.model)
        if self.args.label_smoothing_factor and embeddings and embeddings.can_forbid_tokens:
            what = "label_smoothing_factor: where a gate is 0, new tokens have probability 0"
            raise UserError(what, got=self.args.label_smoothing_factor, do="set it to 0")
        if not self._has_local_loss:
            return
        check_local_loss(residue_layers(self.model), self.local_loss, self._trained_names)
        if self.args.n_gpu > 1:
            what = "the local loss does not work under DataParallel"
            raise UserError(what, do="start it with torchrun")
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            # Tokens and their domain labels would be split differently.
            what = "the local loss does not work under context or sequence parallelism"
            raise UserError(what, do="switch it off")

    @cached_property
    def _trained_names(self) -> list[str]:
        """Names of the adapters that train; active but frozen ones are not among them."""
        return trained_names(self.model) or [ALL]

    @property
    def _has_local_loss(self) -> bool:
        return self.local_loss_weight > 0

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if DOMAIN_LABELS not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, DOMAIN_LABELS]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The optimizer of `Trainer`, with the gates in parameter groups of their own, and Muon if
        it was asked for; an optimizer that was passed to the trainer is not changed."""
        given = self.optimizer is not None
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if given:
            return optimizer
        for weights, factor in self._learning_rate_factors():
            split_param_group(optimizer, weights, factor=factor)
        if self.muon:
            self.optimizer = optimizer = add_muon(self.model, optimizer)
        return optimizer

    def _learning_rate_factors(self) -> list[tuple[list[nn.Parameter], float]]:
        """Weights with a learning rate of their own, and the factor on it."""
        factor = self.gate_learning_rate_factor
        return [(list(gate.parameters()), factor * rate) for gate, rate in gate_rates(self.model)]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The batches of `Trainer`. Also counts the tokens that the local loss is divided by, over
        all accumulated batches and ranks."""
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._has_local_loss:
            labels = [self._adapter_labels(batch) for batch in samples if DOMAIN_LABELS in batch]
            keys = labels[0] if labels else (ALL,)
            self._counted = {key: self._num_counted(labels, key, device) for key in keys}
        return samples, num_items

    def _adapter_labels(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Domain labels by adapter name, for every adapter with a local loss."""
        return dict.fromkeys(self._trained_names, batch[DOMAIN_LABELS])

    def _num_counted(
        self, labels: Sequence[Mapping[str, Tensor]], key: str, device: torch.device
    ) -> Tensor:
        """`counted_tokens` of adapter `key` over all ranks."""
        counted = [counted_tokens(it[key]) for it in labels] or [torch.zeros(2, dtype=torch.long)]
        return self.accelerator.gather(torch.stack(counted).sum(0).to(device)[None]).sum(0)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        if not self._has_local_loss:
            inputs.pop(DOMAIN_LABELS, None)
            return super().training_step(model, inputs, num_items_in_batch)
        if inputs.get(DOMAIN_LABELS) is None:
            raise UserError(
                f"rows have no {DOMAIN_LABELS}",
                allowed=f"{SOURCE} (source) or {TARGET} (target) for each token or row",
                do="add the column, and for SFTTrainer set dataset_kwargs={'skip_prepare_dataset':"
                " True}",
            )
        labels = {key: it.to(self.args.device) for key, it in self._adapter_labels(inputs).items()}
        del inputs[DOMAIN_LABELS]
        try:
            with local_loss(self.model, labels, self.local_loss) as self._term:
                return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._term = None

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        inputs = {key: value for key, value in inputs.items() if key != DOMAIN_LABELS}
        return super().prediction_step(model, inputs, *args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._term is None:
            return result
        loss = result[0] if return_outputs else result
        loss = loss + self.local_loss_weight * self._scaled(self._term, num_items_in_batch)
        return (loss, *result[1:]) if return_outputs else loss

    def _scaled(self, term: LocalLossTerm, num_items_in_batch: Any) -> Tensor:
        """The local loss, scaled such that after Trainer's averaging over ranks and accumulated
        batches its gradient is that of one big batch."""
        mean = term.mean(self._counted)
        self._log_local_loss(mean.detach(), term)
        # Ranks average their gradients, while the divisor already counts the tokens of all of them.
        mean = mean * self.accelerator.num_processes
        scaled = self.loss_is_scaled_for_ga
        if scaled is None:
            accepts = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = accepts or self.compute_loss_func is not None
        return mean if scaled else mean * self.current_gradient_accumulation_steps

    def _log_local_loss(self, mean: Tensor, term: LocalLossTerm) -> None:
        self._sums.add("local_loss", mean)
        # This is called once for each accumulated batch on each rank, and the sum over all these
        # calls must be 1 for each step.
        share = self.current_gradient_accumulation_steps * self.accelerator.num_processes
        self._sums.add("steps", torch.ones_like(mean) / share)
        for domain, name in ((SOURCE, "source"), (TARGET, "target")):
            if domain in term.open_gates:
                self._sums.add(f"open_{name}", term.open_gates[domain])
                self._sums.add(f"gates_{name}", term.num_gates[domain])

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        sums = self._sums.flush(self.accelerator) if "loss" in logs else {}
        if sums:
            logs["local_loss"] = sums["local_loss"] / sums["steps"]
        for name in ("source", "target"):
            if sums.get(f"gates_{name}"):
                logs[f"open_gates_{name}"] = sums[f"open_{name}"] / sums[f"gates_{name}"]
        super().log(logs, *args, **kwargs)

"""The training loop of every method: Transformers' Trainer with a fixed order of rows, the loss of
each corpus and checkpoints that are never half-written.

Promises: rows come in the fixed order of `data/mixture.py`; the loss of each corpus is logged
separately; a loss or gradient that is not finite stops the run before the optimiser step; a
checkpoint is used only if it is complete; a resumed run continues as if it had never stopped
(bit-identical on a CPU). Data, methods and evaluation are decided elsewhere.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from neutral_residues.data.labels import DOMAIN_LABELS, SOURCE, TARGET
from neutral_residues.errors import UserError, first_line
from neutral_residues.files import disk_errors
from neutral_residues.losses import next_token_nats
from neutral_residues.training.backbone_kl import BackboneLogits, backbone_logits, kl_sum
from neutral_residues.training.checkpoints import complete_checkpoints, mark_complete, saved_sums
from neutral_residues.training.device_sums import DeviceSums
from neutral_residues.training.mixin import NeutralResiduesTrainerMixin
from neutral_residues.training.models import activate_extensions, reference_of
from neutral_residues.training.setup import Setup


class DomainTrainer(Trainer):
    """Trainer on rows of `Mixture`: `input_ids`, `corpus_ids`, `predicted`. Adds KL to the backbone
    if `training.kl_weight` is above 0."""

    def __init__(self, setup: Setup, model: nn.Module, output_dir: Path) -> None:
        args = _training_arguments(setup, output_dir)
        super().__init__(model=model, args=args, train_dataset=setup.rows)
        self.remove_callback(PrinterCallback)
        self.loss_is_scaled_for_ga = True
        self.corpus_names = [stream.name for stream in setup.data.train]
        self.predicted_share = setup.rows.predicted_share
        self.keep_checkpoints = setup.config.training.keep_checkpoints
        self.kl_weight = setup.config.training.kl_weight
        reference = reference_of(setup) if self.kl_weight > 0 else None
        self.reference = reference.eval() if reference is not None else None
        self.domain_labels_BT: Tensor | None = None
        self._corpus_sums = DeviceSums()
        self._step_nats: Tensor | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        # The data set is already in its order; accelerate shards it among ranks as usual.
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The share of these rows in the loss of one optimiser step on this rank, in nats per
        token: next-token loss and, with a weight, KL to the backbone."""
        input_ids = inputs["input_ids"]
        backbone = self._backbone_logits(input_ids) if self.kl_weight else None
        outputs = model(input_ids=input_ids, use_cache=False)
        # The divisor is the same in every step, so that no token weighs more because of others in
        # its batch: noised tokens are included, and tokens of chats and pairs that are not
        # predicted are left out by their share in the whole run.
        predicted_BT = inputs["predicted"][:, 1:]
        nats_BT = next_token_nats(outputs.logits, input_ids) * predicted_BT
        self._add_to_log(nats_BT.detach(), inputs["corpus_ids"][:, 1:], predicted_BT)
        args = self.args
        rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        total = nats_BT.sum() / self.predicted_share
        if backbone is not None:
            total = total + self.kl_weight * self._kl_sum(outputs.logits, backbone)
        loss = total / (rows_per_step * nats_BT.shape[1])
        return (loss, outputs) if return_outputs else loss

    def _backbone_logits(self, input_ids_BT: Tensor) -> BackboneLogits:
        assert self.domain_labels_BT is not None
        labels_BT = self.domain_labels_BT.to(input_ids_BT.device)
        return backbone_logits(self.model, input_ids_BT, labels_BT, self.reference)

    def _kl_sum(self, logits_BTV: Tensor, backbone: BackboneLogits) -> Tensor:
        kl = kl_sum(logits_BTV, backbone)
        self._corpus_sums.add("kl_nats", kl.detach())
        self._corpus_sums.add("kl_tokens", backbone.is_source_ST.sum())
        return kl

    def _add_to_log(self, nats_BT: Tensor, corpus_ids_BT: Tensor, predicted_BT: Tensor) -> None:
        of_corpus = [corpus_ids_BT == number for number in range(len(self.corpus_names))]
        by_corpus = [nats_BT.where(here_BT, 0).sum(dtype=torch.float64) for here_BT in of_corpus]
        tokens = [(predicted_BT & here_BT).sum(dtype=torch.float64) for here_BT in of_corpus]
        nats = torch.stack(by_corpus)
        self._step_nats = nats if self._step_nats is None else self._step_nats + nats
        self._corpus_sums.add("nats", nats)
        self._corpus_sums.add("tokens", torch.stack(tokens))

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        # The only hook that gets the norm before the optimiser step; one transfer to the host
        # serves both checks.
        norm = super()._clip_grad_norm(model)
        step_nats, self._step_nats = self._step_nats, None
        assert step_nats is not None
        norms = torch.as_tensor(norm, device=step_nats.device, dtype=torch.float64).view(1)
        if not bool(torch.isfinite(torch.cat([step_nats, norms])).all()):
            self._raise_not_finite(step_nats)
        return norm

    def _raise_not_finite(self, step_nats: Tensor) -> None:
        is_finite = torch.isfinite(step_nats).tolist()
        bad = [n for n, ok in zip(self.corpus_names, is_finite, strict=True) if not ok]
        where = f"the loss on {', '.join(bad)}" if bad else "the gradient (the losses are finite)"
        step = self.state.global_step + 1
        raise UserError(
            f"step {step}: {where} is not finite; stopped before the optimiser step",
            do="lower training.learning_rate or look at that text; the last checkpoint is complete",
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            sums = self._corpus_sums.flush(self.accelerator)
            # Trainer's own mean starts again when a run resumes between two log lines.
            logs["loss"] = sum(sums["nats"]) / sum(sums["tokens"])
            parts = zip(self.corpus_names, sums["nats"], sums["tokens"], strict=True)
            for name, nats, tokens in parts:
                if tokens:
                    logs[f"loss_nats/{name}"] = nats / tokens
            if sums.get("kl_tokens"):
                logs["kl_nats"] = sums["kl_nats"] / sums["kl_tokens"]
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Not in `on_save`: errors of the disk while Trainer writes must be caught too.
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with disk_errors(folder):
            super()._save_checkpoint(model, trial)
            sums = {name: sums.state(self.accelerator) for name, sums in self._all_sums().items()}
            if self.args.should_save:
                mark_complete(folder, sums=sums)
                for old in complete_checkpoints(folder.parent)[: -self.keep_checkpoints]:
                    shutil.rmtree(old)

    def train_from(self, checkpoint: Path | None) -> None:
        """Train up to the last step, from a complete checkpoint or, with None, from the start."""
        if checkpoint is not None and self.is_world_process_zero():
            for name, sums in saved_sums(checkpoint).items():
                self._all_sums()[name].load(sums, self.args.device)
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def _all_sums(self) -> dict[str, DeviceSums]:
        return {name: it for name, it in vars(self).items() if isinstance(it, DeviceSums)}


class ExtensionTrainer(NeutralResiduesTrainerMixin, DomainTrainer):
    """The trainer of a run, for every method: `DomainTrainer` with the local loss, whose weight is
    0 for methods without one. Checkpoints are written to `output_dir`."""

    def __init__(self, setup: Setup, model: nn.Module, output_dir: Path) -> None:
        self.setup, residues = setup, setup.config.residues
        names = [stream.name for stream in setup.data.train]
        # Extension -> number of the corpus that trains it; empty if one extension has all targets.
        own = setup.config.extension_names if residues.per_target else []
        self.own_corpora = {name: names.index(name) for name in own}
        super().__init__(
            setup,
            model,
            output_dir,
            local_loss=residues.local_loss,
            gate_learning_rate_factor=residues.gate_learning_rate_factor,
            local_loss_weight=setup.local_loss_weight,
            muon=setup.config.training.optimizer == "muon",
        )

    def _adapter_labels(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Domain labels by extension. With an extension for each target corpus (`per_target`), an
        extension sees tokens of the other target corpora as source."""
        labels_BT, corpus_ids_BT = batch[DOMAIN_LABELS], batch["corpus_ids"]
        is_target_BT = labels_BT == TARGET
        return {
            name: labels_BT.masked_fill(is_target_BT & (corpus_ids_BT != number), SOURCE)
            for name, number in self.own_corpora.items()
        } or super()._adapter_labels(batch)

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        # Trainer's own would leave only the first of several extensions active.
        if not (trained := self.setup.config.extension_names):
            super()._load_from_checkpoint(checkpoint, model)
            return
        extended: Any = self.model
        for name in trained:
            extended.load_adapter(str(Path(checkpoint) / name), name, is_trainable=True)
        activate_extensions(self.setup, extended)

    def _learning_rate_factors(self) -> list[tuple[list[nn.Parameter], float]]:
        factors, method = super()._learning_rate_factors(), self.setup.method
        if method.learning_rate_factor is not None:
            factors.append(method.learning_rate_factor(self.model, self.setup.config))
        return factors

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        self.domain_labels_BT = inputs[DOMAIN_LABELS]  # the mixin takes them out
        return super().training_step(model, inputs, num_items_in_batch)


def _training_arguments(setup: Setup, output_dir: Path) -> TrainingArguments:
    training, has_gpu = setup.config.training, setup.device.type != "cpu"
    checkpointing = {"use_reentrant": False} if training.gradient_checkpointing else None
    try:
        return TrainingArguments(
            output_dir=str(output_dir),
            max_steps=training.steps,
            per_device_train_batch_size=training.batch_rows,
            gradient_accumulation_steps=training.accumulation,
            learning_rate=setup.learning_rate,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": training.final_learning_rate_share},
            warmup_steps=training.warmup_steps,
            weight_decay=training.weight_decay,
            adam_beta1=training.adam_betas[0],
            adam_beta2=training.adam_betas[1],
            max_grad_norm=training.max_grad_norm,
            bf16=setup.bf16,
            torch_compile=training.compile,
            activation_checkpointing=training.gradient_checkpointing,
            activation_checkpointing_kwargs=checkpointing,
            logging_steps=training.log_every,
            logging_first_step=True,
            logging_nan_inf_filter=False,
            save_steps=training.save_every,
            report_to=list(training.report_to),
            dataloader_num_workers=setup.config.data.workers if has_gpu else 0,
            dataloader_pin_memory=has_gpu,
            ddp_find_unused_parameters=False,
            use_cpu=not has_gpu,
            remove_unused_columns=False,
            disable_tqdm=True,
            seed=setup.config.seed,
        )
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError("training settings", got=first_line(error)) from error

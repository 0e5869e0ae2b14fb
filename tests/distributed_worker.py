"""A tiny extended Llama, rows of both domains, and training by `Trainer`: shared by the tests of
the local loss.

As a script it is one of several ranks: trains and prints what the test compares, as one line of
JSON.
"""

import json
import sys
import tempfile
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import SequentialSampler
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.utils import logging

from neutral_residues import NeutralResiduesConfig, residue_layers
from neutral_residues.training.mixin import NeutralResiduesTrainerMixin
from neutral_residues.tuner.embeddings import embeddings_layer
from neutral_residues.tuner.head import GatedHead, HeadResidue

VOCABULARY, PAD = 64, 0
SOURCE, TARGET, IGNORE = 1, 0, -100
# A small weight: the blocks of a random model put out little, so residues are large beside them.
ALPHA, LEARNING_RATE, STEPS, ROWS_PER_STEP = 3e-4, 0.1, 2, 8


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=PAD,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def extended_llama(**settings: Any) -> PeftModel:
    """With residues that do something; the same weights at every call."""
    model = get_peft_model(llama(), NeutralResiduesConfig(width=8, **settings))
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.copy_(0.15 * torch.randn(parameter.shape))
    return model


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def mixed_rows(
    count: int = STEPS * ROWS_PER_STEP, *, length: int | None = None, seed: int = 3
) -> list[dict[str, Any]]:
    """Rows of 5 to 12 tokens (or `length`): in turn all source, target, mixed within, and target by
    one number."""
    random = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        size = length or int(torch.randint(5, 13, (), generator=random))
        ids = torch.randint(3, VOCABULARY, (size,), generator=random).tolist()
        mixed = [SOURCE, IGNORE] + [TARGET] * (size - 4) + [SOURCE] * 2
        labels = ([SOURCE] * size, [TARGET] * size, mixed, TARGET)[i % 4]
        rows.append({"input_ids": ids, "labels": list(ids), "domain_labels": labels})
    return rows


def as_batch(rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and domain labels of all rows, padded on the right, by hand."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), width), PAD)
    domains = torch.full((len(rows), width), IGNORE)
    for i, row in enumerate(rows):
        size = len(row["input_ids"])
        ids[i, :size] = torch.tensor(row["input_ids"])
        domains[i, :size] = torch.as_tensor(row["domain_labels"])
    return ids, (ids != PAD).long(), domains


def begun_gates(model: nn.Module, ids: Tensor) -> Tensor | None:
    """(B, T) the gate that reads tokens as if each text had begun 1 to 8 tokens before, in turns:
    from that part of the text alone. None if gates read layers."""
    layer = embeddings_layer(model)
    if layer is None or not layer.readers():
        return None
    was_training, gates = layer.training, []
    layer.eval()
    for t in range(ids.shape[1]):
        layer(ids[:, max(0, t - 1 - t % 8) : t + 1])
        gates.append(layer.gates["default"].gate[:, -1, 0])
    layer.train(was_training)
    return torch.stack(gates, dim=1)


def big_batch_losses(
    model: nn.Module, rows: list[dict[str, Any]], kind: str = "l1"
) -> tuple[Tensor, Tensor]:
    """Mean next-token nats, and the local loss per counted token, written without the code under
    test."""
    ids, mask, domains = as_batch(rows)
    begun, (residues, outputs, ungated) = begun_gates(model, ids), ([], [], [])

    def observe(layer: Any, inputs: Any, _: Any) -> None:
        adapter, (x, *_) = layer.adapter("default"), inputs
        residues.append(layer.residue(x, "default"))
        outputs.append(layer.base_layer(x).detach())
        if isinstance(adapter, GatedHead):
            ungated.append(adapter.up(adapter.down(x)).detach())
        else:
            ungated.append(
                adapter.down(adapter.activation(adapter.gate(x)) * adapter.up(x)).detach()
            )

    hooks = [layer.register_forward_hook(observe) for layer in residue_layers(model).values()]
    logits = model(input_ids=ids, attention_mask=mask).logits
    for hook in hooks:
        hook.remove()
    predicted = mask[:, 1:].bool()
    nats = F.cross_entropy(logits[:, :-1][predicted], ids[:, 1:][predicted])
    if kind == "l1":
        terms = []
        for residue, output, opened in zip(residues, outputs, ungated, strict=True):

            def size(delta: Tensor, output: Tensor = output, residue: Any = residue) -> Tensor:
                if isinstance(residue, HeadResidue):
                    rms = delta.square().mean(-1).clamp(min=1e-24).sqrt()
                    return rms * residue.code.shape[-1] ** 0.5
                return delta.abs().sum(-1) / output.square().sum(-1).sqrt()

            source, target = domains == SOURCE, domains == TARGET
            terms.append(size(residue.delta)[source].mean())
            if begun is not None:
                # At the first 8 tokens both gates know the same, and differ by rounding only here.
                begun = torch.cat([residue.gate[:, :8, 0], begun[:, 8:]], dim=1)
                other = (residue.gate[..., 0].detach() - begun).abs()
                terms.append((begun.abs() * size(opened))[source].mean())
                terms.append(0.1 * (other * size(opened))[target].mean())
        return nats, torch.stack(terms).sum()
    counted = domains != IGNORE
    opened = [torch.sigmoid(residue.gate_logits[counted].squeeze(-1)) for residue in residues]
    is_target = domains[counted] == TARGET
    return nats, -torch.stack(
        [torch.where(is_target, gate, 1 - gate).log().mean() for gate in opened]
    ).sum()


def big_batch_training(
    model: nn.Module, rows: list[dict[str, Any]], *, alpha: float = ALPHA, kind: str = "l1"
) -> list[float]:
    """Plain gradient descent, one big batch a step. The local loss before each step."""
    local_losses = []
    for start in range(0, len(rows), ROWS_PER_STEP):
        nats, local = big_batch_losses(model, rows[start : start + ROWS_PER_STEP], kind)
        local_losses.append(local.item())
        model.zero_grad()
        (nats + alpha * local).backward()
        with torch.no_grad():
            for parameter in trained(model).values():
                parameter -= LEARNING_RATE * parameter.grad
    return local_losses


class InOrder(NeutralResiduesTrainerMixin, Trainer):
    """Trainer with the local loss, taking the rows in their order, all weights at one learning
    rate."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(
            *args, **({"gate_learning_rate_factor": 1.0, "local_loss_weight": ALPHA} | kwargs)
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def arguments(
    output_dir: str,
    *,
    batch: int,
    accumulation: int,
    kind: type = TrainingArguments,
    **changes: Any,
) -> Any:
    """Plain gradient descent for two steps, so that a difference in gradients shows in the weights
    as it is."""
    settings: dict[str, Any] = {
        "output_dir": output_dir,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "max_steps": STEPS,
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return kind(**(settings | changes))


def pad_right(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A collator as people write them."""
    ids, mask, _ = as_batch([row | {"domain_labels": IGNORE} for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORE)}


def main() -> None:
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    runs = []
    for changes in json.loads(sys.argv[1]):
        model = extended_llama()
        with tempfile.TemporaryDirectory() as folder:
            args = arguments(folder, **changes)
            trainer = InOrder(
                model,
                args,
                train_dataset=mixed_rows(),
                data_collator=pad_right,
                local_loss_weight=ALPHA,
            )
            trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        weights = {name: parameter.tolist() for name, parameter in trained(model).items()}
        runs.append({"ranks": trainer.accelerator.num_processes, "weights": weights, "logs": logs})
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(runs, file)


if __name__ == "__main__":
    main()

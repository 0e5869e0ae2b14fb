"""The local loss in `Trainer` and `SFTTrainer`: always against one big batch, written by hand in
`distributed_worker.py`."""

import copy
import json
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import get_peft_model
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    default_data_collator,
)
from trl import SFTConfig, SFTTrainer, pack_dataset

from distributed_worker import (
    ALPHA,
    IGNORE,
    PAD,
    ROWS_PER_STEP,
    SOURCE,
    STEPS,
    TARGET,
    VOCABULARY,
    InOrder,
    arguments,
    as_batch,
    big_batch_losses,
    big_batch_training,
    extended_llama,
    llama,
    mixed_rows,
    pad_right,
    trained,
)
from neutral_residues import NeutralResiduesConfig, UserError, residue_layers
from neutral_residues.training.local_loss import LocalLossTerm
from neutral_residues.training.mixin import NeutralResiduesTrainerMixin

# Transformers 5.23 renames what TRL and our oldest Transformers call by its old name.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:.gradient_checkpointing\w*. is deprecated:FutureWarning"
)

Rows = list[dict[str, Any]]


class SFT(NeutralResiduesTrainerMixin, SFTTrainer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(
            *args, **({"gate_learning_rate_factor": 1.0, "local_loss_weight": ALPHA} | kwargs)
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def tokenizer(side: str = "right") -> PreTrainedTokenizerFast:
    words = models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t1")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words),
        pad_token=f"t{PAD}",
        eos_token="t2",
        unk_token="t1",
        padding_side=side,
    )


def train(
    folder: Path,
    rows: Rows | datasets.Dataset,
    *,
    batch: int = 4,
    accumulation: int = 2,
    collator: Any = pad_right,
    model: nn.Module | None = None,
    weight: float = ALPHA,
    local_loss: str = "l1",
    trainer_changes: dict[str, Any] | None = None,
    **changes: Any,
) -> InOrder:
    trainer = InOrder(
        model or extended_llama(),
        arguments(str(folder), batch=batch, accumulation=accumulation, **changes),
        train_dataset=rows,
        data_collator=collator,
        local_loss_weight=weight,
        local_loss=local_loss,
        **(trainer_changes or {}),
    )
    trainer.train()
    return trainer


def sft(
    folder: Path,
    rows: Rows,
    *,
    weight: float = ALPHA,
    batch: int = 4,
    accumulation: int = 2,
    **changes: Any,
) -> SFT:
    settings = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None, "bf16": False}
    args = arguments(
        str(folder), batch=batch, accumulation=accumulation, kind=SFTConfig, **(settings | changes)
    )
    model = extended_llama(head_rank=0)
    data = datasets.Dataset.from_list(as_lists(rows))
    trainer = SFT(
        model, args, train_dataset=data, processing_class=tokenizer(), local_loss_weight=weight
    )
    trainer.train()
    return trainer


def as_lists(rows: Rows) -> Rows:
    """One number for a row spread over its tokens: a column of a data set has one type."""
    return [
        r
        | {
            "domain_labels": torch.as_tensor(r["domain_labels"])
            .expand(len(r["input_ids"]))
            .tolist()
        }
        for r in rows
    ]


def logged(trainer: Any, key: str) -> list[float]:
    return [log[key] for log in trainer.state.log_history if key in log]


def assert_same_weights(model: nn.Module, expected: nn.Module, atol: float = 1e-6) -> None:
    expected_weights = trained(expected)
    assert expected_weights
    for name, parameter in trained(model).items():
        torch.testing.assert_close(
            parameter.detach(),
            expected_weights[name].detach(),
            rtol=0,
            atol=atol,
            msg=lambda m, name=name: f"{name}: {m}",
        )


def assert_like_one_big_batch(
    trainer: Any, rows: Rows, *, kind: str = "l1", **settings: Any
) -> None:
    expected = extended_llama(**settings)
    local_losses = big_batch_training(expected, rows, kind=kind)
    assert_same_weights(trainer.model, expected)
    assert logged(trainer, "local_loss") == pytest.approx(local_losses, rel=1e-5)


# ---- Trainer ----


def test_the_local_loss_matters_in_these_tests() -> None:
    with_it, without_it = extended_llama(), extended_llama()
    big_batch_training(with_it, mixed_rows())
    big_batch_training(without_it, mixed_rows(), alpha=0)
    moved = [
        (a - b).abs().max().item()
        for a, b in zip(with_it.parameters(), without_it.parameters(), strict=True)
    ]
    assert max(moved) > 1e-2


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4), (1, 8)])
def test_accumulation(tmp_path: Path, batch: int, accumulation: int) -> None:
    """Batches of one row hold 5 to 12 source tokens, a few, or none."""
    trainer = train(tmp_path, mixed_rows(), batch=batch, accumulation=accumulation)
    assert_like_one_big_batch(trainer, mixed_rows())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_by_a_tokenizer(tmp_path: Path, side: str) -> None:
    pad = DataCollatorForLanguageModeling(tokenizer(side), mlm=False)

    def collator(rows: Rows) -> Any:
        batch = pad(rows)
        # On the left, Trainer would have padding predict the first token.
        first = batch["attention_mask"].argmax(dim=1)
        batch["labels"][torch.arange(len(rows)), first] = IGNORE
        return batch

    rows = [{k: v for k, v in row.items() if k != "labels"} for row in mixed_rows()]
    assert_like_one_big_batch(train(tmp_path, rows, collator=collator), rows)


def test_ready_tensors_that_are_padded_already(tmp_path: Path) -> None:
    """The number given for a whole row is not for its padding."""
    rows = mixed_rows()
    ids, mask, _ = as_batch(rows)
    ready = []
    for row, ids_T, mask_T in zip(rows, ids, mask, strict=True):
        domains = row["domain_labels"]
        if isinstance(domains, list):
            domains = domains + [SOURCE] * (len(ids_T) - len(domains))
        labels_T = ids_T.masked_fill(mask_T == 0, IGNORE)
        ready.append(
            {
                "input_ids": ids_T,
                "attention_mask": mask_T,
                "labels": labels_T,
                "domain_labels": domains,
            }
        )
    assert_like_one_big_batch(train(tmp_path, ready, collator=default_data_collator), rows)


def test_a_data_set_keeps_the_column(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(as_lists(mixed_rows()))
    assert_like_one_big_batch(train(tmp_path, data), mixed_rows())


@pytest.mark.parametrize(
    ("gate", "kind"),
    [("elu", "l1"), ("sigmoid", "l1"), ("none", "l1"), ("sigmoid", "cross_entropy")],
)
def test_gates_and_kinds(tmp_path: Path, gate: str, kind: str) -> None:
    trainer = train(tmp_path, mixed_rows(), model=extended_llama(block_gate=gate), local_loss=kind)
    assert_like_one_big_batch(trainer, mixed_rows(), kind=kind, block_gate=gate)
    assert ("open_gates_source" in trainer.state.log_history[0]) == (gate != "none")


def test_cross_entropy_is_refused_with_another_gate(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cross_entropy needs block_gate: sigmoid; got relu"):
        train(tmp_path, mixed_rows(), local_loss="cross_entropy")


def test_gradient_checkpointing(tmp_path: Path) -> None:
    trainer = train(tmp_path, mixed_rows(), gradient_checkpointing=True)
    assert trainer.model.is_gradient_checkpointing
    assert_like_one_big_batch(trainer, mixed_rows())


def test_reentrant_checkpointing_raises(tmp_path: Path) -> None:
    reentrant = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    }
    model = extended_llama()
    model.enable_input_require_grads()
    with pytest.raises(UserError, match="reentrant gradient checkpointing drops it"):
        train(tmp_path, mixed_rows(), model=model, **reentrant)
    assert all(layer.residue_hook is None for layer in residue_layers(model).values())


@pytest.mark.parametrize(
    ("scaled", "num_items"),
    [(None, True), (None, False), (True, True), (True, False), (False, True)],
)
def test_who_divides_by_the_accumulation_does_not_matter(
    tmp_path: Path, scaled: bool | None, num_items: bool
) -> None:
    """The step with the local loss minus the step without it is its gradient, whatever becomes of
    the other loss."""
    weights = []
    for weight in (ALPHA, 0.0):
        model = extended_llama()
        trainer = InOrder(
            model,
            arguments(str(tmp_path), batch=2, accumulation=4, max_steps=1),
            train_dataset=mixed_rows(),
            data_collator=pad_right,
            local_loss_weight=weight,
        )
        trainer.loss_is_scaled_for_ga = scaled
        trainer.model_accepts_loss_kwargs = num_items  # False: num_items_in_batch is None
        trainer.train()
        weights.append(
            {name: parameter.detach().clone() for name, parameter in trained(model).items()}
        )
    expected = extended_llama()
    big_batch_losses(expected, mixed_rows()[:ROWS_PER_STEP])[1].backward()
    for name, parameter in trained(expected).items():
        step = 0.1 * ALPHA * parameter.grad
        torch.testing.assert_close(weights[1][name] - weights[0][name], step, rtol=0, atol=2e-6)


def test_a_loss_function_of_the_users(tmp_path: Path) -> None:
    def nats(outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
        logits, labels = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return nn.functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch

    trainer = train(tmp_path, mixed_rows(), trainer_changes={"compute_loss_func": nats})
    assert_like_one_big_batch(trainer, mixed_rows())


def test_a_model_made_when_training_starts(tmp_path: Path) -> None:
    args = arguments(str(tmp_path), batch=8, accumulation=1)
    trainer = InOrder(
        args=args,
        model_init=lambda: extended_llama(),
        train_dataset=mixed_rows(),
        data_collator=pad_right,
    )
    trainer.train()
    assert_like_one_big_batch(trainer, mixed_rows())


def test_bf16_autocast_keeps_the_term_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    mean = LocalLossTerm.mean
    monkeypatch.setattr(LocalLossTerm, "mean", lambda *args: seen.append(mean(*args)) or seen[-1])
    trainer = train(tmp_path, mixed_rows(), bf16=True)
    assert {term.dtype for term in seen} == {torch.float32}
    exact = big_batch_training(extended_llama(), mixed_rows())
    assert logged(trainer, "local_loss") == pytest.approx(exact, rel=0.02)


def test_evaluation_adds_nothing(tmp_path: Path) -> None:
    rows = mixed_rows(8)
    trainer = train(
        tmp_path,
        mixed_rows(),
        eval_strategy="steps",
        eval_steps=1,
        trainer_changes={"eval_dataset": rows},
    )
    nats, _ = big_batch_losses(trainer.model, rows)
    given: set[str] = set()
    trainer.model.register_forward_pre_hook(
        lambda model, args, kwargs: given.update(kwargs), with_kwargs=True
    )
    metrics = trainer.evaluate(rows)
    assert logged(trainer, "eval_loss")[STEPS - 1] == metrics["eval_loss"]
    assert trainer.args.eval_batch_size == 8  # so one batch
    assert metrics["eval_loss"] == pytest.approx(nats.item(), rel=1e-5)
    prediction = trainer.predict(
        [{k: v for k, v in row.items() if k != "labels"} for row in mixed_rows(4, length=6)]
    )
    assert prediction.predictions.shape == (4, 6, VOCABULARY)
    assert "input_ids" in given
    assert "domain_labels" not in given


def test_weight_0_only_drops_the_column(tmp_path: Path) -> None:
    trainer = train(
        tmp_path,
        mixed_rows(),
        model=get_peft_model(llama(), NeutralResiduesConfig(width=8)),
        weight=0,
    )
    assert not logged(trainer, "local_loss")


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_make_no_sense(tmp_path: Path, weight: float) -> None:
    with pytest.raises(UserError, match="local_loss_weight"):
        train(tmp_path, mixed_rows(), weight=weight)


def test_a_model_without_residues_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no neutral residues"):
        train(tmp_path, mixed_rows(), model=llama())


def test_a_calibrated_extension_is_refused(tmp_path: Path) -> None:
    model = extended_llama()
    model.peft_config["default"].thresholds = {"form": "cut"}
    with pytest.raises(UserError, match="this extension is calibrated"):
        train(tmp_path, mixed_rows(), model=model)


def test_label_smoothing_is_refused_where_new_tokens_can_be_impossible(tmp_path: Path) -> None:
    model = extended_llama(new_tokens=4, new_tokens_rank=2)
    with pytest.raises(UserError, match=r"label_smoothing_factor: .*got 0\.1"):
        train(tmp_path, mixed_rows(), model=model, label_smoothing_factor=0.1)


# ---- Rows that do not fit ----


def relabelled(label: Callable[[dict[str, Any]], Any]) -> Rows:
    rows = mixed_rows()
    for row in rows[3:]:
        row["domain_labels"] = label(row)
    return rows


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (lambda row: None, "domain_labels is missing in some rows"),
        (
            lambda row: [SOURCE] * (len(row["input_ids"]) - 1),
            "got \\d+ for \\d+ tokens; allowed: one each",
        ),
        (lambda row: [[SOURCE] * len(row["input_ids"])], "got 1 x \\d+ for \\d+ tokens"),
        (lambda row: 2, "got 2; allowed: 1 \\(source\\), 0 \\(target\\) or -100"),
        (lambda row: [0.5] * len(row["input_ids"]), "got 0.5; allowed"),
        (lambda row: "source", "got source; allowed"),
    ],
)
def test_wrong_labels_are_named_in_one_line(
    tmp_path: Path, label: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        train(tmp_path, relabelled(label))
    assert "\n" not in str(raised.value)


def test_rows_without_labels(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "domain_labels"} for row in mixed_rows()]
    with pytest.raises(UserError, match="rows have no domain_labels"):
        train(tmp_path, rows)
    # A whole batch without them, after one with them.
    with pytest.raises(UserError, match="rows have no domain_labels"):
        train(tmp_path, mixed_rows()[:4] + rows[4:])


# ---- The log ----


def open_gates(model: nn.Module, rows: Rows, domain: int) -> tuple[int, int]:
    """Gates that are not 0, and all gates, counted from the weights."""
    ids, mask, domains = as_batch(rows)
    counts = []
    hooks = [
        layer.register_forward_hook(
            lambda layer, inputs, _: counts.append(
                int((layer.residue(inputs[0], "default").gate[domains == domain] > 0).sum())
            )
        )
        for layer in residue_layers(model).values()
    ]
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    for hook in hooks:
        hook.remove()
    return sum(counts), len(counts) * int((domains == domain).sum())


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4)])
def test_logged_numbers_are_those_counted_by_hand(
    tmp_path: Path, batch: int, accumulation: int
) -> None:
    model, rows = extended_llama(), mixed_rows()
    counts: dict[int, list[tuple[int, int]]] = {SOURCE: [], TARGET: []}
    local_losses = []
    for start in range(0, len(rows), ROWS_PER_STEP):
        step = rows[start : start + ROWS_PER_STEP]
        for domain in counts:
            counts[domain].append(open_gates(model, step, domain))
        local_losses += big_batch_training(model, step)
    trainer = train(tmp_path, rows, batch=batch, accumulation=accumulation, logging_steps=STEPS)
    (log,) = [log for log in trainer.state.log_history if "local_loss" in log]
    assert log["local_loss"] == pytest.approx(sum(local_losses) / STEPS, rel=1e-5)
    for name, domain in (("source", SOURCE), ("target", TARGET)):
        opened, total = map(sum, zip(*counts[domain], strict=True))
        assert 0 < opened < total
        assert log[f"open_gates_{name}"] == pytest.approx(opened / total, rel=1e-6)


class _Carry(TrainerCallback):
    """After step `at`, writes the trainer's sums down as a checkpoint would."""

    def __init__(self) -> None:
        self.saved: dict[str, Any] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.saved = json.loads(json.dumps(self.trainer._sums.state(self.trainer.accelerator)))
            self.weights = copy.deepcopy(trained(self.trainer.model))


def test_sums_that_are_carried_over_log_the_same(tmp_path: Path) -> None:
    def new_trainer(rows: Rows, **changes: Any) -> InOrder:
        args = arguments(str(tmp_path), batch=2, accumulation=4, **changes)
        return InOrder(extended_llama(), args, train_dataset=rows, data_collator=pad_right)

    rows, carry = mixed_rows(), _Carry()
    whole = new_trainer(rows, logging_steps=STEPS)
    carry.trainer = whole
    whole.add_callback(carry)
    whole.train()
    resumed = new_trainer(rows[ROWS_PER_STEP:], max_steps=1)
    with torch.no_grad():
        for name, parameter in trained(resumed.model).items():
            parameter.copy_(carry.weights[name])
    resumed._sums.load(carry.saved, torch.device("cpu"))
    resumed.train()
    for key in ("local_loss", "open_gates_source", "open_gates_target"):
        assert logged(resumed, key) == logged(whole, key)


def test_gates_learn_at_their_own_rate(tmp_path: Path) -> None:
    steps = {}
    for factor in (1.0, 4.0):
        model = extended_llama()
        before = {name: p.detach().clone() for name, p in trained(model).items()}
        args = arguments(str(tmp_path), batch=4, accumulation=1, max_steps=1)
        InOrder(
            model,
            args,
            train_dataset=mixed_rows(),
            data_collator=pad_right,
            gate_learning_rate_factor=factor,
        ).train()
        steps[factor] = {name: p.detach() - before[name] for name, p in trained(model).items()}
    for name, step in steps[1.0].items():
        times = 4.0 if "embed_tokens" in name else 1.0  # where the gate is
        assert step.abs().max() > 0
        torch.testing.assert_close(steps[4.0][name], times * step, rtol=1e-4, atol=1e-7)


# ---- SFTTrainer ----


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize("average", [False, True])
def test_sft_trainer(tmp_path: Path, padding_free: bool, average: bool) -> None:
    trainer = sft(
        tmp_path, mixed_rows(), padding_free=padding_free, average_tokens_across_devices=average
    )
    assert_like_one_big_batch(trainer, mixed_rows(), head_rank=0)


def test_sft_trainer_on_packed_rows(tmp_path: Path) -> None:
    rows = mixed_rows(ROWS_PER_STEP)
    packed = pack_dataset(
        datasets.Dataset.from_list(as_lists(rows)), seq_length=24, strategy="bfd"
    ).to_list()
    assert len(packed) < len(rows)
    trainer = sft(
        tmp_path, packed, batch=2, accumulation=-(-len(packed) // 2), max_steps=1, padding_free=True
    )
    assert_like_one_big_batch(trainer, rows, head_rank=0)


def test_sft_reports_the_weighted_local_loss(tmp_path: Path) -> None:
    (with_it,), (without_it,) = (
        [
            log
            for log in sft(tmp_path, mixed_rows(), weight=weight, max_steps=1).state.log_history
            if "loss" in log
        ]
        for weight in (10.0, 0.0)
    )
    assert with_it["loss"] - without_it["loss"] == pytest.approx(
        10 * with_it["local_loss"], rel=1e-5
    )


@pytest.mark.filterwarnings(
    "ignore:.*return_outputs=True:FutureWarning", "ignore:.label_smoothing_factor. is"
)
@pytest.mark.parametrize("trainer_type", ["sft", "sft with label smoothing", "plain"])
def test_outputs_do_not_count_twice(tmp_path: Path, trainer_type: str) -> None:
    class AsksForOutputs:
        def compute_loss(self, *args: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            loss, outputs = super().compute_loss(*args, return_outputs=True, **kwargs)
            assert outputs.logits.shape[-1] == VOCABULARY
            return (loss, outputs) if return_outputs else loss

    class AskingSFT(AsksForOutputs, SFT):
        pass

    class Asking(AsksForOutputs, InOrder):
        pass

    data = datasets.Dataset.from_list(as_lists(mixed_rows()))
    if trainer_type == "plain":
        args = arguments(str(tmp_path), batch=4, accumulation=2)
        trainer = Asking(
            extended_llama(head_rank=0), args, train_dataset=data, data_collator=pad_right
        )
        trainer.train()
        assert_like_one_big_batch(trainer, mixed_rows(), head_rank=0)
        return
    args = arguments(
        str(tmp_path),
        batch=4,
        accumulation=2,
        kind=SFTConfig,
        bf16=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        label_smoothing_factor=0.1 if "smoothing" in trainer_type else 0.0,
    )
    trainer = AskingSFT(
        extended_llama(head_rank=0), args, train_dataset=data, processing_class=tokenizer()
    )
    trainer.train()
    first = big_batch_losses(extended_llama(head_rank=0), mixed_rows()[:ROWS_PER_STEP])[1].item()
    assert logged(trainer, "local_loss")[0] == pytest.approx(first, rel=1e-5)
    if "smoothing" not in trainer_type:
        assert_like_one_big_batch(trainer, mixed_rows(), head_rank=0)


def test_sft_trainer_that_prepares_the_rows_itself_is_told_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="skip_prepare_dataset"):
        sft(
            tmp_path,
            mixed_rows(),
            dataset_kwargs=None,
            packing=True,
            packing_strategy="bfd",
            max_length=16,
        )


def test_sft_trainer_which_would_not_train_the_head_is_refused(tmp_path: Path) -> None:
    args = arguments(str(tmp_path), batch=4, accumulation=2, kind=SFTConfig, bf16=False)
    data = datasets.Dataset.from_list(as_lists(mixed_rows()))
    with pytest.raises(UserError, match=r"not train the residue on the output head.*head_rank=0"):
        SFT(extended_llama(), args, train_dataset=data, processing_class=tokenizer())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # as torch
def test_compiled_in_trainer(tmp_path: Path) -> None:
    torch._dynamo.reset()
    rows = mixed_rows(length=9)
    trainer = train(tmp_path, rows, torch_compile=True, torch_compile_backend="aot_eager")
    assert_like_one_big_batch(trainer, rows)


# ---- The preface ----


@pytest.mark.parametrize("base", [Trainer, SFTTrainer])
def test_the_three_lines_of_the_preface(tmp_path: Path, base: type) -> None:
    example = re.search(
        r"\n\n((?:    .*\n){3})", sys.modules[NeutralResiduesTrainerMixin.__module__].__doc__ or ""
    )
    assert example is not None
    changes = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}, "bf16": False}
    kind: dict[str, Any] = {} if base is Trainer else {"kind": SFTConfig, **changes}
    names = {
        "Trainer": base,
        "model": extended_llama(head_rank=None if base is Trainer else 0),
        "args": arguments(str(tmp_path), batch=8, accumulation=1, **kind),
        "rows_with_domain_labels": datasets.Dataset.from_list(as_lists(mixed_rows(length=9))),
    }
    lines = textwrap.dedent(example[1])
    if base is SFTTrainer:
        lines = lines.replace("args,", "args, processing_class=tokenizer,")
        names["tokenizer"] = tokenizer()
    before = copy.deepcopy(trained(names["model"]))
    exec(lines, names)
    assert any(
        not torch.equal(parameter, before[name])
        for name, parameter in trained(names["model"]).items()
    )

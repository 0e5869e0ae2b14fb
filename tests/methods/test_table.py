"""The table of methods. One contract for every row; then what a budget may be, and rows of one's
own."""

import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from neutral_residues.backbone import empty_backbone, load_backbone, load_config
from neutral_residues.config.run import make_run
from neutral_residues.errors import UserError
from neutral_residues.evaluation.inference import as_backbone
from neutral_residues.evaluation.saved import load_saved
from neutral_residues.export.export import export_model
from neutral_residues.methods.low_rank import embedding_weights
from neutral_residues.methods.table import METHODS, RECIPE_WIDTH, Method, find_method
from neutral_residues.results.record import Record
from neutral_residues.results.store import read_record
from neutral_residues.run import extend
from neutral_residues.training.cost import WeightCount
from neutral_residues.tuner.blocks import count_backbone_weights
from tiny_run import SCALED, make_backbone, method_values, run_values

SHORT = {"steps": 6, "learning_rate": 0.01}
NAMES = [method.name for method in METHODS]
STOCK_FORMATS = {"adapter": "dense", "adapter-scaled": "dense", "neutral-sigmoid": "qwen2_moe"}
TRAINED = [method.name for method in METHODS if method.learning_rate is not None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbone, texts, and one short run of every method, each made when it is first asked for."""
    return tmp_path_factory.mktemp("methods")


def run(folder: Path, name: str) -> Record:
    if name in SCALED:
        run(folder, SCALED[name])
    return extend(make_run(method_values(folder, name, **SHORT)))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=torch.arange(64, 96)[None]).logits


@pytest.mark.parametrize("name", TRAINED)
def test_it_begins_as_the_backbone_on_the_budget(folder: Path, name: str) -> None:
    config = find_method(name).resolve(make_run(method_values(folder, name)))
    backbone = load_backbone(config.model, dtype=torch.float32)
    before, count = logits(backbone), WeightCount(count_backbone_weights(backbone))
    model = find_method(name).attach(backbone, config)
    count = count.with_model(model)
    # OSF takes the weights apart and puts them together again, which rounds.
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5 if name == "osf" else 0)
    if find_method(name).has_budget:
        on_top = sum(p.numel() for p in embedding_weights(model)) / count.num_backbone_weights
        assert bool(on_top) == (name == "lora-embeddings")
        assert count.budget - on_top == pytest.approx(config.budget, rel=0.02)
        assert count.num_trained_weights == count.num_new_weights
    else:
        assert count.num_new_weights == 0
        assert count.num_trained_weights > 0.3 * count.num_backbone_weights


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_and_its_record_says_so(folder: Path, name: str) -> None:
    record, row = run(folder, name), find_method(name)
    assert record.method == record.label == name
    assert record.sets["fr"].rise_percent < 0
    on_the_way = [point for point in record.curve if "loss" in point]
    assert bool(on_the_way) == (row.learning_rate is not None)
    assert all(("local_loss" in point) == row.has_local_loss for point in on_the_way)
    assert bool(record.gates) == row.has_local_loss
    assert (
        record.cost.stored_weights
        == record.cost.new_weights + (not row.keeps_backbone) * record.cost.backbone_weights
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_what_was_measured(folder: Path, name: str) -> None:
    record = run(folder, name)
    saved = load_saved(folder / name)
    assert (saved.reference is None) == find_method(name).keeps_backbone
    backbone = load_backbone(record.config["model"], dtype=torch.float32)
    assert not torch.equal(
        logits(saved.model), logits(backbone)
    )  # first that it does something ...
    with as_backbone(saved.model, saved.reference) as off:
        assert torch.equal(logits(off), logits(backbone))  # ... then that it can be switched off
    assert read_record(folder / name / "record.json") == record


@pytest.mark.parametrize("name", NAMES)
def test_it_can_do_afterwards_what_its_row_says(folder: Path, name: str) -> None:
    record, row = run(folder, name), find_method(name)
    extension = folder / name / "extension"
    model = load_saved(folder / name).model
    after = logits(model)
    if "stock" in row.afterwards and row.keeps_backbone:
        stock = folder / f"{name}-stock"
        difference = export_model(model, stock, to=STOCK_FORMATS[name], copy=False)
        assert difference.share < 1e-6
        torch.testing.assert_close(
            logits(AutoModelForCausalLM.from_pretrained(stock)), after, rtol=0, atol=1e-6
        )
    elif "stock" in row.afterwards:
        torch.testing.assert_close(
            logits(AutoModelForCausalLM.from_pretrained(extension)), after, rtol=0, atol=0
        )
    elif "merge" in row.afterwards:
        assert isinstance(model, PeftModel)
        torch.testing.assert_close(logits(model.merge_and_unload()), after, rtol=1e-4, atol=1e-4)
    elif isinstance(model, PeftModel):
        with pytest.raises(UserError, match="cannot be merged"):
            model.merge_and_unload()
    # Only a gate that can be exactly 0 lets anything be skipped; the others are counted and never
    # are.
    shares = [layer.gates_zero for found in record.sets.values() for layer in found.layers]
    assert ("skip" in row.afterwards) == (
        record.config["residues"]["block_gate"] == "relu" and row.has_local_loss
    )
    assert "skip" in row.afterwards or not any(shares)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("lora", r"0\.20429 \(rank 7\)"),
        ("dora", r"0\.19056 \(rank 6\)"),
        ("block-expansion", r"0\.27639 \(number of layers 1\)"),
    ],
)
def test_a_budget_that_no_whole_size_meets_is_refused(
    tmp_path: Path, name: str, nearest: str
) -> None:
    config = make_run(run_values(tmp_path) | {"method": name, "budget": 0.2})
    backbone = empty_backbone(load_config(config.model))
    with pytest.raises(
        UserError, match=f"budget cannot be met within 2 %.*got 0.2; the nearest .*{nearest}"
    ):
        find_method(name).attach(backbone, config)


def test_expanded_blocks_are_spread_evenly_and_all_that_trains(tmp_path: Path) -> None:
    backbone = make_backbone(tmp_path / "model", num_hidden_layers=6, hidden_size=32)
    model = AutoModelForCausalLM.from_pretrained(backbone)
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    budget = 2 * layer / sum(p.numel() for p in model.parameters())
    values = run_values(tmp_path) | {
        "model": str(backbone),
        "method": "block-expansion",
        "budget": budget,
    }
    find_method("block-expansion").attach(model, make_run(values))
    trains = [all(p.requires_grad for p in block.parameters()) for block in model.model.layers]
    assert trains == [False, False, False, True, False, False, False, True]
    assert [block.self_attn.layer_idx for block in model.model.layers] == list(range(8))
    assert model.config.num_hidden_layers == 8
    tokens = torch.arange(64, 80)[None]
    generated = [
        model.generate(tokens, max_new_tokens=8, do_sample=False, use_cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*generated)


def test_a_row_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_methods.py").write_text(
        "from neutral_residues.methods.table import Method\ndef attach(model, config):\n   "
        " model.requires_grad_(False)\n    model.lm_head.requires_grad_(True)\n    return"
        " model\nHEAD = Method(name='head', title='the head', paper='-', trains='the output"
        " matrix', size='', attach=attach,\n              learning_rate=1e-2,"
        " keeps_backbone=False)\nOTHER = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    record = extend(make_run(run_values(tmp_path, steps=2) | {"method": "my_methods:HEAD"}))
    assert (record.method, record.cost.trainable_weights) == ("head", 260 * 32)
    with pytest.raises(
        UserError, match=r"OTHER is not a method; got int; allowed: .*methods\.table\.Method"
    ):
        find_method("my_methods:OTHER")
    with pytest.raises(UserError, match="cannot import the method no_such_module:X"):
        find_method("no_such_module:X")
    sys.modules.pop("my_methods")


def test_rows_have_recipes_of_their_own(tmp_path: Path) -> None:
    values = run_values(tmp_path) | {"method": "neutral-classifier"}
    method = find_method("neutral-classifier")
    residues = method.resolve(make_run(values)).residues
    assert (residues.block_gate, residues.local_loss, residues.local_loss_weight) == (
        "sigmoid",
        "cross_entropy",
        0.02,
    )
    set_by_hand = method.resolve(make_run(values | {"residues": {"local_loss_weight": 6.0}}))
    assert set_by_hand.residues.local_loss_weight == 6.0
    assert method.resolve(set_by_hand) == set_by_hand


def test_where_gates_read_follows_from_the_row(tmp_path: Path) -> None:
    values, reads = run_values(tmp_path), {"neutral": "tokens", "neutral-paper": "layer"}
    for name in ("neutral", "neutral-paper", "neutral-elu", "neutral-sigmoid"):
        found = find_method(name).resolve(make_run(values | {"method": name})).residues
        assert found.gate_reads == reads.get(name, "layer")
        assert (found.head_rank == 0) == (name in ("neutral-paper", "neutral-sigmoid"))
    random = make_run(values | {"residues": {"gate_start": "random"}})
    assert find_method("neutral-paper").resolve(random).residues.gate_start == "random"
    with pytest.raises(UserError, match="gate_start has no effect on a gate that reads tokens"):
        find_method("neutral").resolve(random)


def test_the_learning_rate_is_the_one_set_or_the_recipe_for_the_width(tmp_path: Path) -> None:
    config, method = make_run(run_values(tmp_path)), find_method("neutral")
    recipe = method.learning_rate
    assert recipe is not None
    assert method.peak_learning_rate(config, hidden_size=RECIPE_WIDTH) == pytest.approx(recipe)
    assert method.peak_learning_rate(config, hidden_size=4 * RECIPE_WIDTH) == pytest.approx(
        recipe / 4
    )
    by_hand = make_run(run_values(tmp_path, learning_rate=0.5))
    assert method.peak_learning_rate(by_hand, hidden_size=4 * RECIPE_WIDTH) == 0.5


def test_names_are_unique_and_an_unknown_one_gets_the_nearest() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(isinstance(row, Method) for row in METHODS)
    with pytest.raises(UserError, match="unknown method loar; did you mean 'lora'"):
        find_method("loar")

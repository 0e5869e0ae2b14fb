"""The table of methods: each on the budget, each with the recipe it names."""

from pathlib import Path

import pytest

from neutral_residues.config import make_run
from neutral_residues.cost import WeightCount
from neutral_residues.errors import UserError
from neutral_residues.loading import empty_backbone, load_config
from neutral_residues.methods import METHODS, RECIPE_WIDTH, find_method, learning_rate
from tiny_run import make_backbone, run_values


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Wide and deep enough that a budget of 20 % is met by whole widths and ranks.
    sizes = {"hidden_size": 96, "num_hidden_layers": 4, "intermediate_size": 256}
    return make_backbone(tmp_path_factory.mktemp("model") / "backbone", **sizes)


@pytest.mark.parametrize("name", [method.name for method in METHODS if method.keeps_backbone])
def test_new_weights_meet_the_budget(tmp_path: Path, backbone: Path, name: str) -> None:
    config = make_run(run_values(tmp_path) | {"model": str(backbone), "method": name})
    model = empty_backbone(load_config(str(backbone)))
    before = WeightCount.of_backbone(model)
    count = before.with_model(find_method(name).attach(model, config))
    # A rank of LoRA is a coarser step than a width: on a model this small the nearest is 4 % off.
    assert count.budget == pytest.approx(0.20, rel=0.05 if name == "lora" else 0.02)
    assert count.num_trained_weights == count.num_new_weights


def test_fine_tuning_trains_everything_and_adds_nothing(tmp_path: Path, backbone: Path) -> None:
    config = make_run(run_values(tmp_path) | {"model": str(backbone), "method": "finetune"})
    model = empty_backbone(load_config(str(backbone)))
    count = WeightCount.of_backbone(model).with_model(find_method("finetune").attach(model, config))
    assert (count.num_new_weights, count.num_trained_weights) == (0, count.num_backbone_weights)


def test_the_learning_rate_is_the_one_set_or_the_recipe_for_the_width(tmp_path: Path) -> None:
    config = make_run(run_values(tmp_path))
    recipe = find_method("neutral").learning_rate
    assert learning_rate(config, hidden_size=RECIPE_WIDTH) == pytest.approx(recipe)
    assert learning_rate(config, hidden_size=4 * RECIPE_WIDTH) == pytest.approx(recipe / 4)
    assert learning_rate(make_run(run_values(tmp_path, learning_rate=0.5)), hidden_size=4 * RECIPE_WIDTH) == 0.5


def test_an_unknown_method_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown method loar; did you mean 'lora'"):
        find_method("loar")

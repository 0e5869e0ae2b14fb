"""Turns a budget into a whole number of units: LoRA's rank, directions of OSF, layers."""

from torch import nn

from neutral_residues.errors import UserError
from neutral_residues.tuner.blocks import count_backbone_weights
from neutral_residues.tuner.neutral import BUDGET_TOLERANCE


def units_for_budget(
    model: nn.Module,
    budget: float,
    *,
    unit: str,
    weights_per_unit: int,
    fixed_weights: int = 0,
    num_other_weights: int = 0,
) -> int:
    """The number of units, at least 1, whose weights are `budget` times those of the backbone.

    Args:
        model: the backbone, before the method is attached.
        budget: new weights as a share of the backbone's.
        unit: its name in the error message.
        weights_per_unit: new weights of each unit.
        fixed_weights: new weights that do not depend on the number of units.
        num_other_weights: weights of `model` that are not the backbone's (rows of new tokens).

    Raises:
        UserError: if no whole number comes within 2 % of the budget; names the nearest.
    """
    backbone = count_backbone_weights(model) - num_other_weights
    count = max(1, round((budget * backbone - fixed_weights) / weights_per_unit))
    share = (count * weights_per_unit + fixed_weights) / backbone
    if abs(share - budget) > BUDGET_TOLERANCE * budget:
        do = f"the nearest is {share:.5f} ({unit} {count})"
        raise UserError(f"budget cannot be met within 2 % by a whole {unit}", got=budget, do=do)
    return count

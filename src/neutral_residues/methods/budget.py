"""How a budget becomes a whole number of something: ranks, directions, layers."""

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
    """How many units, each of `weights_per_unit` new weights besides the fixed ones, make `budget`,
    a share of the weights of the backbone, which `model` is with some others besides; a UserError
    that names the nearest if no whole number comes within 2 % of it."""
    backbone = count_backbone_weights(model) - num_other_weights
    count = max(1, round((budget * backbone - fixed_weights) / weights_per_unit))
    share = (count * weights_per_unit + fixed_weights) / backbone
    if abs(share - budget) > BUDGET_TOLERANCE * budget:
        do = f"the nearest is {share:.5f} ({unit} {count})"
        raise UserError(f"budget cannot be met within 2 % by a whole {unit}", got=budget, do=do)
    return count

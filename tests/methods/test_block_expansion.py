"""Block expansion on several families: it starts as the backbone, or says why it cannot."""

import pytest
import torch

from families import DENSE, FAMILIES, greedy, on_nearest_budget
from neutral_residues import UserError
from neutral_residues.methods.block_expansion import expand_blocks
from tiny_llama import logits


@pytest.mark.parametrize("family", [*DENSE, "gpt2"])
def test_an_expanded_model_is_the_backbone_and_generates(family: str) -> None:
    before, model = on_nearest_budget(
        family, lambda model, budget: expand_blocks(model, budget=budget)
    )
    assert model.config.num_hidden_layers == FAMILIES[family].get("num_hidden_layers", 2) + 1
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)
    assert torch.equal(greedy(model, use_cache=True), greedy(model, use_cache=False))


@pytest.mark.parametrize(
    ("family", "line"),
    [
        ("qwen2_moe", "cannot expand Qwen2MoeForCausalLM; got its logits change by"),
        ("mixtral", "output projections of MixtralDecoderLayer were not found; got 1 of 2"),
        ("deepseek_v3", "block expansion needs layers of one size"),
        ("gemma4_text", "cannot expand Gemma4ForCausalLM"),
    ],
)
def test_what_cannot_be_expanded_is_refused(family: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        on_nearest_budget(family, lambda model, budget: expand_blocks(model, budget=budget))

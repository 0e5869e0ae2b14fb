"""Which weights train in fine-tuning."""

from neutral_residues.methods.full import train_ffns
from tiny_llama import tiny_llama


def test_fine_tuning_of_the_ffn_leaves_the_rest_frozen() -> None:
    model = train_ffns(tiny_llama())
    assert {("mlp" in name) for name, p in model.named_parameters() if p.requires_grad} == {True}
    assert all(p.requires_grad for name, p in model.named_parameters() if "mlp" in name)

"""What host models and Transformers do to a module that has extensions beside it."""

import pytest
import torch
from peft import PeftModel

from tiny_llama import extended_llama, logits


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_tied_again_as_before(tied: bool) -> None:
    model = extended_llama(gate_reads="tokens", new_tokens=5, new_tokens_rank=4)
    base = model.get_base_model()
    base.config.tie_word_embeddings = tied
    before, names = logits(model), list(model.state_dict())
    shared = torch.nn.Parameter(base.get_input_embeddings().weight.detach().clone())
    if tied:
        base.get_output_embeddings().weight = shared
        base.get_input_embeddings().weight = shared
    base.tie_weights()
    assert list(model.state_dict()) == names
    head, embeddings = (it.base_layer.weight for it in both_ends(model))
    assert (head is embeddings) is tied
    assert torch.equal(logits(model), before) is not tied


def both_ends(model: PeftModel) -> tuple[torch.nn.Module, torch.nn.Module]:
    base = model.get_base_model()
    return base.get_output_embeddings(), base.get_input_embeddings()

"""With new tokens, code of Transformers that asks the configuration for the number of logits gets
what there are, or is refused."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import SynthIDTextWatermarkingConfig, WatermarkingConfig

from families import FAMILIES, build
from neutral_residues import NeutralResiduesConfig, UserError
from neutral_residues.tuner.embeddings import embeddings_layer
from tiny_llama import NUM_NEW_TOKENS as N
from tiny_llama import V, llama_with_tokens, perturb, tiny_llama, token_ids

GREEDY = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None}


def prompts() -> Tensor:
    """Old tokens and new ones, with a pair that comes again."""
    ids = token_ids(2, 10)
    ids[:, 3], ids[:, -2:] = V + 5, ids[:, 2:4]
    return ids


@pytest.fixture
def model() -> PeftModel:
    """New tokens are always possible, and likely."""
    model = llama_with_tokens(block_gate="none")
    tokens = embeddings_layer(model).tokens("default")
    with torch.no_grad():
        tokens.codes.weight.mul_(4)
    return model


@pytest.mark.parametrize("normalize_logits", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_transition_scores_are_those_of_the_chosen_tokens(
    model: PeftModel, normalize_logits: bool, beams: int
) -> None:
    settings = GREEDY | {"output_scores": True, "return_dict_in_generate": True}
    found = model.generate(input_ids=prompts(), num_beams=beams, **settings)
    chosen = found.sequences[:, 10:]
    assert (chosen >= V).any()
    indices = found.beam_indices if beams > 1 else None
    scores = model.compute_transition_scores(
        found.sequences, found.scores, indices, normalize_logits=normalize_logits
    )
    if beams > 1:
        if not normalize_logits:
            torch.testing.assert_close(scores.sum(1) / 12, found.sequences_scores)
        return
    logits = model(input_ids=found.sequences).logits[:, 9:-1]
    assert logits.shape[-1] == V + N
    expected = logits.log_softmax(-1) if normalize_logits else logits
    torch.testing.assert_close(scores, expected.gather(-1, chosen[..., None])[..., 0].detach())


def test_prompt_lookup_takes_new_tokens_and_changes_nothing(model: PeftModel) -> None:
    start = prompts()[:1]
    settings = GREEDY | {"repetition_penalty": 1.05}
    plain = model.generate(input_ids=start, **settings)
    assert torch.equal(
        plain, model.generate(input_ids=start, prompt_lookup_num_tokens=4, **settings)
    )
    assert model.config.vocab_size == V


def test_watermarks(model: PeftModel) -> None:
    with pytest.raises(UserError, match="detector does not know of new tokens; got Watermarking"):
        model.generate(prompts(), watermarking_config=WatermarkingConfig(), **GREEDY)
    keys = SynthIDTextWatermarkingConfig(keys=[7, 11, 13], ngram_len=3)
    settings = GREEDY | {"do_sample": True}
    assert model.generate(prompts(), watermarking_config=keys, **settings).shape == (2, 22)
    with model.disable_adapter():
        model.generate(token_ids(), watermarking_config=WatermarkingConfig(), **GREEDY)


def test_another_number_of_embeddings_is_refused(model: PeftModel) -> None:
    for arguments in ((V + N,), (V, 128), (None, 128)):
        with pytest.raises(UserError, match="resize_token_embeddings would move the ids"):
            model.resize_token_embeddings(*arguments)
    assert model.resize_token_embeddings(V) is model.get_input_embeddings()


def test_a_copy_generates_by_itself_and_an_unloaded_model_is_plain(model: PeftModel) -> None:
    other = copy.deepcopy(model)
    before = model.generate(input_ids=prompts(), **GREEDY)
    perturb(model, 5)
    assert torch.equal(other.generate(input_ids=prompts(), **GREEDY), before)
    assert not torch.equal(model.generate(input_ids=prompts(), **GREEDY), before)
    unloaded = model.unload()
    assert {"generate", "resize_token_embeddings"}.isdisjoint(vars(unloaded))
    expected = tiny_llama().generate(input_ids=token_ids(), **GREEDY)
    assert torch.equal(unloaded.generate(input_ids=token_ids(), **GREEDY), expected)


@pytest.mark.parametrize("with_loss", [False, True])
@torch.no_grad()
def test_behind_a_cap_of_logits_without_return_dict(with_loss: bool) -> None:
    backbone = build("gemma2", FAMILIES["gemma2"])
    model = get_peft_model(backbone, NeutralResiduesConfig(budget=0.9, new_tokens=N))
    perturb(model)
    model.eval()
    ids = prompts()
    labels = {"labels": ids} if with_loss else {}
    expected = model(input_ids=ids, **labels)
    found = model(input_ids=ids, return_dict=False, **labels)
    assert expected.logits.isinf().any()
    assert torch.equal(found[int(with_loss)], expected.logits)
    assert len(found) == len(expected.to_tuple())

"""Chat answers: how many of the backbone's the extended model still gives word for word.

    read_prompts(Path("prompts.jsonl"))      JSON lines with a key "prompt"
    answer_both(model, tokenizer, prompts)   a sample each; `sample.is_same`

Bits per byte say how probable a text is, tasks whether an answer is right; this says whether those
who talk to the model would notice anything. Each prompt is the user's only message in the model's
own chat template, both models answer greedily, and answers count as the same where all of their
text is, up to `max_new_tokens`. One different token changes everything after it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from neutral_residues.config.data import Corpus
from neutral_residues.data.documents import iter_documents
from neutral_residues.evaluation.generate import check_prompt, generate_both
from neutral_residues.results.record import Sample

FIELD = "prompt"


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file of JSON lines or a column; a UserError if it cannot be read, or has
    none."""
    return list(iter_documents(Corpus(name="chat", role="source", path=path, field=FIELD)))


def check_prompts(
    prompts: Sequence[str],
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
) -> None:
    """A UserError for a tokenizer without a chat template, and for a prompt that does not fit."""
    for prompt in prompts:
        check_prompt(config, tokenizer, prompt, max_new_tokens=max_new_tokens, chat=True)


def answer_both(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_rows: int,
    reference: nn.Module | None = None,
    backbone_tokenizer: PreTrainedTokenizerBase | None = None,
    end_of_text: int | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> list[Sample]:
    """The greedy answers of backbone and extended model to each prompt; see `generate_both`.

    Args:
        batch_rows: prompts in a batch.
        on_progress: called after each batch with "chat", the prompts done and all of them.
    """
    answers: list[Sample] = []
    for first in range(0, len(prompts), batch_rows):
        answers += generate_both(
            model,
            tokenizer,
            prompts[first : first + batch_rows],
            max_new_tokens=max_new_tokens,
            chat=True,
            reference=reference,
            backbone_tokenizer=backbone_tokenizer,
            end_of_text=end_of_text,
        )
        if on_progress is not None:
            on_progress("chat", len(answers), len(prompts))
    return answers

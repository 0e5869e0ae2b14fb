"""Chat answers: for how many prompts both models give the same answer, word for word.

    read_prompts(Path("prompts.jsonl"))      JSON lines with a key "prompt"
    answer_both(model, tokenizer, prompts)   a `Sample` for each; `sample.is_same`

Bits per byte measure how probable a text is, and tasks whether answers are right; this measures
whether users of a chat model would notice a difference. Each prompt is the only user message in the
chat template of the model, and both models answer greedily. Answers are the same if their whole
text is, up to `max_new_tokens`; one different token usually changes everything after it.
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
    """Read the field "prompt" of a .jsonl, .tsv or .parquet file. Raises a UserError if the file
    cannot be read or has no prompts."""
    return list(iter_documents(Corpus(name="chat", role="source", path=path, field=FIELD)))


def check_prompts(
    prompts: Sequence[str],
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
) -> None:
    """Raise a UserError for a tokenizer without a chat template, or a prompt that is empty or does
    not fit the context."""
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
    """Greedy answers of backbone and extended model to each prompt. Other arguments and errors are
    those of `generate_both`.

    Args:
        batch_rows: prompts per batch.
        on_progress: called after each batch with "chat", the number of prompts done, and their
            total.
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

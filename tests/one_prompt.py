"""One prompt, continued by backbone and extended model."""

from typing import Any

from neutral_residues.evaluation.generate import generate_both
from neutral_residues.results.record import Sample


def continue_one(model: Any, tokenizer: Any, prompt: str, **options: Any) -> Sample:
    (sample,) = generate_both(model, tokenizer, [prompt], **options)
    return sample

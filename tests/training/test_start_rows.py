"""Start rows that take long are found once; what is damaged is found again."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch

from damage import damages
from neutral_residues.config.run import make_run
from neutral_residues.training.models import model_to_train
from neutral_residues.training.setup import Setup
from neutral_residues.training.start_rows import _work
from tiny_run import NUM_NEW_TOKENS, vocabulary_values


def test_they_are_cached(tmp_path: Path) -> None:
    said = []

    def tokenising(what: str) -> AbstractContextManager[Callable[[int], object]]:
        if what.startswith("distilling"):
            said.append(what)
        return nullcontext(lambda num_bytes: None)

    vocabulary = {"size": NUM_NEW_TOKENS, "start": "distilled"}
    values = vocabulary_values(tmp_path, vocabulary=vocabulary)

    def embeddings(**changes: object) -> torch.Tensor:
        setup = Setup.of(make_run(values | changes), tokenising=tokenising)
        ids = torch.arange(260, 260 + NUM_NEW_TOKENS)[None]
        return model_to_train(setup).get_input_embeddings()(ids).detach()

    found = embeddings()
    assert len(said) == 1
    assert torch.equal(embeddings(), found)
    embeddings(seed=1)
    assert len(said) == 1
    (file,) = (tmp_path / "cache").glob("distilled-*/rows.safetensors")
    for number, damage in enumerate(damages(file, flips=2)):
        assert torch.equal(embeddings(), found), damage
        assert len(said) == 2 + number


def test_tokens_that_are_not_in_the_text_are_counted() -> None:
    text = np.array([[1, 260, 261], [260, 2, 3]])
    said = _work(text, 260, 12)
    assert (
        said == "distilling 12 new tokens; 10 are not in the text and keep the mean of their pieces"
    )
    assert _work(text, 260, 2) == "distilling 2 new tokens"

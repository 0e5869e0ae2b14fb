"""What the tests of training share: one thread, no progress bars, and garbage collected once."""

import gc
from collections.abc import Iterator

import datasets
import pytest
import torch
from transformers.utils import logging


@pytest.fixture(autouse=True, scope="module")
def what_is_imported_stays() -> Iterator[None]:
    """Every Trainer collects garbage when it starts; half its time here would be looking through
    the libraries."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def quiet_and_one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    yield
    torch.set_num_threads(before)

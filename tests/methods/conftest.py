"""What the adapter tests share: one thread and no progress bars."""

import pytest
import torch
from transformers.utils import logging


@pytest.fixture(autouse=True)
def _quiet_and_single_threaded() -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()

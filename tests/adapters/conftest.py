"""What the adapter tests share: one thread, no progress bars, and the warnings of others that nobody here can avoid."""

import pytest
import torch
from transformers.utils import logging


def pytest_configure(config: pytest.Config) -> None:
    # PEFT asks every model for this property, which Transformers has renamed.
    config.addinivalue_line("filterwarnings", "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def _quiet_and_single_threaded() -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()

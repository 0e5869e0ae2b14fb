"""What the tests of tasks share: one thread, and a tiny extended model."""

from pathlib import Path

import pytest
import torch

from tiny_tasks import Measured


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def measured(tmp_path: Path) -> Measured:
    return Measured(tmp_path)

"""What the export tests share: one thread, no progress bars, and code of exported folders in a
cache of their own."""

from pathlib import Path

import pytest
import torch
from transformers import dynamic_module_utils
from transformers.utils import logging


@pytest.fixture(autouse=True)
def _quiet_and_single_threaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))

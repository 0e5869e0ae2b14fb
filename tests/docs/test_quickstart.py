"""The examples of docs/quickstart.md and docs/methods.md run, on the demo's backbone."""

import gzip
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from neutral_residues.config.run import make_run
from neutral_residues.methods.table import find_method
from paths import DEMO_BACKBONE, ROOT


def examples(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def test_the_run_file() -> None:
    (run,) = examples("quickstart.md", "yaml")
    assert make_run(yaml.safe_load(run)).evaluation.prompts


def test_the_script_trains_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script, loop = examples("quickstart.md", "python")
    script = script.replace("HuggingFaceTB/SmolLM2-135M", str(DEMO_BACKBONE))
    script = script.replace("max_steps=1000", "max_steps=2, use_cpu=True, report_to=[]")
    for name in ("french", "english"):
        lines = [json.dumps({"text": f"{name} words"})] * 8 + [json.dumps({"text": "more " * 9})]
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    names: dict[str, Any] = {}
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    exec(compile(script, "quickstart.md", "exec"), names)
    assert (tmp_path / "my-extension" / "adapter_model.safetensors").is_file()
    assert set(names["trainer"].train_dataset["domain_labels"]) == {0, 1}

    ids = list(range(5, 25))
    batch = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([ids])}
    names |= {"batch": batch, "domain_labels": torch.ones(1, len(ids), dtype=torch.long)}
    exec(compile(loop, "quickstart.md", "exec"), names)
    assert names["loss"].isfinite()


def test_a_method_of_your_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_methods")
    exec(compile(examples("methods.md", "python")[0], "methods.md", "exec"), vars(module))
    monkeypatch.setitem(sys.modules, "my_methods", module)
    assert find_method("my_methods:SLOW_LORA").learning_rate == 1e-4

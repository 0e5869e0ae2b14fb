"""A comparison on the tiny backbone and texts."""

from pathlib import Path
from typing import Any

from neutral_residues.config.base import checked
from neutral_residues.config.comparison import CompareConfig
from tiny_run import TARGET_WORDS, make_text, run_values, write_run


def comparison(folder: Path, steps: int = 4, **settings: Any) -> CompareConfig:
    values = run_values(folder, steps=steps)
    make_text(folder / "valid.jsonl", TARGET_WORDS, documents=4, seed=5)
    values["data"]["validate_on"] = [
        {"name": "fr-valid", "role": "target", "path": str(folder / "valid.jsonl")}
    ]
    run = write_run(folder, values, "tiny.yaml")
    common = {"runs": [str(run)], "output": str(folder / "out"), "jobs": 2}
    return checked(CompareConfig, common | {"methods": ["finetune"]} | settings)

"""A fixed tiny run and everything that a refactor must not change: inputs, losses, measurements,
logits.

    PYTHONPATH=tests python tests/golden/golden_run.py FILE      writes what the code gives now

`golden.json` beside this file was written that way. Whoever changes the numbers on purpose writes
it anew, in a commit that says why (and LAB.md has the reason).
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM

from neutral_residues import extend
from neutral_residues.config.run import make_run
from neutral_residues.training.setup import Setup
from tiny_run import run_values

NUM_ROWS = 16
PROMPT = "the cat sat on a mat, le chat est sur un tapis"


def golden_run(folder: Path) -> dict[str, Any]:
    """Train and measure the tiny run in `folder`; numbers as JSON holds them, exact to the last
    bit."""
    values = run_values(folder) | {"seed": 3}
    # In so few steps the usual weight closes the gate on all text, and nothing could change.
    values["residues"] = {"local_loss_weight": 0.02}
    # Muon computes in bfloat16, whose last bit differs from one CPU to the next.
    values["training"] |= {"learning_rate": 0.03, "optimizer": "adamw"}
    values["evaluation"] = values["evaluation"] | {"prompts": ["le "]}
    setup = Setup.of(make_run(values))
    rows = setup.rows
    record = extend(setup)
    sets = record.sets
    model = AutoPeftModelForCausalLM.from_pretrained(setup.config.output / "extension").eval()
    input_ids = setup.tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = model(input_ids=input_ids).logits[0, -1]
    return {
        "input_ids": [rows[i]["input_ids"].tolist() for i in range(NUM_ROWS)],
        "domain_labels": [rows[i]["domain_labels"].tolist() for i in range(NUM_ROWS)],
        "corpus_id": [rows[i]["corpus_ids"][0].item() for i in range(NUM_ROWS)],
        "curve": record.curve,
        "bits_per_byte": {
            name: [sets[name].backbone_bits_per_byte, sets[name].extended_bits_per_byte]
            for name in ("fr", "en")
        },
        "gates_zero": {
            name: [layer.gates_zero for layer in sets[name].layers] for name in ("fr", "en")
        },
        "last_logits": logits.tolist(),
    }


def main(path: Path) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = golden_run(Path(folder))
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Runs in a fresh process: loads an exported folder as a stranger would and says how far it is from
the live model.

    python -P child.py REQUEST

REQUEST is a folder with `request.json` and `seen.safetensors`; the answer goes to `answer.json` in
it. This package and PEFT cannot be imported here, so an export that quietly needs them fails.
Everything is computed in float32 on the CPU.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

BLOCKED = ("neutral_residues", "peft")
NEW_TOKENS = 6


def main(request: Path) -> None:
    for name in BLOCKED:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own way to make an import fail
    from safetensors.torch import load_file

    wanted = json.loads((request / "request.json").read_text(encoding="utf-8"))
    seen = load_file(request / "seen.safetensors")
    if wanted["kind"] == "model":
        answer = compare_model(
            Path(wanted["folder"]), seen, trust_remote_code=wanted["trust_remote_code"]
        )
    else:
        sys.modules["transformers"] = None  # type: ignore[assignment]  # nor is that needed there
        answer = compare_residues(Path(wanted["folder"]), seen)
    (request / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


def compare_model(folder: Path, seen: dict[str, Any], *, trust_remote_code: bool) -> dict[str, Any]:
    """Logits on the same tokens against those seen, and cached generation against the same model
    without a cache."""
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=trust_remote_code, dtype=torch.float32, output_loading_info=True
    )
    strange = {name: sorted(keys) for name, keys in info.items() if name.endswith("_keys") and keys}
    if strange:
        return {"error": f"weights do not fit: {strange}"}
    model.eval()
    token_ids_BT, expected_BTV = seen["token_ids"], seen["logits"]
    with torch.no_grad():
        logits_BTV = model(input_ids=token_ids_BT).logits
        half = token_ids_BT[:, : token_ids_BT.shape[1] // 2]
        out = model.generate(
            input_ids=half,
            attention_mask=torch.ones_like(half),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
        cached_BTV = torch.stack(out.logits, dim=1)
        whole_BTV = model(input_ids=out.sequences[:, :-1], use_cache=False).logits[
            :, half.shape[1] - 1 :
        ]
    return {
        "largest": expected_BTV.abs().max().item(),
        "difference": (logits_BTV - expected_BTV).abs().max().item(),
        "cache_difference": (cached_BTV - whole_BTV).abs().max().item(),
    }


def compare_residues(folder: Path, seen: dict[str, Any]) -> dict[str, Any]:
    """What the folder's own `reference.py` makes of each block's input against the residue that was
    seen."""
    import torch

    spec = importlib.util.spec_from_file_location("reference", folder / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    layers = reference.DESCRIPTION["layers"]
    largest = difference = 0.0
    with torch.no_grad():
        for layer, block in layers.items():
            expected = seen[f"residues.{block}"]
            found = reference.residue(seen[f"inputs.{block}"], int(layer))
            largest = max(largest, expected.abs().max().item())
            difference = max(difference, (found - expected).abs().max().item())
    return {"largest": largest, "difference": difference, "cache_difference": 0.0}


if __name__ == "__main__":
    main(Path(sys.argv[1]))

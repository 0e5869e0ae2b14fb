"""Loads an exported folder as any other program would, and compares its outputs with those of the
original model. Runs in a process of its own, started by `verify.py`:

    python -P verify_child.py REQUEST

REQUEST is a folder with `request.json` and `reference.safetensors`; the result is written to
`answer.json` in it. Imports of this package and PEFT are blocked, so an export that needs them
fails. Everything is computed in float32 on the CPU.
"""

import json
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

BLOCKED = ("neutral_residues", "peft")
NEW_TOKENS = 6


def main(request: Path) -> None:
    asked = json.loads((request / "request.json").read_text(encoding="utf-8"))
    # Plain tensors must not need Transformers either.
    for name in (*BLOCKED, "transformers") if asked["kind"] == "residues" else BLOCKED:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own way to block an import
    from safetensors.torch import load_file

    folder, reference = Path(asked["folder"]), load_file(request / "reference.safetensors")
    if asked["kind"] == "logits":
        answer = compare_logits(folder, reference, trust_remote_code=asked["trust_remote_code"])
    else:
        answer = compare_residues(folder, reference)
    (request / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


def compare_logits(
    folder: Path, reference: dict[str, Any], *, trust_remote_code: bool
) -> dict[str, Any]:
    """Compare logits of the exported model with the reference, and its logits in generation with a
    cache with those without."""
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=trust_remote_code, dtype=torch.float32, output_loading_info=True
    )
    unfit = {name: sorted(keys) for name, keys in info.items() if name.endswith("_keys") and keys}
    if unfit:
        return {"error": f"weights do not fit: {unfit}"}
    model.eval()
    token_ids_BT, expected_BTV = reference["token_ids"], reference["logits"]
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
        uncached_BTV = model(input_ids=out.sequences[:, :-1], use_cache=False).logits
    return {
        "largest": largest(expected_BTV),
        "outputs": largest_difference(logits_BTV, expected_BTV),
        "cache": largest_difference(cached_BTV, uncached_BTV[:, half.shape[1] - 1 :]),
    }


def compare_residues(folder: Path, reference: dict[str, Any]) -> dict[str, Any]:
    """Compare what the folder's `reference.py` computes with the reference: the residues from the
    inputs of blocks and head, the gate from embeddings, embeddings and logits of new tokens."""
    import torch

    module = runpy.run_path(str(folder / "reference.py"))
    keys = ("layers", "head", "reader", "new_tokens")
    layers, head, reader, tokens = (module["DESCRIPTION"][key] for key in keys)
    computed = {block: partial(module["residue"], layer=int(n)) for n, block in layers.items()}
    if head is not None:
        computed[head["module"]] = module["head_residue"]
    given, kinds = {}, []  # `kinds`: (found, expected) pairs, a list for each kind of number
    with torch.no_grad():
        if reader is not None:
            given["g"] = module["gate"](reference["embeddings"])
            kinds.append([(given["g"], reference["gate"])])
        found = {n: compute(reference[f"inputs.{n}"], **given) for n, compute in computed.items()}
        kinds.append([(residue, reference[f"residues.{n}"]) for n, residue in found.items()])
        if tokens is not None:
            rows = module["new_embeddings"](torch.arange(tokens["N"]))
            # With the reference's gate: the logarithm of a small gate magnifies its rounding error.
            gate = dict.fromkeys(given, reference.get("gate"))
            logits = module["new_logits"](reference["new_tokens.inputs"], **gate)
            kinds.append([(rows, reference["new_tokens.embeddings"])])
            kinds.append([(logits, reference["new_tokens.logits"])])
    return farthest(kinds) | {"cache": 0.0}


def farthest(kinds: list[list[tuple[Any, Any]]]) -> dict[str, float]:
    """The kind of number with the largest relative difference: its largest number ("largest") and
    its largest difference ("outputs")."""
    import torch

    sizes = torch.tensor([max(largest(expected) for _, expected in pairs) for pairs in kinds])
    off = torch.stack([torch.tensor([largest_difference(*it) for it in p]).max() for p in kinds])
    kind = int((off / sizes).argmax())  # argmax takes NaN for the largest
    return {"largest": sizes[kind].item(), "outputs": off[kind].item()}


def largest(expected: Any) -> float:
    """Largest absolute value among the finite numbers."""
    return float(expected.where(expected.isfinite(), expected.new_zeros(())).abs().max())


def largest_difference(found: Any, expected: Any) -> float:
    """Largest absolute difference; infinite if a number is -inf in only one of the two."""
    return float((found - expected).abs().where(found != expected, found.new_zeros(())).max())


if __name__ == "__main__":
    main(Path(sys.argv[1]))

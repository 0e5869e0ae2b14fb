"""Made-up records with numbers that can be worked out by hand, as a comparison would leave them."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from neutral_residues.results.record import Cost, GateText, Provenance, Record, Sample
from neutral_residues.results.set_result import (
    Breakdown,
    DocumentChange,
    EvaluationSet,
    LayerResult,
    SetResult,
    TokenChange,
    TokenClass,
)
from neutral_residues.results.store import write_record

HOSTILE = "<script>alert('x')</script>"
BACKBONE = {"en": 1.0, "wiki": 2.0, "fr": 4.0, "de": 5.0}
LAYERS = range(1, 6)


NUM_BYTES, NUM_TOKENS = 1000, 300


def nats(bits: float) -> float:
    """What so many bits per byte are on a set of ours."""
    return bits * NUM_BYTES * math.log(2)


def set_result(name: str, bits: float, **changes: Any) -> SetResult:
    """A set on which the extended model needs `bits` per byte."""
    values = dict(evaluation_set(name)) | {
        "backbone_nats": nats(BACKBONE[name]),
        "extended_nats": nats(bits),
    }
    return SetResult(**values | changes)


def evaluation_set(name: str) -> EvaluationSet:
    """The sizes of a set."""
    return EvaluationSet(
        role="target" if name.removesuffix("-dev") in ("fr", "de") else "source",
        key=f"key-{name}",
        num_bytes=NUM_BYTES,
        num_tokens=NUM_TOKENS,
        num_documents=5,
    )


def make_record(
    label: str = "neutral",
    *,
    method: str | None = None,
    seed: int = 0,
    rate: float | None = 1e-3,
    share: float | None = None,
    forgetting: float = 0.5,
    bits: float = 2.0,
    validation: float | None = None,
    target: str = "fr",
    new_weights: int = 200,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> Record:
    """A record whose source sets changed by `forgetting` % (half of it and one and a half), with
    its target at `bits`.

    Args:
        validation: bits per byte at the end on target text to validate on; None means there is no
            such text.
        settings: dotted keys of the configuration to change.
    """
    method = method or label
    config = _config(label, method, seed, rate, share, target)
    for key, value in (settings or {}).items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    gated = method == "neutral"
    breakdowns = {
        "en": _breakdown("en", 0.005 * forgetting, is_concentrated=label == "lora"),
        target: _breakdown(target, bits - BACKBONE[target]),
    }

    def inside(name: str) -> dict[str, Any]:
        return (_gate_results(name) if gated else {}) | {"breakdown": breakdowns.get(name)}

    values: dict[str, Any] = {
        "kind": "extend",
        "created": datetime(2025, 7, 1, 12, seed, tzinfo=UTC),
        "method": method,
        "sets": {
            "en": set_result("en", BACKBONE["en"] * (1 + 0.5 * forgetting / 100), **inside("en")),
            "wiki": set_result(
                "wiki", BACKBONE["wiki"] * (1 + 1.5 * forgetting / 100), **inside("wiki")
            ),
            target: set_result(target, bits, **inside(target)),
        },
        "validation_sets": {
            name: evaluation_set(name)
            for name in (["en-dev", f"{target}-dev"] if validation is not None else [])
        },
        "curve": [] if share is not None else _curve(target, forgetting, bits, validation),
        "samples": [
            Sample(
                prompt=f"Il y a {HOSTILE}",
                backbone=" and then,",
                extended=f" la mère </script> & {label}",
            )
        ],
        "gates": _gate_texts(target) if gated else [],
        "cost": Cost(
            tokens=100_000,
            seconds=50.0,
            tokens_per_second=2000.0 + seed,
            step_seconds=0.25,
            threads=1,
            peak_memory_bytes=2**30,
            trainable_weights=new_weights or 1000,
            new_weights=new_weights,
            stored_weights=new_weights or 1000,
            backbone_weights=1000,
        ),
        "provenance": Provenance(
            python="3.11.7",
            platform="Linux 6.1 x86_64",
            device="cpu",
            packages={"torch": "2.13.0"},
            git_commit="abc123",
            seed=seed,
            tokenizer_key="tokenizer-1",
        ),
        "config": config,
    }
    return Record(**values | changes)


def _config(
    label: str, method: str, seed: int, rate: float | None, share: float | None, target: str
) -> dict[str, Any]:
    return {
        "model": "models/tiny",
        "method": method,
        "label": label,
        "budget": 0.2,
        "seed": seed,
        "output": f"runs/{label}-{seed}-{rate}-{share}",
        "data": {
            "train": [{"name": target}],
            "source_share": 0.1,
            "block_tokens": 128,
            "cache": None,
        },
        "averaging": {"share": 0.5 if share is None else share, "finetuned": None},
        "training": {"steps": 200, "learning_rate": rate},
        "evaluation": {"context_tokens": 128, "stride_tokens": 64},
    }


def _curve(
    target: str, forgetting: float, bits: float, validation: float | None
) -> list[dict[str, int | float]]:
    """Half of the way at step 100, all of it at step 200; plus a line of the log without any
    set."""
    suffix = "" if validation is None else "-dev"
    end = bits if validation is None else validation
    curve: list[dict[str, int | float]] = [
        {
            "step": step,
            f"bits_per_byte/en{suffix}": 1 + way * forgetting / 100,
            f"bits_per_byte/{target}{suffix}": BACKBONE[target] + way * (end - BACKBONE[target]),
        }
        for step, way in ((0, 0.0), (100, 0.6), (200, 1.0))
    ]
    return [*curve, {"step": 200, "loss": 1.5, "learning_rate": 1e-4}]


def _breakdown(name: str, change: float, *, is_concentrated: bool = False) -> Breakdown:
    """Three fifths of the change on rare words, half of it on frequent ones, the rest the other way
    on punctuation."""
    before = {"punctuation": 0.2, "frequent words": 0.3, "rare words": BACKBONE[name] - 0.5}
    shares = {"punctuation": -0.1, "frequent words": 0.5, "rare words": 0.6}
    return Breakdown(
        classes=[
            TokenClass(
                kind=kind,
                num_types=10,
                num_tokens=100,
                backbone=bits,
                extended=max(0, bits + share * change),
            )
            for (kind, bits), share in zip(before.items(), shares.values(), strict=True)
        ],
        num_types=300,
        num_carriers=2,
        carriers_share=0.02,
        carriers=[TokenChange(text=f" {HOSTILE}", num_tokens=4, change=change / 3)],
        is_concentrated=is_concentrated,
        documents=[
            DocumentChange(
                number=4, num_bytes=100, backbone=1.0, extended=1.5, excerpt=f"Once {HOSTILE}"
            )
        ],
    )


def _gate_results(name: str) -> dict[str, Any]:
    """Nine tenths of the source tokens are neutral; gates open more in deeper layers."""
    zero = {"en": 0.95, "wiki": 0.9}.get(name, 0.1)
    return {
        "num_neutral_tokens": 270 if name in ("en", "wiki") else 0,
        "layers": [
            LayerResult(layer=n, gates_zero=zero - n / 100, residue_rms=(1 - zero) * n)
            for n in LAYERS
        ],
    }


def _gate_texts(target: str) -> list[GateText]:
    texts = {
        ("en", "source"): [
            "The",
            " old",
            " man",
            " went",
            " <b>",
            HOSTILE,
            ".",
            "\n",
            "He",
            " said",
            " $x_1",
            " 好",
        ],
        (target, "target"): [
            "Il",
            " y",
            " avait",
            " dans",
            " la",
            " ville",
            "\u00a0!",
            "\n",
            "\x00",
            " un",
            " homme",
        ],
        ("code-switched", "code-switched"): [
            "The",
            " old",
            " man",
            " dans",
            " la",
            " ville",
            " said",
            " no",
            ".",
        ]
        * 4,
    }
    found = []
    for (name, kind), tokens in texts.items():
        opened = {"source": 0.02, "target": 0.8}.get(kind)
        gates = [
            [
                (opened if opened is not None else float(token in (" dans", " la", " ville")))
                * ((7 * place + 3 * layer) % 5)
                / 4
                for place, token in enumerate(tokens)
            ]
            for layer in LAYERS
        ]
        gates = [[0.0 if gate < 0.02 else gate for gate in row] for row in gates]
        found.append(
            GateText(name=name, kind=kind, tokens=tokens, layers=list(LAYERS), gates=gates)
        )
    return found


def make_comparison(folder: Path, *, targets: tuple[str, ...] = ("fr", "de")) -> Path:
    """A comparison folder: tuned methods with two seeds, weight averages, a cell that failed and
    one not done."""
    (folder / "cells").mkdir(parents=True)
    (folder / "compare.yaml").write_text("seeds: [0, 1]\n")
    for target in targets:
        for record in comparison_records(target):
            cell = (
                folder / "cells" / target / record.label / Path(str(record.config["output"])).name
            )
            write_record(cell / "record.json", record)
    failed = folder / "cells" / "fr" / "lora" / "lr9-s0"
    failed.mkdir(parents=True)
    (failed / "failure.json").write_text(
        json.dumps(
            {
                "format": "neutral-residues/failure",
                "label": "lora",
                "reason": f"the loss is not finite {HOSTILE}",
                "created": "2025-07-01T10:00:00Z",
            }
        )
    )
    waiting = folder / "cells" / "fr" / "lora" / "lr1-s9"
    (waiting / "checkpoints" / "checkpoint-100").mkdir(parents=True)
    (waiting / "run.yaml").write_text("model: x\n")
    return folder


def comparison_records(target: str = "fr") -> list[Record]:
    """Every method at three learning rates with the first seed, and at the best with a second;
    weight averages."""
    found = []
    methods = {
        # label: forgetting, bits per byte, at the best learning rate
        "neutral": (0.4, 2.10),
        "neutral.elu": (2.0, 2.05),
        "adapter": (6.0, 2.04),
        "lora": (7.5, 2.12),
        "llama-pro": (5.0, 2.30),
        "vera": (7.0, 2.20),
        "finetune": (8.5, 1.90),
    }
    for label, (forgetting, bits) in methods.items():
        common = {
            "method": label.partition(".")[0],
            "target": target,
            "new_weights": 0 if label == "finetune" else 200,
        }
        for factor, worse, seed in ((0.5, 0.15, 0), (1.0, 0.0, 0), (1.0, 0.0, 1), (2.0, 0.06, 0)):
            numbers = {
                "forgetting": forgetting * factor**0.7 + 0.1 * seed,
                "bits": bits + worse + 0.02 * seed,
                "validation": bits + worse + 0.1,
            }
            found += [make_record(label, seed=seed, rate=1e-3 * factor, **numbers, **common)]
    for share in (0.2, 0.4, 0.6, 0.8):
        for seed in (0, 1):
            numbers = {
                "forgetting": 9 * share**2.5 + 0.1 * seed,
                "bits": 4 - 2.1 * share**0.6 + 0.01 * seed,
            }
            common = {"share": share, "target": target, "new_weights": 0, "validation": 0.0}
            found += [make_record("wise-ft", seed=seed, **numbers, **common)]
    return found

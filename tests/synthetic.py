"""Made-up records with numbers that can be worked out by hand, as a comparison would leave them."""

import math
from pathlib import Path
from typing import Any

from neutral_residues.report.aggregate import Section, sections
from neutral_residues.report.load import Found
from neutral_residues.results.benchmark import Benchmark, Measured
from neutral_residues.results.record import Failure, Record, TaskScore
from neutral_residues.results.set_result import SetResult
from neutral_residues.results.store import provenance, write_record

HOSTILE = "<script>alert('x')</script>"
BACKBONE = {"en": 1.0, "wiki": 2.0, "fr": 4.0, "it": 5.0}
"""Bits per byte of the backbone on each set."""
LAYERS = range(1, 6)
NUM_BYTES, NUM_TOKENS = 1000, 300
COST = {
    "tokens": 100_000,
    "seconds": 50.0,
    "step_seconds": 0.25,
    "threads": 1,
    "peak_memory_bytes": 2**30,
    "backbone_weights": 1000,
}
PROVENANCE = {
    "python": "3.11.7",
    "platform": "Linux 6.1 x86_64",
    "device": "cpu",
    "packages": {"torch": "2.13.0"},
    "git_commit": "abc123",
    "tokenizer_key": "tokenizer-1",
}
GATED_TEXTS = {
    "source": f"The| old| man| went| <b>|{HOSTILE}|.|\n|He| said| $x_1| 好".split("|"),
    "target": [
        "Il",
        " y",
        " avait",
        " dans",
        " la",
        " ville",
        "\xa0!",
        "\n",
        "\x00",
        " un",
        " homme",
    ],
    "code-switched": ["The", " old", " man", " dans", " la", " ville", " said", " no", "."] * 4,
}
METHODS = {
    "neutral": (0.4, 2.10),
    "neutral.elu": (2.0, 2.05),
    "adapter": (6.0, 2.04),
    "lora": (7.5, 2.12),
    "llama-pro": (5.0, 2.30),
    "vera": (7.0, 2.20),
    "finetune": (8.5, 1.90),
}
"""Label -> forgetting in %, bits per byte at the best learning rate."""


def set_result(name: str, bits: float, **changes: Any) -> SetResult:
    """A set on which the extended model needs `bits` per byte."""
    backbone, extended = (value * NUM_BYTES * math.log(2) for value in (BACKBONE[name], bits))
    values = _text(name) | {"backbone_nats": backbone, "extended_nats": extended}
    return SetResult.model_validate(values | changes)


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
        validation: bits per byte at the end on target text for validation; None means there is no
            such text.
        settings: dotted keys of the configuration to change.
    """
    method = method or label
    gated = method == "neutral"
    config = _config(label, method, seed, rate, share, target)
    for key, value in (settings or {}).items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    ends = {
        "en": BACKBONE["en"] * (1 + 0.5 * forgetting / 100),
        "wiki": BACKBONE["wiki"] * (1 + 1.5 * forgetting / 100),
        target: bits,
    }
    inside = {name: _gates_by_layer(name) if gated else {} for name in ends}
    inside["en"]["breakdown"] = _breakdown("en", ends["en"], is_concentrated=label == "lora")
    inside[target]["breakdown"] = _breakdown(target, bits)
    suffix = "" if validation is None else "-dev"
    values = {
        "kind": "extend",
        "created": f"2025-07-01T12:{seed:02}:00Z",
        "method": method,
        "sets": {name: set_result(name, end, **inside[name]) for name, end in ends.items()},
        "validation_sets": {f"{n}-dev": _text(n) for n in ("en", target) if validation is not None},
        "curve": []
        if share is not None
        else _curve(target, forgetting, validation or bits, suffix),
        "samples": [
            {
                "prompt": f"Il y a {HOSTILE}",
                "backbone": " and then,",
                "extended": f" la mère </script> & {label}",
            }
        ],
        "beginnings": {
            n: _beginning(n, role, change)
            for n, role, change in (("en", "source", 0.25), (target, "target", -20.0))
        },
        "spliced": _spliced(target, gated=gated),
        "gates": _gates_over_text(target) if gated else [],
        "cost": COST
        | {
            "tokens_per_second": 2000.0 + seed,
            "trainable_weights": new_weights or 1000,
            "new_weights": new_weights,
            "stored_weights": new_weights or 1000,
        },
        "provenance": PROVENANCE | {"seed": seed},
        "config": config,
    }
    return Record.model_validate(values | changes)


def make_benchmark(value: float) -> Benchmark:
    """A benchmark with one row, which measured `value`."""
    row = Measured(group="decode", name="skip", against="backbone", ratio=1.1, value=value)
    return Benchmark(
        name="inference",
        title="Running it",
        command="python x.py",
        threads=2,
        rounds=3,
        provenance=provenance(),
        rows=[row],
    )


def score(name: str, change: float, half: float = 0.01, **changes: Any) -> TaskScore:
    """A score that changed from 0.5 by `change`, with an interval of `half` on each side."""
    values: dict[str, Any] = {
        "name": name,
        "metric": "acc",
        "unit": "share",
        "direction": "higher",
        "num_items": 400,
        "backbone": 0.5,
        "extended": 0.5 + change,
        "difference": change,
        "low": change - half,
        "high": change + half,
        "p_value": 0.2,
        "interval": "paired t",
        "num_fewshot": 0,
        "num_truncated": 0,
        "key": f"items of {name}",
        "language": name[-2:],
        "role": "target" if name.endswith("fr") else "source",
    }
    return TaskScore(**values | changes)


def with_kl(record: Record, nats: float, *sets: str) -> Record:
    """The record with a KL of `nats` per token on French, or on other sets."""
    changed = {}
    for name in sets or ("fr",):
        found = record.sets[name]
        changed[name] = found.model_copy(update={"kl_nats": nats * found.num_tokens})
    return record.model_copy(update={"sets": record.sets | changed})


def make_section(*records: Record) -> Section:
    """The one section of these records."""
    (only,) = sections([Found(f"record {n}", record) for n, record in enumerate(records)])
    return only


def two_seeds() -> Section:
    """Neutral residues with two seeds, LoRA with one, and a run without tasks."""
    return make_section(
        make_record(seed=0, tasks=[score("blimp-en", -0.001), score("clams-fr", 0.02)]),
        make_record(seed=1, tasks=[score("blimp-en", 0.003), score("clams-fr", 0.04, 0.03)]),
        make_record("lora", tasks=[score("clams-fr", -0.02)]),
        make_record("adapter"),
    )


def comparison_records(target: str = "fr") -> list[Record]:
    """Every method at three learning rates with the first seed, and at the best with a second;
    weight averages."""
    found = []
    for label, (forgetting, bits) in METHODS.items():
        for factor, worse, seed in ((0.5, 0.15, 0), (1.0, 0.0, 0), (1.0, 0.0, 1), (2.0, 0.06, 0)):
            record = make_record(
                label,
                method=label.partition(".")[0],
                target=target,
                seed=seed,
                rate=1e-3 * factor,
                forgetting=forgetting * factor**0.7 + 0.1 * seed,
                bits=bits + worse + 0.02 * seed,
                validation=bits + worse + 0.1,
                new_weights=0 if label == "finetune" else 200,
            )
            found.append(record)
    for share in (0.2, 0.4, 0.6, 0.8):
        forgetting, bits = 9 * share**2.5, 4 - 2.1 * share**0.6
        common: dict[str, Any] = {"target": target, "new_weights": 0, "share": share}
        found.append(make_record("wise-ft", forgetting=forgetting, bits=bits, **common))
    return found


def make_comparison(folder: Path) -> Path:
    """A comparison folder: all methods on "fr", with a task and the KL, one on "it", a cell that
    failed, one not done."""
    cells = folder / "cells"
    french = [_with_grammar_and_kl(record) for record in comparison_records()]
    for record in (*french, make_record(target="it", validation=2.1)):
        write_record(cells / record.config["output"] / "record.json", record)
    (folder / "compare.yaml").write_text("seeds: [0, 1]\n")
    failure = Failure(label="lora", reason=f"the loss is not finite {HOSTILE}")
    (cells / "fr" / "failed").mkdir()
    (cells / "fr" / "failed" / "failure.json").write_text(failure.model_dump_json())
    (cells / "fr" / "waiting" / "checkpoints" / "checkpoint-100").mkdir(parents=True)
    (cells / "fr" / "waiting" / "run.yaml").write_text("model: x\n")
    return folder


def _with_grammar_and_kl(record: Record) -> Record:
    """A score that rises as bits per byte fall, and a KL that rises with both."""
    found = record.sets["fr"]
    learnt = found.backbone_bits_per_byte - found.extended_bits_per_byte
    sets = record.sets | {"fr": found.model_copy(update={"kl_nats": 1.2 * learnt * NUM_TOKENS})}
    return record.model_copy(update={"sets": sets, "tasks": [score("clams-fr", 0.06 * learnt)]})


def _text(name: str) -> dict[str, Any]:
    return {
        "role": "source" if name in ("en", "wiki") else "target",
        "key": f"key-{name}",
        "num_bytes": NUM_BYTES,
        "num_tokens": NUM_TOKENS,
        "num_documents": 5,
    }


def _config(
    label: str, method: str, seed: int, rate: float | None, share: float | None, target: str
) -> dict[str, Any]:
    return {
        "model": "models/tiny",
        "method": method,
        "label": label,
        "budget": 0.2,
        "seed": seed,
        "output": f"{target}/{label}/{rate}-{share}-{seed}",
        "data": {
            "train": [{"name": target}],
            "source_share": 0.1,
            "block_tokens": 128,
            "cache": None,
        },
        "scaling": {
            "share": 0.5 if share is None else share,
            "trained": None if share is None else f"{target}/finetune/{rate}-None-{seed}",
        },
        "training": {"steps": 200, "learning_rate": rate},
        "evaluation": {"context_tokens": 128, "stride_tokens": 64},
    }


def _curve(target: str, forgetting: float, end: float, suffix: str) -> list[dict[str, Any]]:
    """Six tenths of the way at step 100, all of it at step 200; plus a line of the log without any
    set."""
    measured = [
        {
            "step": step,
            f"bits_per_byte/en{suffix}": 1 + way * forgetting / 100,
            f"bits_per_byte/{target}{suffix}": BACKBONE[target] + way * (end - BACKBONE[target]),
        }
        for step, way in ((0, 0.0), (100, 0.6), (200, 1.0))
    ]
    return [*measured, {"step": 200, "loss": 1.5, "learning_rate": 1e-4}]


def _breakdown(name: str, end: float, *, is_concentrated: bool = False) -> dict[str, Any]:
    """Three fifths of the change on rare words, half of it on frequent ones, the rest the other way
    on punctuation."""
    kinds = {
        "punctuation": (0.2, -0.1),
        "frequent words": (BACKBONE[name] / 2, 0.5),
        "rare words": (BACKBONE[name] / 2 - 0.2, 0.6),
    }
    change = end - BACKBONE[name]
    return {
        "classes": [
            {
                "kind": kind,
                "num_types": 10,
                "num_tokens": 100,
                "backbone": bits,
                "extended": bits + share * change,
            }
            for kind, (bits, share) in kinds.items()
        ],
        "num_types": 300,
        "num_carriers": 2,
        "carriers_share": 0.02,
        "carriers": [{"text": f" {HOSTILE}", "num_tokens": 4, "change": change / 3}],
        "is_concentrated": is_concentrated,
        "documents": [
            {
                "number": 4,
                "num_bytes": 100,
                "backbone": 1.0,
                "extended": 1.5,
                "excerpt": f"Once {HOSTILE}",
            }
        ],
    }


def _gates_by_layer(name: str) -> dict[str, Any]:
    """Nine tenths of the source tokens are neutral; gates open more in deeper layers."""
    zero = {"en": 0.95, "wiki": 0.9}.get(name, 0.1)
    layers = [
        {"layer": n, "gates_zero": zero - n / 100, "residue_rms": (1 - zero) * n} for n in LAYERS
    ]
    return {"num_neutral_tokens": 270 if zero > 0.5 else 0, "layers": layers}


def _beginning(name: str, role: str, change: float) -> dict[str, Any]:
    """Texts by themselves, on which bits per byte changed by `change` %."""
    size = {"num_bytes": 200, "num_tokens": 64, "num_documents": 1}
    nats = {"backbone_nats": 100.0, "extended_nats": 100 + change, "kl_nats": 0.64}
    return {"role": role, "key": name} | size | nats


def _spliced(target: str, *, gated: bool) -> dict[str, Any]:
    """Source text costs a fiftieth more after target text, and its gates close one by one; target
    text costs half."""
    sides = {}
    for role, name, backbone, change, closed in (
        ("source", "en", 1.2, 1.02, (20, 40, 60, 80, 90, 95)),
        ("target", target, 4.4, 0.5, (60, 30, 20, 10, 8, 6)),
    ):
        bounds = ((1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, None))
        nats = backbone * NUM_BYTES * math.log(2)
        sides[role] = {
            "name": name,
            "num_tokens": NUM_TOKENS,
            "num_bytes": NUM_BYTES,
            "backbone_nats": nats,
            "extended_nats": nats * change,
            "backbone_alone_nats": nats / 1.1,
            "extended_alone_nats": nats / 1.1 * (1 + (change - 1) / 2),
            "gates": [
                {"first": first, "last": last, "num_gates": 100, "num_closed": n}
                for (first, last), n in zip(bounds, closed, strict=True)
                if gated
            ],
        }
    return {"num_windows": 64, "context_tokens": 128, **sides}


def _gates_over_text(target: str) -> list[dict[str, Any]]:
    found = []
    for kind, tokens in GATED_TEXTS.items():
        size = {"source": 0.02, "target": 0.8, "code-switched": 1.0}[kind]
        gates = [
            [size * ((7 * n + 3 * layer) % 5) / 4 for n in range(len(tokens))] for layer in LAYERS
        ]
        gates = [[0.0 if gate < 0.02 else gate for gate in row] for row in gates]
        name = {"source": "en", "target": target}.get(kind, kind)
        found.append(
            {"name": name, "kind": kind, "tokens": tokens, "layers": [*LAYERS], "gates": gates}
        )
    return found

"""Made-up scores of tasks."""

from typing import Any

from neutral_residues.report.aggregate import Section
from neutral_residues.results.record import TaskScore
from synthetic import make_record, make_section


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


def two_seeds() -> Section:
    """Neutral residues with two seeds, LoRA with one, and a run without tasks."""
    return make_section(
        make_record(seed=0, tasks=[score("blimp-en", -0.001), score("clams-fr", 0.02)]),
        make_record(seed=1, tasks=[score("blimp-en", 0.003), score("clams-fr", 0.04, 0.03)]),
        make_record("lora", tasks=[score("clams-fr", -0.02)]),
        make_record("adapter"),
    )

"""What the tests of the command line share."""

import json
from collections.abc import Callable
from typing import Any

Neutral = Callable[..., tuple[int, str]]
"""Takes the words of a command; gives exit code and what was printed."""


def assert_one_line(result: tuple[int, str], *parts: str) -> None:
    code, printed = result
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert code == 2, printed
    assert "Traceback" not in printed
    assert len(lines) == 1, printed
    for part in parts:
        assert part in lines[0], lines[0]


def changed(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The run with one setting (dotted; list positions as numbers) changed."""
    values = json.loads(json.dumps(values))
    place: Any = values
    *parents, last = key.split(".")
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = value
    return values

"""Errors caused by user input.

One line each, always in the same order: what is wrong, what was given, what is allowed, what to do.
The command line prints the line and exits with code 2; Python users catch `UserError`, which is a
`ValueError`. Anything else that is raised is our own mistake and keeps its traceback.
"""

import difflib
import signal
from collections.abc import Iterable

MOST_CHARACTERS = 1200
"""Of a message: longer ones lose their middle."""


class UserError(ValueError):
    """A one-line message: what, got, allowed, do.

    Args:
        what: what is wrong, naming the setting or file.
        got: what was given; shown with `repr` unless it is a string.
        allowed: what would have been accepted.
        do: what the user should do next.

    Attributes:
        what: as given, in one line.
    """

    def __init__(
        self,
        what: str,
        *,
        got: object | None = None,
        allowed: str | None = None,
        do: str | None = None,
    ) -> None:
        self.what = " ".join(what.split())
        parts = [what]
        if got is not None:
            parts.append(f"got {got if isinstance(got, str) else repr(got)}")
        if allowed is not None:
            parts.append(f"allowed: {allowed}")
        if do is not None:
            parts.append(do)
        super().__init__(_one_line("; ".join(parts)))


def _one_line(text: str) -> str:
    """`text` as a terminal shows it: files that were read may have put anything into it."""
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    if len(line) > MOST_CHARACTERS:
        half = MOST_CHARACTERS // 2
        line = f"{line[:half]} ... {line[-half:]}"
    return line


def nearest(name: str, known: Iterable[str]) -> str:
    """The sentence that helps someone who misspelt `name`: the closest known name, or all of
    them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """What another library's error says first, cut to a length that fits on a line; its type where
    it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def exit_reason(returncode: int, output: str) -> str:
    """Why a process of this package failed: the last error line that it printed, else the signal
    that killed it, else its last line."""
    lines = output.strip().splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return lines[-1].strip()[:300] if lines else f"exit code {returncode}"


class Stopped(Exception):
    """A run was asked to stop; it wrote a checkpoint, and the same command resumes it."""

    def __init__(self, step: int, total: int) -> None:
        super().__init__(f"stopped after step {step} of {total}; the same command resumes it")
        self.step = step

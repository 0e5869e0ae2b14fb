"""Errors caused by user input.

Each is one line: what is wrong, what was given, what is allowed, what to do, always in this order.
The command line prints the line and exits with code 2; in Python, catch `UserError`, which is a
`ValueError`. Other exceptions are bugs of this package, and keep their traceback.
"""

import difflib
import signal
from collections.abc import Iterable

MOST_CHARACTERS = 1200
"""Maximum length of a message; the middle of longer ones is left out."""


class UserError(ValueError):
    """An error caused by user input, with a one-line message.

    Args:
        what: what is wrong, with the name of the setting or file.
        got: the value that was given; shown with `repr` unless it is a string.
        allowed: the values that are allowed.
        do: what the user should do.

    Attributes:
        what: the argument, in one line.
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
    """`text` in one line of at most `MOST_CHARACTERS` printable characters, because it may contain
    parts of files."""
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    if len(line) > MOST_CHARACTERS:
        half = MOST_CHARACTERS // 2
        line = f"{line[:half]} ... {line[-half:]}"
    return line


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for the misspelt `name`: the most similar known name, or else all known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, at most 200 characters; its type if the message is
    empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def exit_reason(returncode: int, output: str) -> str:
    """The reason why a process of this package failed: the last error that it printed, else the
    signal that killed it, else its last line of output."""
    lines = output.strip().splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return lines[-1].strip()[:300] if lines else f"exit code {returncode}"


class Stopped(Exception):
    """Raised when a run is stopped (Ctrl-C, SIGTERM), after it has written a checkpoint; the same
    command resumes it."""

    def __init__(self, step: int, total: int) -> None:
        super().__init__(f"stopped after step {step} of {total}; the same command resumes it")
        self.step = step

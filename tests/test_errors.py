"""Errors are one line, whatever is wrong and whatever it is about."""

import signal

from neutral_residues.errors import MOST_CHARACTERS, UserError, exit_reason


def test_the_reason_is_the_error_line_else_the_signal_else_the_last_line() -> None:
    assert exit_reason(2, "warning: x\nerror: no such file; check the path\n") == (
        "no such file; check the path"
    )
    assert exit_reason(-signal.SIGKILL, "step 3\n") == "killed by SIGKILL (out of memory?)"
    assert exit_reason(-signal.SIGTERM, "") == "killed by SIGTERM"
    assert exit_reason(1, "Traceback\n  ...\nKeyError: 'x'\n\n") == "KeyError: 'x'"
    assert exit_reason(3, "") == "exit code 3"


def test_what_a_file_said_cannot_leave_its_line() -> None:
    error = UserError("label \x1b[2J", got="a\nb\u2028c \ud800\0", allowed="é \N{GRINNING FACE}")
    assert str(error) == "label \\x1b[2J; got a b c \\ud800\\x00; allowed: é \N{GRINNING FACE}"
    long = str(UserError("x" * 10**6, do="fix it"))
    assert len(long) < MOST_CHARACTERS + 10
    assert long.endswith("xxx; fix it")

"""Why a process of ours failed, in a line."""

import signal

from neutral_residues.errors import exit_reason


def test_the_reason_is_the_error_line_else_the_signal_else_the_last_line() -> None:
    assert exit_reason(2, "warning: x\nerror: no such file; check the path\n") == (
        "no such file; check the path"
    )
    assert exit_reason(-signal.SIGKILL, "step 3\n") == "killed by SIGKILL (out of memory?)"
    assert exit_reason(-signal.SIGTERM, "") == "killed by SIGTERM"
    assert exit_reason(1, "Traceback\n  ...\nKeyError: 'x'\n\n") == "KeyError: 'x'"
    assert exit_reason(3, "") == "exit code 3"

"""benchmarks/faults.py finds nothing in a trial of each; a night of it is for the lab book."""

import subprocess
import sys

import pytest

from paths import ROOT


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks with torch loaded, reads /proc")
def test_a_run_survives_kills_and_a_disk_that_refuses() -> None:
    faults = [f"--fault={fault}" for fault in ("kill", "operation", "full", "read-only", "two")]
    tool = ROOT / "benchmarks" / "faults.py"
    ended = subprocess.run(
        [sys.executable, str(tool), "--trials=1", *faults],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count(", 0 problems") == len(faults)

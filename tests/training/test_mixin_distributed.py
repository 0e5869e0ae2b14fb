"""Two ranks train as one process does on the same global batch."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch

from distributed_worker import big_batch_training, extended_llama, mixed_rows, trained
from paths import TESTS

pytestmark = pytest.mark.slow

RUNS: list[dict[str, Any]] = [
    {"batch": 4, "accumulation": 1},
    {"batch": 1, "accumulation": 4},
    {"batch": 2, "accumulation": 2, "gradient_checkpointing": True},
    {"batch": 4, "accumulation": 1, "average_tokens_across_devices": False},
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """For each rank the result of each of RUNS."""
    folder = tmp_path_factory.mktemp("ranks")
    script = TESTS / "distributed_worker.py"
    common = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    files = [folder / f"{rank}.json" for rank in range(2)]
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), json.dumps(RUNS), str(file)],
            env=os.environ
            | common
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, file in enumerate(files)
    ]
    try:
        said = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all(worker.returncode == 0 for worker in workers), "\n".join(said)[-3000:]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@pytest.mark.parametrize("run", range(3))
def test_two_ranks_equal_one_big_batch(ranks: list[list[dict[str, Any]]], run: int) -> None:
    model = extended_llama()
    local_losses = big_batch_training(model, mixed_rows())
    for rank in ranks:
        assert rank[run]["ranks"] == 2
        for name, expected in trained(model).items():
            torch.testing.assert_close(
                torch.tensor(rank[run]["weights"][name]), expected.detach(), rtol=0, atol=1e-6
            )
        assert [log["local_loss"] for log in rank[run]["logs"]] == pytest.approx(
            local_losses, rel=1e-5
        )


@pytest.mark.parametrize("run", range(4))
def test_ranks_stay_identical(ranks: list[list[dict[str, Any]]], run: int) -> None:
    first, second = (rank[run]["weights"] for rank in ranks)
    assert first == second


def test_the_local_loss_is_that_of_all_ranks_even_where_the_other_is_not(
    ranks: list[list[dict[str, Any]]],
) -> None:
    """With `average_tokens_across_devices=False`, Trainer's own loss is the mean of the ranks'
    means."""
    big_batch, by_rank = (ranks[0][run]["logs"][0] for run in (0, 3))
    assert by_rank["local_loss"] == pytest.approx(big_batch["local_loss"], rel=1e-6)
    assert abs(by_rank["loss"] - big_batch["loss"]) > 1e-4

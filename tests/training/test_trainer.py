"""The loss of a batch of rows, and what the log keeps of it for each corpus."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from neutral_residues.config.run import make_run
from neutral_residues.training.models import model_to_train
from neutral_residues.training.setup import Setup
from neutral_residues.training.trainer import DomainTrainer
from tiny_run import run_values


def test_loss_and_log_count_each_token_for_its_own_corpus(tmp_path: Path) -> None:
    values = run_values(tmp_path, batch_rows=8, accumulation=1) | {"method": "adapter"}
    values["data"] |= {"source_share": 0.5, "spliced_share": 0.5}
    setup = Setup.of(make_run(values))
    model = model_to_train(setup)
    trainer = DomainTrainer(setup, model, tmp_path / "checkpoints")
    rows = [setup.rows[i] for i in range(8)]
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    batch.pop("domain_labels")
    loss = trainer.compute_loss(model, batch)
    assert any(len(row["corpus_ids"].unique()) > 1 for row in rows)

    nats, tokens = [0.0, 0.0], [0, 0]
    for row in rows:
        logits = model(input_ids=row["input_ids"][None]).logits[0]
        for t in range(1, 32):
            if row["predicted"][t]:
                corpus = int(row["corpus_ids"][t])
                nats[corpus] += F.cross_entropy(logits[t - 1], row["input_ids"][t]).item()
                tokens[corpus] += 1
    assert sum(tokens) < 8 * 31, "the first tokens of segments are not predicted"
    assert loss.item() == pytest.approx(sum(nats) / (8 * 31), rel=1e-5)
    sums = trainer._corpus_sums.flush(trainer.accelerator)
    assert sums["tokens"] == tokens
    assert sums["nats"] == pytest.approx(nats, rel=1e-5)

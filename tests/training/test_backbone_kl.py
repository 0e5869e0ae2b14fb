"""KL to the backbone: its value by hand, and the same training however a batch is split."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distributed_worker import extended_llama, llama
from neutral_residues import UserError, extend
from neutral_residues.config.run import make_run
from neutral_residues.evaluation.saved import load_saved
from neutral_residues.training.backbone_kl import backbone_logits, kl_sum
from neutral_residues.training.setup import Setup
from tiny_run import run_values

IDS_BT = torch.randint(3, 64, (3, 6), generator=torch.Generator().manual_seed(0))
LABELS_BT = torch.tensor([[0] * 6, [1] * 6, [0, 0, 1, 1, -100, 1]])


def by_hand(model: nn.Module, backbone: nn.Module) -> float:
    with torch.no_grad():
        p, q = (m(input_ids=IDS_BT).logits.softmax(-1) for m in (backbone, model))
    counted = [(1, t) for t in range(5)] + [(2, 2), (2, 3)]
    return sum(float((p[at] * (p[at] / q[at]).log()).sum()) for at in counted)


def test_it_is_summed_over_the_source_tokens_that_have_a_next_one() -> None:
    model = extended_llama()
    backbone = backbone_logits(model, IDS_BT, LABELS_BT, None)
    assert backbone.rows_S.tolist() == [1, 2]
    kl = kl_sum(model(input_ids=IDS_BT).logits, backbone)
    assert kl.item() == pytest.approx(by_hand(model, llama()), rel=1e-4)
    assert kl.item() > 0.01
    assert kl_sum(llama()(input_ids=IDS_BT).logits, backbone).item() == pytest.approx(0, abs=1e-5)
    kl.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert grads
    assert all(grad is not None for grad in grads)


def test_a_batch_without_source_text_gives_nothing() -> None:
    model = extended_llama()
    backbone = backbone_logits(model, IDS_BT[:1], LABELS_BT[:1], None)
    assert kl_sum(model(input_ids=IDS_BT[:1]).logits, backbone).item() == 0


@pytest.mark.parametrize("method", ["finetune", "adapter"])
def test_it_pulls_toward_the_backbone_and_does_not_depend_on_how_a_batch_is_split(
    tmp_path: Path, method: str
) -> None:
    def run(name: str, **training: Any) -> tuple[nn.Module, dict[str, Any]]:
        values = run_values(tmp_path, learning_rate=0.01, log_every=8, steps=16, **training)
        values |= {"method": method, "output": str(tmp_path / name)}
        record = extend(make_run(values))
        log = next(point for point in reversed(record.curve) if "kl_nats" in point)
        return load_saved(tmp_path / name).model, log

    whole, log = run("whole", kl_weight=50.0, batch_rows=8, accumulation=1)
    parts, _ = run("parts", kl_weight=50.0, batch_rows=2, accumulation=4)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    _, free = run("free", kl_weight=1e-9)
    assert 0 < log["kl_nats"] < 0.9 * free["kl_nats"]


def test_without_source_rows_it_means_nothing_and_is_refused(tmp_path: Path) -> None:
    values = run_values(tmp_path, kl_weight=1.0)
    values["data"] |= {"source_share": 0}
    with pytest.raises(UserError, match="kl_weight has no effect without source rows"):
        Setup.of(make_run(values))

"""A tiny extended model, and its scores on tasks."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import nn

from neutral_residues import NeutralResiduesConfig
from neutral_residues.backbone import load_backbone, load_tokenizer
from neutral_residues.evaluation.tasks.runner import (
    TaskPlan,
    TaskSettings,
    measure_tasks,
    plan_tasks,
)
from neutral_residues.results.record import TaskScore
from tiny_run import make_backbone

LIMIT = 12


class Measured:
    """A random Llama over bytes, extended by residues that are not zero, and what it scores."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backbone = str(make_backbone(folder / "backbone", max_position_embeddings=256))
        self.tokenizer = load_tokenizer(self.backbone)
        self.model = get_peft_model(self.load_backbone(), NeutralResiduesConfig(budget=0.2))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter += 0.5 * torch.randn(parameter.shape, generator=generator)

    def load_backbone(self) -> nn.Module:
        return load_backbone(self.backbone, dtype=torch.float32)

    def plan(
        self,
        *names: str,
        limit: int = LIMIT,
        num_fewshot: int | None = None,
        task_data: Path | None = None,
    ) -> TaskPlan:
        return plan_tasks(
            names,
            settings=TaskSettings(4, context_tokens=128, limit=limit, num_fewshot=num_fewshot),
            tokenizer=self.tokenizer,
            sets=[],
            folder=self.folder / "tasks",
            task_data=task_data,
        )

    def scores(
        self, *names: str, model: nn.Module | None = None, **options: Any
    ) -> list[TaskScore]:
        planned = {"limit", "num_fewshot", "task_data"} & options.keys()
        plan = self.plan(*names, **{option: options.pop(option) for option in planned})
        options = {"model_key": "these weights"} | options
        return measure_tasks(model or self.model, plan, **options)

    def samples(self, task: str) -> list[dict[str, Any]]:
        """The stored items of a finished task."""
        text = (self.folder / "tasks" / f"{task}.jsonl").read_text("utf-8")
        return [json.loads(line) for line in text.splitlines()]

"""What SFT and DPO share of their settings, and the rows that they train on.

In: a stage's options, a sampled table. Out: a plan, the arguments of TRL's trainers, rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.models.chat import Template
from alignment.models.loading import Dtype, Quantization
from alignment.runtime import Refused, files
from alignment.training import plan
from alignment.training.plan import Budget, Plan


@dataclass(frozen=True)
class Settings:
    """The settings that SFT and DPO share, in the words of params.yaml.

    Attributes:
        learning_rate: the peak of `plan.rate`, above 0.
        budget: whether `epochs` and `batch` or `tokens` and `steps` say how long training is.
        epochs: passes over the training rows.
        batch: rows an optimiser step, over all devices.
        tokens: trained tokens of the whole run.
        steps: optimiser steps.
        per_device_batch: how many of a step's longest rows a forward pass has room for; gradients accumulate.
        warmup: the share of steps before the peak.
        seed: order and dropout.
        checkpoint_steps: steps between checkpoints.
        gradient_checkpointing: whether activations are computed again in the backward pass, which saves memory.
        dtype: precision.
        device: cpu or cuda.
        quantization: of the base's weights.
        template: of the conversations.
    """

    learning_rate: float
    budget: Budget
    epochs: int
    batch: int
    tokens: int
    steps: int
    per_device_batch: int
    warmup: float
    seed: int
    checkpoint_steps: int
    gradient_checkpointing: bool
    dtype: Dtype
    device: str
    quantization: Quantization
    template: Template

    def __post_init__(self) -> None:
        """Refuse a run that would change nothing.

        Raises:
            Refused: the learning rate is 0.
        """
        if not self.learning_rate:
            raise Refused("`learning_rate` is 0, so no step would change the model; set one above 0 in params.yaml")

    def plan(self, names: Sequence[str], lengths: Sequence[int], trained: Sequence[int]) -> Plan:
        """Plan the rows of each step.

        Args:
            names: the ids of the rows.
            lengths: tokens of each row, of its longer side where it has two.
            trained: how many tokens of each row are trained.

        Raises:
            Refused: a step would hold too many rows; or as `plan.by_tokens`.
        """
        by_epochs = self.budget is Budget.epochs
        rows = min(self.batch, len(names)) if by_epochs else self.tokens * len(names) // sum(trained) // self.steps
        if rows > plan.LARGEST:
            way = "lower `batch`" if by_epochs else "lower `tokens` or raise `steps`"
            said = f"an optimiser step would hold about {rows:,} rows, more than {plan.LARGEST:,}"
            raise Refused(f"{said}; {way} in params.yaml")
        if by_epochs:
            steps = plan.by_epochs(len(names), self.epochs, self.batch, self.seed)
        else:
            steps = plan.by_tokens(trained, self.tokens, self.steps, self.seed)
        return Plan(names, lengths, trained, steps, self.per_device_batch)

    def arguments(self, checkpoints: Path, steps: int) -> dict[str, Any]:
        """Return the keyword arguments of `transformers.TrainingArguments`.

        Args:
            checkpoints: the folder for checkpoints.
            steps: optimiser steps, from which the number of warm-up steps follows.
        """
        return {
            "output_dir": str(checkpoints),
            "learning_rate": self.learning_rate,
            "warmup_steps": math.ceil(steps * self.warmup),
            "num_train_epochs": 1,  # all passes are in the plan
            "seed": self.seed,
            "full_determinism": True,
            "use_cpu": self.device == "cpu",
            "bf16": self.dtype is Dtype.bfloat16,
            "gradient_checkpointing": self.gradient_checkpointing,
            "ddp_find_unused_parameters": False,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "disable_tqdm": True,  # `resume.Curve` prints a line a step
            "save_steps": self.checkpoint_steps,
            "save_total_limit": 2,
            "report_to": [],
        }


def read_split(path: Path, split: str) -> list[dict[str, Any]]:
    """Read the examples of one split, in the order in which `sample` chose them.

    Raises:
        Refused: there are no such rows, or the file is damaged.
    """
    rows = [row for row in files.read_parquet(path).to_pylist() if row["split"] == split]
    if not rows:
        raise Refused(f"{path} has no row of the split {split!r}; run `dvc repro` to sample it again")
    return rows

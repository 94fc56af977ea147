"""TRL's trainers, made to follow a plan: one batch is one optimiser step, whose loss is that of all its rows.

In: a `plan.Plan`, one of TRL's trainers. Out: a class to put before it.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from alignment.runtime import Refused
from alignment.training import plan
from alignment.training.plan import Plan

if TYPE_CHECKING:
    import torch


class PlannedTrainer:
    """A mixin for TRL's trainers, whose batches it takes from a plan: one batch is a whole optimiser step.

    The loss is TRL's. A loss that is no number stops the run and names the step and the rows.

    Attributes:
        plan: of the run.
        means_of_rows: whether TRL's loss of a forward pass is a mean over its rows, as DPO's is, and not a sum that
            is divided by the trained tokens of the whole step, as SFT's is.
    """

    plan: Plan
    means_of_rows: bool
    lr_scheduler: Any
    weight = 1.0  # of the forward pass under way

    def __init__(self, **options: Any) -> None:
        from transformers import enable_full_determinism

        _score_trained_positions_only()
        enable_full_determinism(options["args"].seed)  # before the adapter's weights are drawn
        super().__init__(**options)
        _keep_float32(self.model)  # type: ignore[attr-defined]

    def get_train_dataloader(self) -> Any:
        """Return the steps, in order."""
        from torch.utils.data import DataLoader

        whole = _Steps(self)
        return DataLoader(whole, batch_size=1, shuffle=False, collate_fn=lambda steps: steps[0])  # type: ignore[arg-type]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Schedule learning rates by `plan.rate`; transformers' own warm-up begins with a step at 0."""
        from torch.optim.lr_scheduler import LambdaLR

        if self.lr_scheduler is None:  # a Trainer asks more than once
            rate = partial(plan.rate, steps=num_training_steps, warmup=self.args.warmup_steps)  # type: ignore[attr-defined]
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, rate)  # type: ignore[attr-defined]
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def step(self, number: int) -> "Step":
        """Return a step's forward passes for this process."""
        processes, rank = self.args.world_size, self.args.process_index  # type: ignore[attr-defined]
        rows = self.plan.steps[number]
        passes = []
        for part in plan.forward_passes(rows, self.plan.lengths, self.plan.per_device_batch, processes):
            # Where rows do not go round, a process without one computes another's, and makes nothing of it.
            mine = part[rank::processes]
            batch = self.data_collator([self.train_dataset[row] for row in mine or part[:1]])  # type: ignore[attr-defined]
            weight = len(mine) / len(rows) * processes if self.means_of_rows else float(bool(mine))
            passes.append(Pass(mine, batch, weight, len(part) / len(rows), min(len(part), processes)))
        return Step(passes, sum(self.plan.trained[row] for row in rows))

    def get_batch_samples(self, steps: Any, *_: Any) -> "tuple[list[Step], int]":
        """Return the next step, and its trained tokens over all processes."""
        step = next(steps)
        return [step], step.trained

    def floating_point_ops(self, _: Any) -> int:
        """Return 0: operations are not counted here, but in `benchmarks.training`."""
        return 0

    def training_step(self, model: Any, step: "Step", trained: int) -> "torch.Tensor":  # type: ignore[return]
        """Run the forward and backward passes of one optimiser step.

        Returns:
            The step's loss, which is that of all its rows together.

        Raises:
            Refused: the loss is NaN or infinite.
        """
        losses = []
        for number, part in enumerate(step.passes, start=1):
            self.weight = part.weight
            waits = number < len(step.passes)
            with (
                self.accelerator.no_sync(model) if waits else contextlib.nullcontext(),  # type: ignore[attr-defined]
                _gathering(self.accelerator, part.processes),  # type: ignore[attr-defined]
            ):
                losses.append(super().training_step(model, part.batch, trained))  # type: ignore[misc]
        found = [float(loss) for loss in losses]
        for part, loss in zip(step.passes, found, strict=True):
            if not math.isfinite(loss):
                at, rows = self.state.global_step + 1, ", ".join(self.plan.names[row] for row in part.rows)  # type: ignore[attr-defined]
                raise Refused(
                    f"the loss is {loss} at step {at}, in the rows {rows}.\n"
                    "lower the learning rate in params.yaml, or look at these rows in data/sampled/ by their id"
                )
        for values in self._metrics["train"].values():  # type: ignore[attr-defined]
            if len(values) == len(step.passes):  # TRL would take the plain mean, though passes have unlike many rows
                values[:] = [sum(part.share * value for part, value in zip(step.passes, values, strict=True))]
        total: torch.Tensor = sum(losses)
        return total

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        """Compute TRL's loss of a forward pass, weighted so that a step's passes add up to the loss of all its rows."""
        return super().compute_loss(*args, **options) * self.weight  # type: ignore[misc]


@contextlib.contextmanager
def _gathering(accelerator: Any, first: int) -> Iterator[None]:
    """Gather TRL's figures for its curve from the first processes only; the others compute rows that do not count."""
    if first == accelerator.num_processes:
        yield
        return
    gather = accelerator.gather
    accelerator.gather = lambda values: gather(values)[:first]
    try:
        yield
    finally:
        accelerator.gather = gather


@dataclass(frozen=True)
class _Steps:
    """The steps of a trainer, as what a `DataLoader` reads."""

    trainer: PlannedTrainer

    def __len__(self) -> int:
        return len(self.trainer.plan.steps)

    def __getitem__(self, number: int) -> "Step":
        return self.trainer.step(number)


@dataclass(frozen=True)
class Pass:
    """One forward pass of one process.

    Attributes:
        rows: this process's row numbers; none where it only keeps the others company.
        batch: what TRL's collator makes of them.
        weight: of its loss, in this process.
        share: how much of the step the pass is, over all processes.
        processes: how many have rows of their own.
    """

    rows: list[int]
    batch: dict[str, Any]
    weight: float
    share: float
    processes: int


@dataclass(frozen=True)
class Step:
    """One optimiser step: its forward passes in this process, and its trained tokens over all processes."""

    passes: list[Pass]
    trained: int


def _score_trained_positions_only() -> None:
    """Make TRL's head leave out prompts and padding on every device, as it does on those with Triton.

    Elsewhere it computes all positions and discards the rest, half of a small model's head's work or more.
    """
    from trl.trainer import utils

    utils._use_triton = lambda device: True  # there it says this and nothing else


def _keep_float32(model: Any) -> None:
    """Undo TRL's rounding of the adapter to bfloat16 on a quantised base.

    TRL does not round the reference's copy of it, so the two would differ.
    """
    import torch

    weights: dict[str, Any] = dict(model.named_parameters())
    for name, weight in weights.items():
        if weight.requires_grad and weight.dtype is not torch.float32:
            copied = weights.get(name.replace(".default.", ".ref."), weight)
            weight.data = copied.data.float().clone()

"""A training from its last resume point to its end, and what is said when memory or the disk runs out.

In: a trainer. Out: the trained model in it, and a line on speed and memory.

Checkpoints lie in a state folder outside the stage's outputs, under a name made of everything the run depends on; a
run that was killed goes on from the last whole one and ends with the bytes of an undisturbed run.
"""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.runtime import Refused, files, processes
from alignment.training.plan import Plan


def run(trainer: Any, curves: dict[str, str]) -> None:
    """Train to the end, from the last whole checkpoint in `output_dir` if there is one.

    Args:
        trainer: a `PlannedTrainer` trainer whose `output_dir` is named for all that the run depends on.
        curves: as `write_curve` takes them.

    Raises:
        Refused: the loss is NaN or infinite, or memory or the disk runs out.
        SystemExit: a signal asked to stop; there is a checkpoint.
    """
    from transformers import PrinterCallback

    from alignment.training import resume

    say = trainer.accelerator.print
    folder, stop = Path(trainer.args.output_dir), resume.Stop(trainer.accelerator)
    with trainer.accelerator.main_process_first():
        last = resume.last(folder)
    if last:
        say(f"resuming from {last.name}: an earlier run with the same inputs was interrupted")
    if trainer.args.device.type == "cuda":
        say("deterministic kernels: the same bytes on this GPU, driver and libraries; on others, other last digits")
    say(f"{len(trainer.plan.steps)} steps; the curve so far: {folder / 'curve.csv'}")
    trainer.remove_callback(PrinterCallback)  # it prints every figure as a dictionary
    for callback in (resume.Seal(trainer.accelerator), resume.Curve(folder / "curve.csv", curves), stop):
        trainer.add_callback(callback)
    start = time.monotonic()
    try:
        with _enough_memory(trainer), _enough_room(trainer):
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    finally:
        stop.restore()
    stop.end(trainer.state)
    first = int(last.name.rpartition("-")[2]) if last else 0
    say(_speed(trainer.plan, first, time.monotonic() - start))


@contextlib.contextmanager
def _enough_memory(trainer: Any) -> Iterator[None]:
    """Say which parameters need less memory, if memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not processes.no_memory(error):
            raise
        rows, tokens = trainer.plan.per_device_batch, max(trainer.plan.lengths)
        ways = [f"lower `per_device_batch` (now {rows}); an optimiser step stays the same"] if rows > 1 else []
        if not trainer.args.gradient_checkpointing:
            ways.append("set `gradient_checkpointing: true` in the stage's section")
        ways.append(f"lower `sample.max_tokens` below the {tokens} of the longest row, which drops such rows")
        unit = "row" if rows == 1 else "rows"
        raise Refused(
            f"out of memory with {rows} {unit} of up to {tokens} tokens a forward pass; the first that "
            "helps, in params.yaml:\n- " + "\n- ".join(ways) + "\n`make doctor` says what fits"
        ) from None


@contextlib.contextmanager
def _enough_room(trainer: Any) -> Iterator[None]:
    """Remove an incomplete checkpoint if the disk is full, and say how much room one needs."""
    from alignment.training import resume

    folder = Path(trainer.args.output_dir)
    try:
        yield
    except Exception as error:
        if not files.is_full(error):
            raise
        trained = sum(weights.numel() * weights.element_size() for weights in trainer.model.parameters()
                      if weights.requires_grad)  # fmt: skip
        resume.last(folder)
        # The weights, and two moments of Adam's for each.
        raise files.full(f"a checkpoint in {folder}", f"about {3 * trained:,}", folder) from None


def _speed(plan: Plan, first: int, seconds: float) -> str:
    """Format tokens/s and peak memory for the log; they vary from run to run, so they are no metrics."""
    import torch

    tokens = plan.tokens(first)
    # Kilobytes, but for macOS.
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    return (
        f"{len(plan.steps) - first} steps, {tokens} trained tokens in {seconds:.0f} s: "
        f"{tokens / seconds:.0f} tokens/s; peak memory {memory / 1e9:.1f} GB"
    )

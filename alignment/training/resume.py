"""Runs that are killed, stopped or watched: whole checkpoints, the last of them, what a signal does, the live curve.

In: a Trainer at work. Out: in a folder outside the stage's outputs, checkpoints that are used only if every byte of
them is there, and the curve so far.
"""

import shutil
import signal
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from alignment.runtime import Refused, files
from alignment.training.curves import write_curve

SEAL = "whole.json"  # in a checkpoint that was written to its end: the SHA-256 of each of its files


class Seal(TrainerCallback):
    """Marks a checkpoint as whole after its last file.

    Args:
        accelerator: of the Trainer; other processes write to the same checkpoint.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint that the Trainer has just saved as whole."""
        self.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            files.write_json(folder / SEAL, _hashes(folder))


class Curve(TrainerCallback):
    """Writes the curve so far after each step, and a line about the step, for whoever wants to watch.

    Args:
        path: a CSV file that the run rewrites.
        columns: the Trainer's name of a figure to its name in the file.
    """

    def __init__(self, path: Path, columns: dict[str, str]) -> None:
        self.path, self.columns = path, columns

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the curve and the line, after the Trainer has logged a step."""
        logged = state.log_history[-1]
        if state.is_world_process_zero and all(name in logged for name in self.columns):
            write_curve(self.path, state.log_history, self.columns)
            shown = {name: logged[key] for key, name in {**self.columns, "grad_norm": "gradient_norm"}.items()}
            figures = ", ".join(f"{name} {float(value):.4g}" for name, value in shown.items())
            print(f"step {state.global_step} of {state.max_steps}: {figures}")


class Stop(TrainerCallback):
    """Ends a run on SIGTERM or Ctrl-C after the step under way, with a checkpoint; a second signal ends it at once.

    Args:
        accelerator: of the Trainer; a signal to one process stops them all after the same step.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.asked = 0  # the signal that came to this process
        self.agreed = 0  # the one that all processes heed
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Make a signal wait for the end of a step from here on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell has its background jobs do
                self._before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, _: Any) -> None:
        self.asked = number
        self.restore()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop, if a signal asked for it."""
        self._agree()
        if self.agreed:
            control.should_save = control.should_training_stop = True

    def _agree(self) -> None:
        from accelerate.utils import gather_object

        # Not back into `asked`: a signal that comes while the others are asked would be forgotten.
        self.agreed = max(gather_object([self.asked]))

    def restore(self) -> None:
        """Restore the signal handlers from before training."""
        while self._before:
            signal.signal(*self._before.popitem())

    def end(self, state: Any) -> None:
        """End the process as a signal would, if one came; after the last step too there is a checkpoint."""
        self.restore()
        self._agree()
        if not self.agreed:
            return
        if state.is_world_process_zero:
            print(
                f"\nstopped by {signal.Signals(self.agreed).name} after step {state.global_step} of "
                f"{state.max_steps}, with a checkpoint; the same command goes on from there",
            )
        raise SystemExit(128 + self.agreed)


def last(folder: Path) -> Path | None:
    """Return the latest checkpoint whose files are all there and unchanged; remove later ones, and say so."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    while found:
        checkpoint = found.pop()
        if _is_whole(checkpoint):
            return checkpoint
        print(f"{checkpoint.name} was not written to its end: removed")
        shutil.rmtree(checkpoint)
    return None


def _is_whole(checkpoint: Path) -> bool:
    seal = checkpoint / SEAL
    try:
        return seal.is_file() and bool(files.read_json(seal) == _hashes(checkpoint))
    except Refused:  # the seal itself is cut short
        return False


def _hashes(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    return {path.relative_to(folder).as_posix(): files.sha256(path) for path in paths}

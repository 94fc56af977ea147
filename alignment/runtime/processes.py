"""The processes that share a stage's work: how many there are, rows dealt to them, memory that ran out.

In: what `accelerate launch` started. Out: this process among them; results of all rows in each of them.
"""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.runtime import Refused, files

if TYPE_CHECKING:
    from accelerate import PartialState

NO_MEMORY = ("can't allocate memory", "not enough memory")  # on a CPU torch has no class of its own for it


def no_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of the GPU or of the machine has run out."""
    import torch

    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY))


def world(device: str = "") -> "PartialState":
    """Return this process's place among those of `accelerate launch`: its number, their count, whether it is first.

    Args:
        device: cpu or cuda, in the first call of a process.
    """
    from accelerate import PartialState

    require_device(device)
    return PartialState(cpu=device == "cpu") if device else PartialState()


def require_device(device: str) -> None:
    """Check that this machine has a device.

    Raises:
        Refused: it has none; the message says why torch does not see it.
    """
    if device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch {torch.__version__} has {f'CUDA {built} and sees no GPU' if built else 'no CUDA in it'}"
        raise Refused(f"`device: cuda`, and {why}; set `device: cpu` in params.yaml, or see what `make doctor` advises")


def lock_output(out: Path, device: str) -> "PartialState":
    """Return what `world` returns, once the first process holds `out` by `files.claim`."""
    state = world(device)
    if state.is_main_process:
        files.claim(out)
    return state


def map_rows(rows: Sequence[Any], compute: Callable[[Any], Any], label: str) -> list[Any]:
    """Apply `compute` to every row over all processes, and return the results in the order of rows on each process."""
    from accelerate.utils import gather_object
    from tqdm import tqdm

    state = world()
    # As many rows in each process, since the weights of a model may be dealt to them too.
    rounds = range(
        state.process_index, math.ceil(len(rows) / state.num_processes) * state.num_processes, state.num_processes
    )
    bar = tqdm(rounds, desc=label, unit="row", disable=not state.is_main_process)
    found = dict(gather_object([(number % len(rows), compute(rows[number % len(rows)])) for number in bar]))
    return [found[number] for number in range(len(rows))]


def cores() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lives(pid: int) -> bool:
    """Return whether a process with that number exists, even another user's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def started_as(pid: int) -> str:
    """Return the command line of a process, or "" where the system does not show it.

    The system reuses process numbers; the command line tells whether this is still the same process.
    """
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip() if path.is_file() else ""

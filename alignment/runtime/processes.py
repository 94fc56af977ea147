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
    """Whether an error says that memory, of the GPU or of the machine, has run out."""
    import torch

    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY))


def world(device: str = "") -> "PartialState":
    """This process among those that `accelerate launch` started: its number, theirs, whether it is the first.

    Args:
        device: cpu or cuda, where it is asked for the first time.
    """
    from accelerate import PartialState

    require_device(device)
    return PartialState(cpu=device == "cpu") if device else PartialState()


def require_device(device: str) -> None:
    """Check that a device is here.

    Raises:
        Refused: saying why torch does not see it.
    """
    if device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch {torch.__version__} has {f'CUDA {built} and sees no GPU' if built else 'no CUDA in it'}"
        raise Refused(f"`device: cuda`, and {why}; set `device: cpu` in params.yaml, or see what `make doctor` advises")


def lock_output(out: Path, device: str) -> "PartialState":
    """As `world`, once the first of them holds `out`, as `files.claim` has it."""
    state = world(device)
    if state.is_main_process:
        files.claim(out)
    return state


def map_rows(rows: Sequence[Any], compute: Callable[[Any], Any], label: str) -> list[Any]:
    """`compute` of each row, dealt to the processes and gathered in the order of rows on each."""
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
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lives(pid: int) -> bool:
    """Whether a process of that number is there, be it another user's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def started_as(pid: int) -> str:
    """The command line of a process, where the system shows it; a number is given again to other processes."""
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip() if path.is_file() else ""

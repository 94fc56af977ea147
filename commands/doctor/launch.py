"""Processes: how many `launch` starts, and what they need: a GPU or a core each, and bitsandbytes for nf4."""

import importlib.util
import shlex
import sys
from pathlib import Path

from alignment.choosing.parameters import Params
from alignment.models import loading
from alignment.runtime import processes
from commands.doctor import device
from commands.doctor.findings import Finding, failure, ok, warning


def check(params: Params) -> list[Finding]:
    """Check `launch` against the GPUs, and nf4 against what is installed."""
    found: list[Finding] = []
    started = count(params["launch"])
    path = given(params["launch"], "--config_file")
    if path is not None and _configured(Path(path)) is None:
        text = f"`launch` names {path}, which is not here, or no configuration of Accelerate's"
        found.append(failure("processes", text, "correct `launch`; launch/ has examples"))
    if params["device"] == "cuda" and device.usable("cuda"):
        import torch

        gpus = torch.cuda.device_count()
        if started > gpus:
            text = f"`launch` starts {started} processes for {gpus} visible GPUs"
            found.append(failure("processes", text, f"set its --num_processes to {gpus}"))
        elif started < gpus:
            text = f"`launch` starts {started} process{'es' * (started > 1)} for {gpus} visible GPUs: the others idle"
            way = f"set `launch: accelerate launch --multi_gpu --num_processes {gpus} -m`"
            found.append(warning("processes", text, way))
    elif params["device"] == "cpu" and started > processes.cores():
        text = f"`launch` starts {started} processes on {processes.cores()} cores, which slow each other down"
        found.append(warning("processes", text, f"set its --num_processes to {processes.cores()} at most"))
    if params["quantization"] == "nf4" and not importlib.util.find_spec("bitsandbytes"):
        way = f"{sys.executable} -m pip install {loading.BITSANDBYTES}, or set `quantization: none`"
        found.append(failure("processes", "quantization nf4 needs bitsandbytes, which is not installed", way))
    return found or [ok("processes", f"`launch` starts {started}; quantization {params['quantization']}")]


def count(launch: str) -> int:
    """Return how many processes `launch` starts."""
    for flag in ("--num_processes", "--num-processes", "--nproc_per_node"):
        if (number := given(launch, flag)) and number.isdecimal() and len(number) < 7:
            return max(1, int(number))
    path = given(launch, "--config_file")
    return (_configured(Path(path)) if path else None) or 1


def _configured(path: Path) -> int | None:
    """Return the number of processes in a configuration of Accelerate's, or None where the file is none."""
    from dvc.utils.serialize import ParseError, load_yaml  # type: ignore[import-untyped]

    try:
        number = load_yaml(str(path)).get("num_processes", 1)
    except (ParseError, OSError, ValueError, RecursionError, AttributeError):
        return None
    return number if isinstance(number, int) and number > 0 else None


def given(launch: str, flag: str) -> str | None:
    """Return the word after a flag of `launch`, or None."""
    words = shlex.split(launch)
    return words[words.index(flag) + 1] if flag in words[:-1] else None

"""The device: a GPU with its driver, or the processors, and whether they are quick at `dtype`."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from alignment.choosing.parameters import Params
from alignment.runtime import processes
from commands.doctor import predictions
from commands.doctor.findings import Finding, failure, ok, warning
from commands.doctor.predictions import GB


def check(params: Params) -> list[Finding]:
    """Check the device that `device` names."""
    import torch

    if params["device"] == "cpu":
        hint = "bfloat16 in hardware" if _bfloat16_on_cpu() else "no bfloat16 in hardware: dtype float32 is faster"
        text = f"cpu, {processes.cores()} cores, {threads()} used by torch, {hint}"
        if torch.cuda.is_available():
            return [warning("device", f"{text}; a GPU is here and not used", "set `device: cuda`")]
        if params["dtype"] == "bfloat16" and not _bfloat16_on_cpu():
            return [warning("device", text, "set `dtype: float32`")]
        return [ok("device", text)]
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch {torch.__version__} has CUDA {built} and sees no GPU" if built else "torch has no CUDA in it"
        # pip takes a build without CUDA for the same version and would leave it.
        pip = f"{sys.executable} -m pip"
        again = f"{pip} uninstall --yes torch && {pip} install torch=={_plain_torch()}"
        way = "see that `nvidia-smi` shows it" if built else again
        return [failure("device", f"`device: cuda`, and {why}", f"set `device: cpu`, or {way}")]
    total, free = predictions.memory("cuda")
    backends: Any = torch.backends.cuda
    kernels = {
        "flash": backends.flash_sdp_enabled(),
        "memory-efficient": backends.mem_efficient_sdp_enabled(),
        "cuDNN": backends.cudnn_sdp_enabled(),
        "plain": backends.math_sdp_enabled(),
    }
    attention = ", ".join(name for name, offered in kernels.items() if offered)
    text = (
        f"{torch.cuda.get_device_name()}, {total / GB:.0f} GB, {free / GB:.0f} GB free, {torch.cuda.device_count()} "
        f"visible, driver {_driver()}, CUDA {torch.version.cuda}, attention: {attention}"
    )
    if params["dtype"] == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return [warning("device", f"{text}; it has no bfloat16", "set `dtype: float32`")]
    return [ok("device", text)]


def usable(device: str) -> bool:
    """Return whether the device is here."""
    if device == "cpu":
        return True
    import torch

    return torch.cuda.is_available()


def threads() -> int:
    """Return the number of threads that torch computes with on a CPU."""
    import torch

    return torch.get_num_threads()


def _plain_torch() -> str:
    return metadata.version("torch").partition("+")[0]


def _bfloat16_on_cpu() -> bool:
    info = Path("/proc/cpuinfo")
    return info.is_file() and any(flag in info.read_text() for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def _driver() -> str:
    try:
        ended = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return ended.stdout.split("\n")[0].strip() or "unknown"

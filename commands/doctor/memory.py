"""Memory: predicted peaks of the stages against what the device has, and what to lower or to write in params.yaml."""

import math
import sys
from dataclasses import replace
from typing import Any

from alignment.choosing.parameters import Params
from commands.doctor import device, launch, predictions
from commands.doctor.findings import Finding, failure, ok, warning
from commands.doctor.predictions import GB, Shape

ROOM = 0.9  # of the memory: the rest is the system's, and the prediction's error
GPU_TOKENS = 8192  # of a forward pass, from which on a GPU gains little (LOG.md)
TOKEN_BUDGET = {"cpu": 512, "cuda": 16384}  # the fastest of those that LOG.md tried


def check(params: Params, shape: Shape) -> list[Finding]:
    """Check predicted peaks of sft, dpo, eval and safety against the device's memory, with what to lower."""
    here = device.usable(params["device"])
    total, free = predictions.memory(params["device"]) if here else (math.inf, math.inf)
    shared = launch.count(params["launch"]) if params["device"] == "cpu" else 1
    found = []
    for stage in ("sft", "dpo"):
        run = training(params, stage)
        need = predictions.training_memory(shape, run)
        what = f"{run.per_device_batch} × {run.max_tokens} tokens a pass" + " and side" * (stage == "dpo")
        found.append(_peak(stage, what, need, shared, total, free, lower(shape, run, stage, total / shared)))
    for stage, dtype in (("eval", params["dtype"]), ("safety", params["safety"]["dtype"])):
        need = predictions.scoring_memory(shape, dtype, params["device"], params["token_budget"])
        budget = _budget(params, shape, total / shared)
        way = f"lower `token_budget` to {budget}; a batch that does not fit is split, saying so"
        what = f"{params['token_budget']} tokens a pass in {dtype}"
        found.append(_peak(stage, what, need, shared, total, free, way))
    return [*found, *([proposal(params, shape, total / shared)] if here else [])]


def _peak(stage: str, what: str, need: dict[str, float], shared: int, total: float, free: float, way: str) -> Finding:
    peak = shared * sum(need.values())
    parts = ", ".join(f"{name} {size / GB:.1f}" for name, size in need.items() if size >= 0.05 * GB)
    times = f"{shared} processes of " if shared > 1 else ""
    has = f"of {total / GB:.1f} GB, {free / GB:.1f} free" if total < math.inf else "of a device that is not here"
    text = f"{stage}: about {peak / GB:,.1f} GB at most {has} ({times}{what}: {parts})"
    if peak > ROOM * total:
        return failure("memory", text, way)
    if peak > free:
        return warning("memory", text, "end other processes first, or " + way)
    return ok("memory", text)


def _fits(need: dict[str, float], total: float) -> bool:
    return sum(need.values()) <= ROOM * total


def training(params: Params, stage: str) -> predictions.Training:
    """Return what decides the memory of a training stage; DPO trains the adapter of SFT, with its rank and dropout."""
    return predictions.Training(
        dtype=params["dtype"],
        device=params["device"],
        quantization=params["quantization"],
        per_device_batch=min(params["per_device_batch"], _step(params[stage])),
        max_tokens=params["sample"]["max_tokens"],
        rank=params["sft"]["rank"],
        dropout=params["sft"]["dropout"],
        gradient_checkpointing=params[stage]["gradient_checkpointing"],
        sequences=2 if stage == "dpo" else 1,
    )


def _step(section: Params) -> int:
    """Return the rows of an optimiser step, which bound those of a forward pass; a budget of tokens sets no bound."""
    return int(section["batch"]) if section["budget"] == "epochs" else sys.maxsize


def lower(shape: Shape, run: predictions.Training, stage: str, total: float) -> str:
    """Name what to lower until training fits.

    Tried in this order: per_device_batch, gradient_checkpointing, nf4.
    """
    ways: list[tuple[dict[str, Any], str]] = [
        ({"per_device_batch": n}, f"set `per_device_batch: {n}`")
        for n in predictions.powers(run.per_device_batch)
        if n < run.per_device_batch
    ]
    one = {"per_device_batch": 1, "gradient_checkpointing": True}
    checked = f"set `per_device_batch: 1`, `{stage}.gradient_checkpointing: true`"
    ways += [(one, checked), (one | {"quantization": "nf4"}, checked + ", `quantization: nf4`")]
    for changes, way in ways:
        if _fits(predictions.training_memory(shape, replace(run, **changes)), total):
            return way
    return "lower `sample.max_tokens`, or take a smaller `model` or a larger device: nothing else makes it fit"


def _budget(params: Params, shape: Shape, total: float) -> int:
    """Return the quickest token budget that fits eval and safety."""
    at, dtypes = params["device"], (params["dtype"], params["safety"]["dtype"])
    return next(
        tokens
        for tokens in predictions.powers(TOKEN_BUDGET[at])
        if tokens <= 64 or all(_fits(predictions.scoring_memory(shape, dtype, at, tokens), total) for dtype in dtypes)
    )


def proposal(params: Params, shape: Shape, total: float) -> Finding:
    """Propose parameters for this device: rows a pass that fit sft and dpo and are quick, and a token budget."""
    runs = [training(params, stage) for stage in ("sft", "dpo")]
    # On a CPU one row a pass was the quickest; a GPU wants `GPU_TOKENS`, and most rows are far from the longest.
    most = 1 if params["device"] == "cpu" else min(params["sft"]["batch"], params["dpo"]["batch"])
    for rows in predictions.powers(most):
        needs = (predictions.training_memory(shape, replace(run, per_device_batch=rows)) for run in runs)
        if (rows == 1 or rows * runs[0].max_tokens <= 4 * GPU_TOKENS) and all(_fits(need, total) for need in needs):
            break
    else:
        return warning("proposal", "no per_device_batch fits both sft and dpo here", "see the lines on memory above")
    text = f"for this device: per_device_batch: {rows}, token_budget: {_budget(params, shape, total)}"
    return ok("proposal", f"{text} (the last digits of results may change with them)")

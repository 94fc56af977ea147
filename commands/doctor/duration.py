"""Duration: how long the stages take, from a measured matrix product and the tokens that they read."""

import shlex
from itertools import pairwise
from pathlib import Path

from alignment.choosing.parameters import Params
from alignment.runtime import files
from commands.doctor import launch, predictions
from commands.doctor.device import threads
from commands.doctor.findings import Finding, ok
from commands.doctor.predictions import Shape


def check(params: Params, shape: Shape) -> list[Finding]:
    """Estimate the hours of sft, dpo, and of eval and safety together, from a measured matrix product."""
    device, dtype, count = params["device"], params["dtype"], launch.count(params["launch"])
    if device == "cpu":
        count = 1  # processes share the cores
    peaks = {kind: predictions.matrix_peak(kind, device) * count for kind in {dtype, params["safety"]["dtype"]}}
    said = ", ".join(f"{peak / 1e9:,.0f} GFLOP/s in {kind}" for kind, peak in sorted(peaks.items()))
    unit, many = ("GPU", count) if device == "cuda" else ("thread", threads())
    where = f"{many} {unit}" if many == 1 else f"{many} {unit}s"
    found = [ok("speed", f"{said}: a matrix product on {where}, measured now, beside whatever else runs")]
    share = predictions.TRAINING_SHARE[device]
    for stage, role, sequences in (("sft", "demonstrations", 1), ("dpo", "comparisons", 2)):
        passes, length, base = amount(params, role)
        flops = predictions.training_flops(shape, passes * length * sequences, length, sequences)
        if params[stage]["gradient_checkpointing"]:
            flops *= 4 / 3
        seconds = flops / (peaks[dtype] * share) + predictions.START_SECONDS
        text = f"{stage}: about {_span(seconds)}, an estimate from {base}, at {share:.0%} of that speed"
        found.append(ok("time", text))
    found.append(_scoring_time(params, shape, peaks))
    return found


def amount(params: Params, role: str) -> tuple[float, float, str]:
    """Return the number of sequences (of dpo, pairs) trained, their mean tokens, and the basis of the estimate."""
    stage = params["sft" if role == "demonstrations" else "dpo"]
    corpus, rows = params["data" if role == "demonstrations" else "preferences"], params["rows"][role]
    metrics = Path(f"metrics/sample/{role}.json")
    if metrics.is_file() and _sampled_alike(params, role, corpus):
        figures = files.read_json(metrics)
        rows, other = figures["rows.kept"], figures.get("tokens.rejected.mean", figures["tokens.reply.mean"])
        length = figures["tokens.total"] / rows
        if role == "comparisons":
            length = figures["tokens.prompt.mean"] + (figures["tokens.reply.mean"] + other) / 2
        base = f"{rows:,} rows of {length:.0f} tokens as {metrics} counts them"
    else:
        rows, length = min(rows, predictions.ROWS.get(corpus, rows)), params["sample"]["max_tokens"]
        base = f"{rows:,} rows as if each had `max_tokens`, {length:,}: an upper bound until `sample` has counted them"
    passes = rows * stage["epochs"]
    if stage["budget"] == "tokens":
        sides = 2 if role == "comparisons" else 1
        passes, base = stage["tokens"] / length / sides, f"{stage['tokens']:,} tokens, prompts not counted; {base}"
    return passes, length, base


def _sampled_alike(params: Params, role: str, corpus: str) -> bool:
    """Return whether the rows in the workspace were sampled by these parameters, as far as dvc.lock tells."""
    from dvc.utils.serialize import load_yaml  # type: ignore[import-untyped]

    if not Path("dvc.lock").is_file():
        return False
    ran = load_yaml("dvc.lock").get("stages", {})
    commands = [ran.get(name, {}).get("cmd", "") for name in (f"sample@{role}", f"fetch-corpus@{role}")]
    sampled, fetched = (dict(pairwise(shlex.split(text))) for text in commands)
    wanted = {"corpus": corpus, "rows": params["rows"][role], "max_tokens": params["sample"]["max_tokens"]}
    return fetched.get("--source") == params["source"] and all(
        sampled.get(f"--{name}") == str(value) for name, value in wanted.items()
    )


def _scoring_time(params: Params, shape: Shape, peaks: dict[str, float]) -> Finding:
    share, items = predictions.SCORING_SHARE[params["device"]], {}
    for entry in params["eval"]["items"]:
        task, _, count = entry.partition("=")
        items[task] = int(count) if count.isdigit() else None
    unknown = [task for task in items if task not in predictions.READ]
    flops = sum(
        predictions.scoring_flops(shape, min(items[task] or whole, whole), read, scored)
        for task, (whole, read, scored) in predictions.READ.items()
        if task in items
    )
    whole, read, scored = predictions.SENTENCE
    sentences = min(params["safety"]["limit"], whole) if params["sentences"] == "safenlp" else params["safety"]["limit"]
    safety = predictions.scoring_flops(shape, sentences, read, scored)
    evaluating, judging = flops / peaks[params["dtype"]], safety / peaks[params["safety"]["dtype"]]
    seconds = 3 * ((evaluating + judging) / share + 2 * predictions.START_SECONDS)
    without = f"; not counted: {', '.join(unknown)}" if unknown else ""
    text = f"eval and safety of base, sft, dpo: about {_span(seconds)}, an estimate from real items' tokens"
    return ok("time", f"{text}, at {share:.0%} of that speed{without}")


def _span(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"

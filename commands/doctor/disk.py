"""Disk: bytes that the parameters' files need, against what is free where they will lie."""

import shutil
from pathlib import Path
from typing import Any

from alignment import corpora
from alignment.choosing.parameters import Params
from alignment.fetching import pins
from commands.doctor import predictions
from commands.doctor.checkout import link
from commands.doctor.findings import Finding, failure, ok
from commands.doctor.predictions import GB, Shape


def check(params: Params, shape: Shape | None, sizes: dict[str, int], study: Any) -> list[Finding]:
    """Check the room for the DVC cache and the workspace, added up where they share a file system."""
    workspace = Path.cwd()
    cache = Path(study.cache.local.path) if study else workspace / ".dvc/cache"
    parts = _bytes(params, shape, sizes)
    copies = bool(study) and link(study) == "copy"  # then all that is fetched and made lies twice
    places = {"the DVC cache": cache, "the workspace": workspace}
    devices = {place: _there(path).stat().st_dev for place, path in places.items()}
    total = sum(size for size, _ in parts.values())
    need = {"the DVC cache": total, "the workspace": total if copies else 0.0}
    if len(set(devices.values())) == 1:
        need = {"the DVC cache and the workspace": sum(need.values())}
    told = "; ".join(f"{name} {size / GB:.2f}, {how}" for name, (size, how) in parts.items() if size >= 0.01 * GB)
    found = []
    for place, wanted in need.items():
        path = cache if "cache" in place else workspace
        free = shutil.disk_usage(_there(path)).free
        why = f"for a run from nothing ({told or 'little of each'})" if wanted else "since files are links to the cache"
        text = f"{place} ({path}): up to {wanted / GB:.2f} GB {why}; {free / GB:.1f} GB free"
        if wanted > free:
            way = "free that much, or `dvc cache dir <folder on a larger disk>`"
            found.append(failure("disk", text, way))
        else:
            found.append(ok("disk", text))
    return found


def _there(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _bytes(params: Params, shape: Shape | None, sizes: dict[str, int]) -> dict[str, tuple[float, str]]:
    """Return the estimated bytes by kind, and how each is estimated."""
    adapter = shape.adapter(params["sft"]["rank"]) if shape else 0
    checkpoint = adapter * (predictions.ADAPTER + 4.0)
    wanted = {"demonstrations": (params["data"], 1), "comparisons": (params["preferences"], 2)}
    sampled = sum(
        min(params["rows"][role], predictions.ROWS.get(corpus, params["rows"][role])) * sides
        for role, (corpus, sides) in wanted.items()
    )
    raw = [sizes.get(repository.name, 0) for repository in pins.BENCHMARKS.values()]
    return {
        "model": _model_bytes(params["model"], shape, sizes),
        **{name: _corpus_bytes(name, params["own"], sizes) for name, _ in wanted.values()},
        "benchmarks": (sum(raw), "as stated") if all(raw) else (predictions.BENCHMARK_BYTES, "a guess"),
        "sampled rows": (sampled * params["sample"]["max_tokens"] * 4.0, "rows × max_tokens × 4 bytes"),
        "checkpoints and adapters": (
            predictions.CHECKPOINTS * checkpoint + 2 * 4.0 * adapter,
            f"{predictions.CHECKPOINTS} of {adapter / 1e6:.1f} million LoRA weights × 20 bytes",
        ),
    }


def _model_bytes(model: str, shape: Shape | None, sizes: dict[str, int]) -> tuple[float, str]:
    if stated := sizes.get(model.partition("@")[0]):
        return stated, "as stated"
    if shape is None:
        return 0.0, "unknown: no shape"
    # Repositories and folders mostly hold 16 bits a weight; a wheel and random weights are written in float32.
    size = 4 if model.startswith(("wheel:", "random:")) else 2
    return shape.parameters * float(size), f"{shape.parameters / 1e9:.2f} billion weights × {size} bytes"


def _corpus_bytes(name: str, own: Params, sizes: dict[str, int]) -> tuple[float, str]:
    repository = corpora.load(name).SOURCE
    if repository is None:
        paths = [Path(path) for path in own.values() if Path(path).is_file()]
        return sum(path.stat().st_size for path in paths), "the files"
    stated = sizes.get(repository.name)
    return (stated, "as stated") if stated else (predictions.CORPUS_BYTES.get(name, 0), "a table")

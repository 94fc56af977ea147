"""The libraries that results rest on, and their versions: as they are locked, and as they are installed.

In: requirements.lock. Out: versions by the names under which the libraries are installed.
"""

from importlib import metadata
from pathlib import Path

from alignment.runtime import Refused

# What a module of ours imports, and what is then recorded: the library, and what of its own imports decides results.
# Not here: what only brings files whose hashes are known, reads parameters, or draws the page of a comparison.
RESULTS = {
    "accelerate": ("accelerate",),
    "datasets": ("datasets", "pyarrow"),
    "datasketch": ("datasketch", "numpy"),
    "gguf": ("gguf", "numpy"),
    "lm_eval": ("lm_eval", "datasets", "numpy"),
    "numpy": ("numpy",),
    "peft": ("peft", "safetensors"),
    "pyarrow": ("pyarrow",),
    "safetensors": ("safetensors",),
    "scipy": ("scipy", "numpy"),
    "tokenizers": ("tokenizers",),
    "torch": ("torch",),
    "transformers": ("transformers", "tokenizers", "safetensors"),
    "trl": ("trl", "accelerate", "datasets"),
    "vl_convert": ("vl-convert-python",),
    "xxhash": ("xxhash",),
}


def locked(lock: Path) -> dict[str, str]:
    """Return the versions that a lock file names."""
    lines = [text.strip() for text in lock.read_text(encoding="utf-8").splitlines()]
    pinned = [text.partition("==") for text in lines if text and not text.startswith(("#", "-"))]
    return {name: version for name, _, version in pinned}


def others(wanted: dict[str, str]) -> dict[str, str]:
    """List the installed versions that differ from the wanted ones, and the libraries that are missing.

    A local build counts as its version: 2.13.0+cpu is a build of 2.13.0.
    """
    found = {name: _installed(name) for name in wanted}
    return {name: found[name] for name in wanted if wanted[name] not in (found[name], found[name].partition("+")[0])}


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def results(lock: Path) -> dict[str, str]:
    """Return the locked versions of the libraries that results rest on.

    Raises:
        Refused: the lock file does not name all of them.
    """
    versions = locked(lock)
    names = sorted({name for rests in RESULTS.values() for name in rests})
    if lacking := [name for name in names if name not in versions]:
        raise Refused(f"{lock} pins no version of {', '.join(lacking)}; add it, as name==version on a line of its own")
    return {name: versions[name] for name in names}

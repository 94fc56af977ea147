"""The checkout: what git and DVC hold of this folder, and whether a queued experiment, a copy of it, will have all.

Nothing is changed: no file is added, no lock removed.
"""

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignment.choosing import conflicts
from alignment.choosing.parameters import Params
from alignment.runtime import Refused, files, processes
from commands.compare import revisions
from commands.doctor import launch
from commands.doctor.findings import Finding, failure, ok, warning

DEFAULT_LINKS = ("reflink", "copy")  # DVC's own, where `cache.type` says nothing


def own_files(params: Params) -> list[Finding]:
    """Check the files that parameters name.

    DVC depends on all of `own`, and a queued experiment sees what git tracks.
    """
    found = [finding for path, key in named(params) if (finding := _untracked(path, key))]
    used = {"demonstrations": params["data"], "comparisons": params["preferences"], "sentences": params["sentences"]}
    for key, name in params["own"].items():
        path = Path(name)
        if not path.is_file():
            text = f"own.{key}: there is no file {path}" + ("" if used[key] == "own" else ", which DVC depends on")
            found.append(failure("own files", text, f"correct own.{key}; data/mini/own/ has the default"))
        elif finding := _untracked(path, f"own.{key}"):
            found.append(finding)
    return found or [ok("own files", "each is there, and in a queued experiment too")]


def named(params: Params) -> list[tuple[Path, str]]:
    """List the files besides `own` that parameters name, with the key.

    They are the modules of datasets, and a launcher's configuration.
    """
    study = params["study"]
    sets = {"data": [params["data"]], "preferences": [params["preferences"]]}
    sets |= {f"study.{key}": study[key] for key in ("demonstrations", "comparisons", "matched")}
    found = [(Path(f"alignment/corpora/{name}.py"), key) for key, names in sets.items() for name in names]
    if configured := launch.given(params["launch"], "--config_file"):
        found.append((Path(configured), "launch"))
    return list({path: (path, key) for path, key in reversed(found)}.values())[::-1]


def _untracked(path: Path, key: str) -> Finding | None:
    """Return a failure for a file that is here and would be missing in a queued experiment."""
    if (
        path.is_absolute()
        or not path.is_file()
        or _git("rev-parse", "--git-dir") is None
        or _git("ls-files", "--error-unmatch", "--", str(path)) is not None
    ):
        return None
    text = f"{key}: git does not track {path}, so a queued experiment, a copy of what it tracks, lacks it"
    return failure("own files", text, f"git add {shlex.quote(str(path))}, or write its absolute path")


def git() -> list[Finding]:
    """Check that an experiment can record the commit that it ran."""
    if _git("rev-parse", "--git-dir") is None:
        text = "this folder is no git repository, so `dvc exp run` cannot work"
        return [failure("git", text, "git clone it, or `git init && git add . && git commit`")]
    if _git("rev-parse", "HEAD") is None:
        return [failure("git", "there is no commit yet, so `dvc exp run` cannot work", "git add . && git commit")]
    found = []
    changed = (_git("status", "--porcelain") or "").splitlines()
    untracked = sum(entry.startswith("??") for entry in changed)
    if changed:
        first = ", ".join(entry[3:] for entry in changed[:5]) + (", …" if len(changed) > 5 else "")
        text = f"{len(changed) - untracked} changed and {untracked} untracked files ({first}): a result would not name "
        text += "its code"
        found.append(warning("git", text, "git add … && git commit (a queued experiment lacks untracked files)"))
    if (_git("rev-parse", "--is-shallow-repository") or "").strip() == "true":
        found.append(warning("git", "the clone is shallow: no comparison with older commits", "git fetch --unshallow"))
    return found or [ok("git", f"clean, at {(_git('rev-parse', '--short', 'HEAD') or '').strip()}")]


def _git(*arguments: str) -> str | None:
    """Return what git prints, or None where it fails."""
    try:
        ended = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout if ended.returncode == 0 else None


def repo() -> Any:
    """Return DVC's view of this folder, or None."""
    from dvc.exceptions import DvcException, NotDvcRepoError  # type: ignore[import-untyped]
    from dvc.repo import Repo  # type: ignore[import-untyped]

    try:
        return Repo()
    except (NotDvcRepoError, DvcException):
        return None


def dvc(study: Any) -> list[Finding]:
    """Check the remote, the links between cache and workspace, and locks of a DVC that was killed."""
    if study is None:
        return [failure("dvc", "this folder is no DVC repository", "run it where dvc.yaml lies; `dvc init` if new")]
    found = []
    if not study.config["core"].get("remote"):
        way = "dvc remote add --default NAME URL, if results are to be shared or kept elsewhere"
        found.append(warning("dvc", "no default remote: results lie on this disk alone", way))
    first = link(study)
    if first == "copy":
        wanted = ",".join(study.config["cache"].get("type") or DEFAULT_LINKS)
        text = f"cache.type {wanted}, and the file system has {', '.join(link_types(study))}: every file lies twice"
        found.append(warning("dvc", text, "dvc config cache.type reflink,hardlink,symlink,copy; or one file system"))
    else:
        found.append(ok("dvc", f"files of the cache come into the workspace by {first}"))
    if remote := study.config["core"].get("remote"):
        found.append(ok("dvc", f"default remote {remote}"))
    found += kept(Path(study.cache.local.path).parents[1])
    return found + recorded() + (locks(Path(study.tmp_dir)) or [ok("dvc", "no lock is held")])


def kept(cache: Path) -> list[Finding]:
    """Check that this user can keep checkpoints and downloads beside DVC's cache; [] if so."""
    place = files.own(cache / ".." / "state")
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    if os.access(there, os.W_OK | os.X_OK) and (there != place or place.stat().st_uid == os.getuid()):
        return []
    said, _, way = str(files.unusable(place, f"{there} is somebody else's, or not writable")).partition("\n")
    return [failure("dvc", said, way)]


def link(study: Any) -> str:
    """Return the link by which DVC shares files of its cache: the first of `cache.type` that works, or `copy`."""
    able = link_types(study)
    return next((kind for kind in study.config["cache"].get("type") or DEFAULT_LINKS if kind in able), "copy")


def link_types(study: Any) -> list[str]:
    """List the ways in which the file systems of cache and workspace can share a file; `copy` always works."""
    from dvc.fs import LocalFileSystem  # type: ignore[import-untyped]
    from dvc_objects.fs import generic

    local, cache = LocalFileSystem(), study.cache.local
    kinds = ["reflink", "hardlink", "symlink"]
    # DVC's own test: it makes two small files and removes them.
    return [*generic.test_links(kinds, cache.fs, cache.path, local, str(Path.cwd() / ".dvc" / "tmp" / "x")), "copy"]


def recorded() -> list[Finding]:
    """Check dvc.lock for damage, and it and dvc.yaml for a half-finished merge: DVC stops at both."""
    found = []
    reads: list[tuple[str, Callable[[bytes], object]]] = [
        ("dvc.lock", revisions.recorded),
        ("dvc.yaml", lambda content: conflicts.refuse(content, "dvc.yaml")),
    ]
    for name, read in reads:
        try:
            if Path(name).is_file():
                read(Path(name).read_bytes())
        except Refused as refusal:
            text, _, way = str(refusal).partition(".\n")
            found.append(failure("dvc", text, way))
    return found


def locks(tmp: Path) -> list[Finding]:
    """Check DVC's `rwlock`: processes with the files they read and write, which a killed DVC leaves there.

    The files `lock` and `rwlock.lock` are locks of the system, which it takes back from a process that ends.
    """
    path = tmp / "rwlock"
    if not path.is_file():
        return []
    cure = f"rm {os.path.relpath(path)}"
    try:
        held = json.loads(path.read_bytes())
        holders = [info for infos in held.get("read", {}).values() for info in infos]
        holders += list(held.get("write", {}).values())
        owners = {int(info["pid"]): str(info["cmd"]) for info in holders}
    except (ValueError, TypeError, KeyError, AttributeError):
        way = f"{cure}, once no DVC runs (ps aux | grep dvc)"
        # DVC empties the file before it writes it: killed there, it leaves nothing in it.
        return [failure("dvc", f"{path} is empty, cut short or damaged, and DVC would stop at it", way)]
    alive = {pid: cmd for pid, cmd in owners.items() if processes.lives(pid)}
    found = []
    for pid, cmd in alive.items():
        now = processes.started_as(pid)
        if now and "dvc" not in now:
            text = f"{path} is held by process {pid} (`{cmd}`), which died: {pid} is now another, `{now[:60]}`"
            found.append(failure("dvc", text, cure))
        else:
            text = f"process {pid} (`{cmd}`) is at work here and holds {path}"
            found.append(warning("dvc", text, "wait for it to end; this machine's memory and cores are shared with it"))
    if dead := sorted(set(owners) - set(alive)):
        text = f"{path} still names process {', '.join(map(str, dead))} (`{owners[dead[0]]}`), which is dead"
        found.append(warning("dvc", text, f"nothing: the next DVC on this machine clears it; or {cure}"))
    return found

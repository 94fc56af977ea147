"""What `fetch` read from a folder of this machine, against what lies there now.

In: parameters, what dvc.lock records, what was fetched with its `provenance.json`. Out: files that differ, by the stage
that reads them again.

DVC depends on the name of a model's folder or of a mirror, which is a parameter, and not on what is in it: a folder
that changes in place is up to date to `dvc repro`. The user's own files and the miniature are dependencies of DVC's.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment import corpora
from alignment.choosing.parameters import Params
from alignment.corpora import Repository
from alignment.fetching import base_model, pins, repositories
from alignment.runtime import Refused, files
from commands.compare import revisions
from commands.doctor.findings import Finding, failure, ok

KNOWN = Path(".dvc/tmp/fetched.json")  # DVC's own folder for what may be lost
SHOWN = 8  # files that are named before they are counted


@dataclass(frozen=True)
class Read:
    """A folder that a stage copied.

    Attributes:
        stage: its name.
        out: where the copy lies.
        repository: what was wanted of the folder.
        folder: the one that was read.
        given: the parameter that names it, or the mirror in which it lies.
    """

    stage: str
    out: Path
    repository: Repository
    folder: Path
    given: str

    def differences(self, sha256: Callable[[Path], str]) -> Iterator[str]:
        """Yield the files of the folder that differ from their copies.

        There are none if the folder was never copied, or if the copy is of something else.
        """
        if not (self.out / "provenance.json").is_file() or not self.folder.is_dir():
            return
        told = files.read_json(self.out / "provenance.json")
        if told["repository"] != self.repository.name or told["source"] not in ("local", "mirror"):
            return
        for name, copied in told["files"].items():
            place = self.folder / name
            if not place.is_file():
                yield f"{place} is gone"
            elif place.stat().st_size != copied["bytes"] or sha256(place) != copied["sha256"]:
                yield f"{place} has changed"
        with contextlib.suppress(Refused):  # what is wanted and gone was named above
            optional = base_model.OPTIONAL if self.repository.host == "model" else ()
            for name in repositories.listed(self.repository, self.folder, optional):
                if name not in told["files"]:
                    yield f"{self.folder / name} is new"


class Hashes:
    """The SHA-256 of files, kept from one look to the next: a file is read again if it is not the same to the system.

    Args:
        path: where they are kept.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._used = path, dict[str, str]()
        self._kept: Mapping[str, str] = {}
        with contextlib.suppress(Refused, FileNotFoundError):  # without them, every file is read
            self._kept = files.read_json(path)

    def sha256(self, file: Path) -> str:
        """Return the SHA-256 of a file."""
        status = file.stat()
        times = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        key = f"{file} {' '.join(map(str, times))}"
        self._used[key] = self._kept.get(key) or files.sha256(file)
        return self._used[key]

    def keep(self) -> None:
        """Write the hashes that were asked for."""
        if self._used != self._kept:
            files.write_json(self._path, self._used)


def check(params: Params) -> list[Finding]:
    """Check every file that was read, by its bytes."""
    found = [
        failure("fetched", summary(stage, says), f"{mend(stage)}, then make repro")
        for stage, says in changes(params, files.sha256).items()
    ]
    return found or [ok("fetched", "what was fetched from folders of this machine still lies there, if any was")]


def changes(params: Params, sha256: Callable[[Path], str]) -> dict[str, list[str]]:
    """Return what differs, by the stage that reads it again.

    Args:
        params: what the parameters say now: what they do not name is no longer asked for.
        sha256: hashes a file.
    """
    found: dict[str, list[str]] = {}
    named = given()
    for read in _reads(params):
        if read.given in named.get(read.stage, ()):
            found.setdefault(read.stage, []).extend(read.differences(sha256))
    return {stage: says for stage, says in found.items() if says}


def given() -> dict[str, list[str]]:
    """Return the absolute paths in the commands that dvc.lock records of `fetch`, by stage; most studies have none.

    Raises:
        Refused: dvc.lock is damaged or half merged.
    """
    lock = Path("dvc.lock")
    recorded = revisions.recorded(lock.read_bytes()) if lock.is_file() else {}
    words = {stage: revisions.words(entry["cmd"]) for stage, entry in recorded.items() if stage.startswith("fetch")}
    found = {stage: [word for word in each if Path(word).is_absolute()] for stage, each in words.items()}
    return {stage: paths for stage, paths in found.items() if paths}


def summary(stage: str, says: list[str]) -> str:
    """Return what differs, in words."""
    more = f"; and {len(says) - SHOWN} more" if len(says) > SHOWN else ""
    return f"{'; '.join(says[:SHOWN])}{more} since {stage} read it, and DVC does not see that"


def mend(stage: str) -> str:
    """Return the command that reads it again."""
    return f"dvc repro --force --single-item {stage}"


def _reads(params: Params) -> Iterator[Read]:
    """Yield the folders of this machine that `fetch` reads, by the parameters."""
    model, source = params["model"], params["source"]
    if Path(model).is_absolute():
        yield Read("fetch@model", Path("models/base"), base_model.repository("a local folder", ""), Path(model), model)
    if not Path(source).is_absolute():
        return
    for stage, out, repository in _of_a_mirror(params):
        yield Read(stage, out, repository, Path(source) / repository.name, source)


def _of_a_mirror(params: Params) -> Iterator[tuple[str, Path, Repository]]:
    """Yield what `fetch` reads from `source`: the stage, its copy, and the repository."""
    if pinned := re.fullmatch(r"([\w.-]+/[\w.-]+)@([\w.-]+)", params["model"]):
        yield "fetch@model", Path("models/base"), base_model.repository(pinned[1], pinned[2])
    for task, repository in {**pins.BENCHMARKS, **pins.more(params["more_benchmarks"])}.items():
        yield "fetch-benchmarks@items", Path("data/raw/benchmarks", task), repository
    for role, key in (("demonstrations", "data"), ("comparisons", "preferences")):
        wanted: Any = corpora.load(params[key]).SOURCE
        if wanted is not None:
            yield f"fetch-corpus@{role}", Path("data/raw", role), wanted
    if params["sentences"] == "safenlp":
        yield "fetch-safety@sentences", Path("data/raw/safety"), pins.SAFETY

"""Whether the workspace and DVC's cache hold what dvc.lock records: every byte of it is read.

In: the repository in the current folder. Out: where each recorded file lies whole; faults, each with what mends it.

DVC knows an edit by a file's time and size, and trusts an object of its cache that is write-protected: a byte that a
disk changes passes both, and `dvc status` says that everything is up to date.
"""

import hashlib
import io
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from alignment.runtime import Refused, files
from commands.compare.revisions import WORKSPACE, Revision
from commands.verify import copies

FOLDER = ".dir"  # ends the hash of a folder, which is that of the list of its files
HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")

_known: dict[tuple[int, ...], str] = {}  # the md5 of a file by what makes it this file: a hard link is read once


class Fault(NamedTuple):
    """Damage to an output, and its remedy.

    Attributes:
        says: which file, and what of it; one or more.
        mend: the command that brings it back.
    """

    says: list[str]
    mend: str


class Records:
    """The records in dvc.lock of the stages of dvc.yaml.

    Attributes:
        revision: reads dvc.lock.
        stages: the names of the stages, in the order of dvc.yaml.

    Raises:
        Refused: dvc.lock or dvc.yaml cannot be read, dvc.lock lacks a stage, or a path of theirs leads out of the
            repository.
    """

    def __init__(self) -> None:
        from dvc.exceptions import DvcException  # type: ignore[import-untyped]
        from yaml import YAMLError

        try:
            self.revision = Revision.open(WORKSPACE)
            repo = self.revision.tree.repo
            stages = [stage for stage in repo.index.stages if stage.cmd]
        except (DvcException, YAMLError) as error:
            raise Refused(f"{error}\n`git diff HEAD -- dvc.lock dvc.yaml params.yaml` shows what was changed") from None
        self.stages = [stage.addressing for stage in stages]
        if lacking := [stage for stage in self.stages if stage not in self.revision.stages]:
            raise Refused(
                f"dvc.lock does not record {', '.join(lacking)}: they were never run, or it is cut short.\n"
                "`dvc repro` runs them; what ran before comes from its cache"
            )
        self._made = {stage.addressing: stage for stage in stages}
        self._cached = {out.def_path for stage in stages for out in stage.outs if out.use_cache}
        self._cache = Path(os.path.relpath(repo.cache.local.path))
        for name in self.stages:
            self._refuse_leading_out(name)

    def named(self, stage: str, kind: str) -> list[str]:
        """Return the paths of a stage's `deps` or `outs` in dvc.yaml.

        Files of parameters are left out, as in dvc.lock.
        """
        from dvc.dependency.param import ParamsDependency  # type: ignore[import-untyped]

        each = getattr(self._made[stage], kind)
        return [one.def_path for one in each if not isinstance(one, ParamsDependency)]

    def commands(self, stage: str) -> list[str]:
        """Return the commands that dvc.yaml runs for a stage with the parameters as they are now, in DVC's order."""
        given = self._made[stage].cmd
        return list(given) if isinstance(given, list) else given.splitlines()

    def departs(self, stage: str) -> str | None:
        """Return what dvc.lock records of a stage otherwise than dvc.yaml gives it now, both shown; None if nothing."""
        recorded = self.revision.stages[stage]
        pairs = {
            "another command": (recorded["cmd"], self._made[stage].cmd),
            "other inputs": (sorted(self.revision.hashes(stage, "deps")), sorted(self.named(stage, "deps"))),
            "other outputs": (sorted(self.revision.hashes(stage, "outs")), sorted(self.named(stage, "outs"))),
        }
        for what, (then, now) in pairs.items():
            if then != now:
                was, gives = (each if isinstance(each, str) else "\n    ".join(each) for each in (then, now))
                return f"{what} than dvc.yaml gives now, with params.yaml.\n  dvc.lock: {was}\n  dvc.yaml: {gives}"
        return None

    def _refuse_leading_out(self, stage: str) -> None:
        if not Path(self._made[stage].wdir).samefile("."):
            raise Refused(
                f"{stage} has `wdir: {os.path.relpath(self._made[stage].wdir)}`, from where its paths are meant.\n"
                "Write them in dvc.yaml from the repository's own folder, without `wdir`, and `dvc repro`"
            )
        for path in [*self.named(stage, "outs"), *self.revision.hashes(stage, "outs")]:
            if copies.leads_out(path):
                raise Refused(
                    f"{path}, an output of {stage}, leads out of the repository, and is neither read nor removed.\n"
                    "If dvc.yaml names it, give it a place in the repository; if only dvc.lock does, that was edited"
                )
        for path in [*self.named(stage, "deps"), *self.revision.hashes(stage, "deps")]:
            if ".." in Path(path).parts:
                raise Refused(f"{path}, an input of {stage}, leads out of the repository; give it by its absolute path")

    def files(self, path: str, md5: str, root: Path = Path()) -> dict[str, str] | None:
        """Return the recorded files of an output or input, by path, with their md5.

        Args:
            path: as dvc.lock names it.
            md5: as dvc.lock records it.
            root: a copy of the repository; what the cache does not list is known from there if it is whole, or by git.

        Returns:
            None of a folder whose list of files is lost.
        """
        if not md5.endswith(FOLDER):
            return {path: md5}
        if holds(self._object(md5), md5.removesuffix(FOLDER)):
            entries = json.loads(self._object(md5).read_bytes())
            if outside := [entry["relpath"] for entry in entries if copies.leads_out(entry["relpath"])]:
                raise Refused(f"the list of files of {path} names {outside[0]}, which leads out of it: it was forged")
            return {f"{path}/{entry['relpath']}": entry["md5"] for entry in entries}
        found = listing(path, root)
        if folder_md5(path, found) != md5:
            found = committed(path)
        return found if folder_md5(path, found) == md5 else None

    def find(self, path: str, md5: str) -> Path | None:
        """Return where the bytes of a recorded file lie, in the workspace or in the cache, or None."""
        return next((place for place in (Path(path), self._object(md5)) if holds(place, md5)), None)

    def wheels(self) -> list[Path]:
        """List the wheels that `fetch` has kept beside the cache."""
        return sorted(files.own(self._cache.parents[1] / ".." / "downloads").glob("*.whl"))

    def faults(self, stage: str) -> Iterator[Fault]:
        """Yield what is damaged or missing of a stage's outputs, here and in the cache."""
        for path, md5 in self.revision.hashes(stage, "outs").items():
            here = list(self._faults_here(path, md5))
            damaged, missing = self._faults_in_cache(path, md5) if path in self._cached else ([], [])
            says = [said for said, _ in here]
            says += [f"{place}, DVC's copy of {of}, is damaged" for place, of in damaged]
            says += [f"{place}, DVC's copy of {of}, is missing" for place, of in missing]
            if says:
                gone = [place for _, place in here if place] + [place for place, _ in damaged]
                yield Fault(says, self._mend(stage, path, md5, bool(here), gone, bool(damaged or missing)))
            if added := [name for name in listing(path) if name not in (self.files(path, md5) or [name])]:
                yield Fault([f"{name} was not recorded" for name in added], "move it elsewhere")

    def _object(self, md5: str) -> Path:
        if not HASH.fullmatch(md5):
            raise Refused(f"a recorded hash is {md5!r}, which is no md5 and would lead out of DVC's cache")
        return self._cache / md5[:2] / md5[2:]

    def _faults_here(self, path: str, md5: str) -> Iterator[tuple[str, Path | None]]:
        """Yield what is wrong with an output in the workspace, and what must go before it can come back."""
        if not Path(path).exists():
            yield f"{path} is missing", None
            return
        recorded = self.files(path, md5)
        if recorded is None:
            lost = "which, is not known: their list is lost too"
            yield f"{path} holds other files or bytes than were recorded; {lost}", Path(path)
            return
        for name, each in recorded.items():
            if not Path(name).is_file():
                yield f"{name} is missing", None
            elif not holds(Path(name), each):
                said = f"{name} is damaged or edited: its md5 is {file_md5(Path(name))}, recorded is {each}"
                yield said, Path(name)

    def _faults_in_cache(self, path: str, md5: str) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
        """Return an output's damaged objects in the cache, and the missing ones, each with its file."""
        wanted = {self._object(each): (name, each) for name, each in (self.files(path, md5) or {}).items()}
        if md5.endswith(FOLDER):
            wanted[self._object(md5)] = (f"the list of files of {path}", md5.removesuffix(FOLDER))
        missing = [(place, of) for place, (of, _) in wanted.items() if not place.is_file()]
        damaged = [(place, of) for place, (of, each) in wanted.items() if place.is_file() and not holds(place, each)]
        return damaged, missing

    def _mend(self, stage: str, path: str, md5: str, here: bool, gone: list[Path], cache: bool) -> str:
        """Return the command that mends an output; every file that it removes was named before."""
        if path not in self._cached:
            again = f"dvc repro --force --single-item {stage}"
            kept = committed(path)
            whole = md5 in (kept.get(path), folder_md5(path, kept))
            return f"git checkout -- {shlex.quote(path)}" if whole else again
        remove = "".join(f"{_put_away(place)} && " for place in gone)
        if not cache:
            return f"{remove}dvc checkout {shlex.quote(path)}"
        if not here:
            return f"{remove}dvc commit {stage}"
        return f"{remove}dvc repro {stage} (or, from a remote, dvc pull {shlex.quote(path)})"


def _put_away(place: Path) -> str:
    """Return the command that removes a damaged file; a folder is renamed, as some of its files may be whole."""
    name = str(place)
    return f"mv {shlex.join([name, f'{name}.damaged'])}" if place.is_dir() else f"rm -f {shlex.quote(name)}"


def holds(path: Path, md5: str) -> bool:
    """Return whether there is a file of these bytes."""
    return path.is_file() and file_md5(path) == md5


def file_md5(path: Path) -> str:
    """Return the md5 of a file's bytes, in hexadecimal."""
    status = path.stat()
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if key not in _known:
        with path.open("rb") as stream:
            _known[key] = _md5(stream)
    return _known[key]


def listing(path: str, root: Path = Path()) -> dict[str, str]:
    """Return the files of an output in a copy of the repository, by path, with their md5.

    An output is a file or a folder.
    """
    place = root / path
    found = [place] if place.is_file() else sorted(inner for inner in place.rglob("*") if inner.is_file())
    return {file.relative_to(root).as_posix(): file_md5(file) for file in found}


def committed(path: str) -> dict[str, str]:
    """Return the files of an output in the last commit, by path, with their md5; {} if git does not have it."""
    names = _git("ls-tree", "-r", "-z", "--name-only", "HEAD", "--", path).decode().split("\0")
    return {name: _md5(io.BytesIO(_git("show", f"HEAD:./{name}"))) for name in names if name}


def folder_md5(path: str, files: dict[str, str]) -> str:
    """Return the hash that DVC gives to a folder with these files (dvc_data.hashfile.tree.Tree)."""
    entries = [{"md5": md5, "relpath": name.removeprefix(f"{path}/")} for name, md5 in files.items()]
    return _md5(io.BytesIO(json.dumps(sorted(entries, key=itemgetter("relpath"))).encode())) + FOLDER


def _git(*words: str) -> bytes:
    """Return what git prints; nothing if it fails, as without a commit."""
    return subprocess.run(["git", *words], capture_output=True, check=False).stdout


def _md5(stream: Any) -> str:
    return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

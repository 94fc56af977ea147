"""Whole-or-nothing writes and deterministic bytes.

In: values and folders of files. Out: files that appear complete or not at all, equal for equal values.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.runtime import Refused
from alignment.runtime.closure import ROOT, closure

UNFINISHED = 16
# A full disk in the words of safetensors (Rust's), and of torch's writer, which does not say why it failed.
FULL = ("no space left on device", "os error 28", "quota exceeded", "inline_container")

_claims: dict[Path, int] = {}  # open file descriptors: the system lets go of a lock when its process ends


def claim(out: Path) -> None:
    """Hold `out` for this process until the process ends; wait while another process holds it."""
    path = out.parent.resolve() / f".{out.name}.lock"
    if path in _claims:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting: another process writes {out}")
        fcntl.flock(lock, fcntl.LOCK_EX)
    _claims[path] = lock


@contextlib.contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Yield a temporary path beside `out`, which takes the place of `out` on success and is removed on failure.

    The caller makes it a file or a folder. One that a killed run left is removed first.

    Raises:
        Refused: the disk is full.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial"
    remove(partial)
    try:
        yield partial
        for path in [partial, *sorted(partial.rglob("*"))]:
            _flush(path)
        if out.is_dir() or partial.is_dir():  # a file takes a file's place in one step
            remove(out)
        os.replace(partial, out)
        _flush(out.parent)
    except Exception as error:
        if not is_full(error):
            raise
        begun = sum(path.stat().st_size for path in [partial, *partial.rglob("*")] if path.is_file())
        remove(partial)
        raise full(str(out), f"more than {begun:,}", out.parent) from None
    finally:
        remove(partial)


def is_full(error: BaseException) -> bool:
    """Return whether an error says that a disk, or a quota on it, is full."""
    code = getattr(error, "errno", None)
    return code in (errno.ENOSPC, errno.EDQUOT) or any(words in str(error).lower() for words in FULL)


def full(what: str, needed: str, folder: Path) -> Refused:
    """Return the refusal to write where there is no room.

    Args:
        what: what was to be written.
        needed: how many bytes it takes, in words.
        folder: where it was to be written.
    """
    free = shutil.disk_usage(folder).free
    return Refused(
        f"{what}: needs {needed} bytes, and the disk (or the quota) of {folder.resolve()} is full: {free:,} free.\n"
        "Free some there, then run the same command again"
    )


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(out: Path, value: Any) -> None:
    """Write `value` with sorted keys; NaN and infinity raise `ValueError`, since JSON has neither."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(out, text + "\n")


def write_text(out: Path, text: str) -> None:
    """Write `text` as UTF-8 with `\\n` line ends."""
    with whole(out) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_parquet(out: Path, table: pa.Table) -> None:
    """Write `table` as Parquet without pandas metadata, which names versions and index types."""
    with whole(out) as partial:
        pq.write_table(table.replace_schema_metadata(None), partial, compression="zstd")


def read_json(path: Path) -> Any:
    """Read one JSON value.

    Raises:
        Refused: the file is damaged or cut short.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, error) from None


def read_parquet(path: Path) -> pa.Table:
    """Read a table.

    Raises:
        Refused: the file is damaged or cut short.
    """
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> Refused:
    return Refused(f"{path} is damaged or cut short ({str(error)[:100]}); `make verify` says what mends it")


def copied(path: Path) -> str:
    """Return where to correct a fetched file if it is a copy of a user's own file, else ""."""
    provenance = path.parent / "provenance.json"
    if not provenance.is_file() or read_json(provenance)["source"] != "own":
        return ""
    return f"it is a copy of your own {path.name}, which the section `own` of params.yaml names: correct it there"


def mend(path: Path) -> str:
    """Return how to mend a damaged fetched file: correct the user's own file, or fetch it again."""
    return copied(path) or "fetch it again"


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_sha256(folder: Path) -> str:
    """Compute one SHA-256 for a folder, over the sorted relative names and hashes of its files."""
    lines = [f"{p.relative_to(folder).as_posix()} {sha256(p)}\n" for p in sorted(folder.rglob("*")) if p.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digest(value: Any, key: str = "") -> str:
    """Compute a keyed hash of a JSON value, in hexadecimal; the order of an object's keys does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=key.encode()).hexdigest()


def unit_hash(value: Any, key: str) -> float:
    """Map a value to a number in [0, 1) by its keyed hash, which chooses items and held-out rows."""
    return int(digest(value, key)[:13], 16) / 16**13


def kept(folder: Path) -> Path:
    """Return the folder for what a stage keeps from run to run, and make it if it does not exist.

    Args:
        folder: as `own`.

    Raises:
        Refused: it cannot be made, is somebody else's, or cannot be written to.
    """
    place = own(folder)
    if place == folder:
        return folder
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise unusable(place, str(error.strerror)) from None
    if place.stat().st_uid != os.getuid() or not os.access(place, os.W_OK | os.X_OK):
        raise unusable(place, "it is somebody else's, or not writable")
    return place


def own(folder: Path) -> Path:
    """Return the path of this user's folder beside a cache.

    If the cache lies in a checkout that this user owns, the folder is in its `.dvc`, which queued copies share.
    A cache elsewhere may lie in anybody's folder: then the folder is within the cache, on the same large disk, under a
    name that `dvc gc` ignores.

    Args:
        folder: `<cache>/../<name>`, as dvc.yaml writes it; any other path is returned as it is.
    """
    if folder.parts[-2:-1] != ("..",):
        return folder
    cache = folder.parents[1].resolve()
    if cache.parent.name == ".dvc" and cache.parent.stat().st_uid == os.getuid():
        return cache.parent / folder.name
    return cache / f"user-{os.getuid()}" / folder.name


def unusable(place: Path, why: str) -> Refused:
    """Return the refusal to use a folder that cannot be written to."""
    return Refused(
        f"{place}, for what a stage keeps from run to run, cannot be used: {why}.\n"
        "Make DVC's cache writable to you, or name another: dvc cache dir --local <folder>"
    )


def unfinished(state: Path, made_from: dict[str, Any]) -> Path:
    """Return the folder for the state of an unfinished run, named for its inputs, parameters and code.

    Of runs that were killed and never continued, the most recent are kept, `UNFINISHED` per stage.

    Args:
        state: a folder outside the stage's outputs, which a killed run leaves behind.
        made_from: the stage's name as `stage`, and every input and parameter.
    """
    stage = made_from["stage"]
    code = sorted(closure(ROOT / f"stages/{stage}.py"))
    folder = state / f"{stage}-{digest([made_from, [sha256(path) for path in code]])}"
    others = sorted((path for path in state.glob(f"{stage}-*") if path != folder), key=_touched)
    for path in others[: 1 - UNFINISHED]:
        print(f"{path.name} in {state}, an unfinished run with other inputs: removed")
        shutil.rmtree(path, ignore_errors=True)
    return folder


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process has just removed it
        return 0.0


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

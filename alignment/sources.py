"""Pinned repositories on disk: from the hub, from a mirror folder, or from the embedded miniature.

In: a `Repository` and where to get it. Out: a folder with its files at their paths in the repository, and
`provenance.json`: repository, resolved revision, licence, and every file's size and SHA-256. Whole or nothing.

A mirror is laid out as the hub lays out its repositories: `<owner>/<name>/<path in the repository>`.
"""

import dataclasses
import fnmatch
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from alignment import files
from alignment.command import Refused
from alignment.pins import Repository

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo
    from huggingface_hub.hf_api import RepoSibling

MINI = Path("data/mini")
GITHUB = "https://raw.githubusercontent.com"
DELAYS_SECONDS: tuple[float, ...] = (1, 4, 16)  # between the attempts of one request
SHOWN = 20  # names that a refusal lists before it counts

Result = TypeVar("Result")


def fetch(repository: Repository, source: str, out: Path, optional: tuple[str, ...] = ()) -> None:
    """Put the files that `repository` names into the folder `out`, with `provenance.json`.

    Args:
        repository: what to get; each of its patterns must match something.
        source: `hub`, `mini`, or the absolute path of a mirror folder.
        out: the folder to make; one that is there is replaced when the new one is complete.
        optional: patterns that may match nothing.

    Raises:
        Refused: the source is none of the three, or does not have what was asked for, or cannot be reached.
    """
    root = _mirror(source)
    with files.whole(out) as partial:
        partial.mkdir()
        if root is not None:
            copy(repository, root / repository.name, partial, optional)
        elif repository.host == "github":
            _download_github(repository, partial)
        else:
            repository = _download_hub(repository, partial, optional)
        kind = source if source in ("hub", "mini") else "mirror"
        write_provenance(partial, repository.name, repository.revision, kind, repository.licence)


def fetch_own(path: Path, out: Path) -> None:
    """Copy a user's own `.jsonl` or `.parquet` file into the folder `out`, with `provenance.json`.

    Raises:
        Refused: there is no such file, or it is of another kind.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise Refused(f"{path}: found {path.suffix or 'no suffix'}, wanted a .jsonl or a .parquet file")
    if not path.is_file():
        raise Refused(
            f"there is no file {path} (parameters `own.demonstrations` and `own.comparisons` of params.yaml).\n"
            "Name one that git tracks, or an absolute path: queued experiments run in a copy of what git tracks"
        )
    with files.whole(out) as partial:
        partial.mkdir()
        shutil.copyfile(path, partial / path.name)
        write_provenance(partial, "own", files.sha256(path), "own", "the user's own")


def copy(repository: Repository, folder: Path, out: Path, optional: tuple[str, ...] = ()) -> None:
    """Copy what `repository` names from `folder`, which holds that one repository, into the folder `out`.

    Raises:
        Refused: there is no such folder, or a pattern matches nothing in it.
    """
    if not folder.is_dir():
        there = [f"{path.parent.name}/{path.name}" for path in folder.parent.parent.glob("*/*") if path.is_dir()]
        raise Refused(f"{repository.name}: there is no folder {folder}.\nIn {folder.parent.parent}: {_some(there)}")
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for name in choose(names, repository, optional, place=str(folder)):
        _place(folder / name, out, name)


def choose(names: Iterable[str], repository: Repository, optional: tuple[str, ...], place: str) -> list[str]:
    """The names, sorted, that the patterns of `repository` match.

    Raises:
        Refused: one of its patterns, `optional` ones aside, matches nothing; the message lists what is there.
    """
    names = sorted(names)
    left = [name for name in names if not _matches(name, repository.ignore)]
    for pattern in repository.files:
        if not fnmatch.filter(left, pattern):
            raise Refused(
                f"{repository.name}: nothing matches {pattern!r} in {place} (revision {repository.revision}).\n"
                f"There: {_some(names)}.\nComplete that folder, choose another `source`, or correct the pinned pattern"
            )
    return [name for name in left if _matches(name, repository.files + optional)]


def write_provenance(folder: Path, repository: str, revision: str, source: str, licence: str) -> None:
    """Write `provenance.json` into `folder`: where its files come from, their sizes in bytes and SHA-256.

    Args:
        folder: what was fetched.
        repository: `owner/name`, or what stands for it.
        revision: the resolved commit, version or hash.
        source: the kind of place, such as `hub` or `mirror`; never a path, which differs between machines.
        licence: the terms, as its authors state them.
    """
    content = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
        for path in folder.rglob("*")
        if path.is_file()
    }
    head = {"repository": repository, "revision": revision, "source": source, "licence": licence}
    files.write_json(folder / "provenance.json", head | {"files": content})


def _mirror(source: str) -> Path | None:
    """The folder that `source` stands for; None for the hub."""
    if source == "hub":
        return None
    path = MINI if source == "mini" else Path(source)
    if path.is_dir() and (source == "mini" or path.is_absolute()):
        return path
    raise Refused(
        f"source {source!r}: {path} is {'not absolute' if path.is_dir() else 'no folder here'}.\n"
        f"Use `hub`, `mini` (the folder {MINI} of this repository), or the absolute path of a mirror folder;\n"
        "a relative one would break in queued experiments, which run in a copy"
    )


def _place(path: Path, out: Path, name: str) -> None:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise Refused(f"{name!r} would be written outside of {out}: do not use this source")
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, out / name)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more


def _download_hub(repository: Repository, out: Path, optional: tuple[str, ...]) -> Repository:
    """Download into `out` and return the repository at its resolved commit.

    The hub's own cache lies between: a download that was cut short goes on where it stopped.
    """
    from huggingface_hub import HfApi

    ask = HfApi().model_info if repository.host == "model" else HfApi().dataset_info
    info: ModelInfo | DatasetInfo = _patiently(
        lambda: ask(repository.name, revision=repository.revision, files_metadata=True), repository
    )
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    repository = dataclasses.replace(repository, revision=info.sha or repository.revision)
    for name in choose(siblings, repository, optional, place="the hub"):
        _place(_verified(repository, siblings[name]), out, name)
    return repository


def _verified(repository: Repository, wanted: "RepoSibling") -> Path:
    """The file's path in the hub's cache, once its bytes are those that the hub states; a wrong one is got again."""
    from huggingface_hub import hf_hub_download

    name, kind, commit = repository.name, repository.host, repository.revision
    stated = (wanted.size, wanted.lfs.sha256 if wanted.lfs else wanted.blob_id)
    for _ in range(2):
        path = Path(
            _patiently(lambda: hf_hub_download(name, wanted.rfilename, repo_type=kind, revision=commit), repository)
        )
        found = (path.stat().st_size, files.sha256(path) if wanted.lfs else _blob_id(path))
        if found == stated:
            return path
        path.resolve().unlink()
    raise Refused(
        f"{name}: {wanted.rfilename} is not what the hub states (bytes, {'SHA-256' if wanted.lfs else 'git blob'}):\n"
        f"found {found} twice, wanted {stated}. It was removed; try again, or over another connection"
    )


def _blob_id(path: Path) -> str:
    """Git's name for a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _download_github(repository: Repository, out: Path) -> None:
    """Download into `out`; the names are literal. GitHub states no hash there: the commit in the address is the pin."""
    for name in repository.files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        _patiently(lambda name=name: _stream(repository, name, out / name), repository)  # type: ignore[misc]


def _stream(repository: Repository, name: str, path: Path) -> None:
    from huggingface_hub import get_session
    from tqdm import tqdm

    url = f"{GITHUB}/{repository.name}/{repository.revision}/{name}"
    with get_session().stream("GET", url) as response, path.open("wb") as stream:
        response.raise_for_status()
        size = int(response.headers.get("Content-Length") or 0)
        with tqdm(total=size or None, desc=path.name, unit="B", unit_scale=True) as progress:
            for part in response.iter_bytes():
                progress.update(stream.write(part))


def _patiently(request: Callable[[], Result], repository: Repository) -> Result:
    """The answer to `request`, after a few attempts where the failure may pass; the hub's client retries less."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import OfflineModeIsEnabled

    for delay in (*DELAYS_SECONDS, None):
        try:
            return request()
        except (HTTPError, OSError) as failure:
            # where its cache has no such file either, the hub's client wraps what went wrong
            error = failure.__cause__ if isinstance(failure, FileNotFoundError) and failure.__cause__ else failure
            if isinstance(error, OSError) and error.errno:
                raise  # the disk's trouble, not the network's
            status = getattr(getattr(error, "response", None), "status_code", None)
            passing = status in (None, 408, 429) or status >= 500
            if delay is None or not passing or isinstance(error, OfflineModeIsEnabled):
                raise Refused(_explain(error, status, repository)) from None
            print(f"{repository.name}: {_brief(error, status)}; again in {delay} s", flush=True)
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def _brief(error: BaseException, status: int | None) -> str:
    """Status or kind, never the error's own text: a header or an address in it may hold a token."""
    return type(error).__name__ if status is None else f"HTTP {status}"


def _explain(error: BaseException, status: int | None, repository: Repository) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    page = f"{constants.ENDPOINT}/{'datasets/' if repository.host == 'dataset' else ''}{repository.name}"
    where = "GitHub" if repository.host == "github" else f"the hub ({page})"
    instead = "or set `source` to the absolute path of a mirror folder"
    if isinstance(error, OfflineModeIsEnabled):
        text = f"HF_HUB_OFFLINE keeps this process off the network. Unset it, {instead}"
    elif status in (401, 403):
        text = (
            f"{where} refuses access (HTTP {status}): it is gated, private or misspelt.\n"
            f"Accept its terms on that page and set HF_TOKEN to a token of that account, {instead}"
        )
    elif status == 404:
        text = f"{where} does not have it at revision {repository.revision}. Correct the pin, {instead}"
    else:
        text = f"{where} could not be reached ({_brief(error, status)}). Try again when the network is up, {instead}"
    return f"{repository.name}: {text}"

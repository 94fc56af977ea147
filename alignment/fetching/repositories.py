"""Pinned repositories on disk: from the hub, from GitHub, from a mirror, or from the embedded miniature.

In: a `Repository` and where to get it. Out: a folder with its files at their paths in the repository, and
`provenance.json`: repository, resolved revision, licence, terms, and every file's size and SHA-256. Whole or nothing.

A mirror is a folder or an http(s) address, laid out as the hub lays out its repositories:
`<owner>/<name>/<path in the repository>`.
"""

import dataclasses
import fnmatch
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from alignment.corpora import UNSTATED, Repository
from alignment.fetching.download import Place, Stated, download, patiently, room
from alignment.runtime import Refused, files

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo

MINI = Path("data/mini")
GITHUB = "https://raw.githubusercontent.com"
DOWNLOADS = Path(".dvc/downloads")
ADDRESS = re.compile(r"[A-Za-z][\w+.-]*:/")  # a path has lost the second slash
SHOWN = 20  # names that a refusal lists before it counts


def fetch(
    repository: Repository,
    source: str,
    out: Path,
    optional: tuple[str, ...] = (),
    downloads: Path = DOWNLOADS,
    check: Callable[[Path], None] = lambda _: None,
) -> None:
    """Put the files that `repository` names into the folder `out`, with `provenance.json`, and print its terms.

    Args:
        repository: what to get; each of its patterns must match something.
        source: `hub`, `mini`, the absolute path of a mirror folder, or a mirror's http(s) address.
        out: the folder to make; one that is there is replaced when the new one is complete.
        optional: patterns that may match nothing.
        downloads: a folder that keeps what a download has so far.
        check: refuses a folder whose files do not belong together.

    Raises:
        Refused: the source is none of these, or does not have what was asked for, cannot be reached, or sends
            something else; or the disk is full.
    """
    root = mirror_root(source)
    with files.whole(out) as partial:
        partial.mkdir()
        if isinstance(root, Path):
            _tell(repository)
            copy(repository, root / repository.name, partial, optional, root)
        else:
            repository, place, wanted = _ask(repository, root, optional)
            _tell(repository)
            download(wanted, place, downloads, partial)
        check(partial)
        kind = source if source in ("hub", "mini") else "mirror"
        write_provenance(partial, repository.name, repository.revision, kind, repository.licence, repository.terms)


def fetch_own(path: Path, out: Path, suffixes: Sequence[str] = (".jsonl", ".parquet")) -> None:
    """Copy a user's own file into the folder `out`, with `provenance.json`.

    Args:
        path: the file.
        out: the folder.
        suffixes: of the kinds of files that can be read.

    Raises:
        Refused: there is no such file, or it is of another kind, or the disk is full.
    """
    if path.suffix not in suffixes:
        raise Refused(f"{path}: found {path.suffix or 'no suffix'}, wanted a {' or a '.join(suffixes)} file")
    if not path.is_file():
        raise Refused(
            f"there is no file {path} (one of the section `own` of params.yaml).\n"
            "Name one that git tracks, or an absolute path: queued experiments run in a copy of what git tracks"
        )
    with files.whole(out) as partial, room(str(path), path.stat().st_size, out.parent):
        partial.mkdir()
        shutil.copyfile(path, partial / path.name)
        write_provenance(partial, "own", files.sha256(path), "own", "the user's own")


def copy(
    repository: Repository, folder: Path, out: Path, optional: tuple[str, ...] = (), mirror: Path | None = None
) -> None:
    """Copy what `repository` names from its own folder `folder` into the folder `out`.

    Args:
        repository: what to copy.
        folder: the folder of that one repository.
        out: a folder that exists.
        optional: patterns that may match nothing.
        mirror: as `listed` takes it.

    Raises:
        Refused: there is no such folder, or the disk has no room for it; or as `listed`.
    """
    if not folder.is_dir():
        there = [f"{path.parent.name}/{path.name}" for path in folder.parent.parent.glob("*/*") if path.is_dir()]
        raise Refused(f"{repository.name}: there is no folder {folder}.\nIn {folder.parent.parent}: {_some(there)}")
    chosen = listed(repository, folder, optional, mirror)
    with room(repository.name, sum((folder / name).stat().st_size for name in chosen), out):
        for name in chosen:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, out / name)  # not a link: an edit here would reach the mirror


def listed(
    repository: Repository, folder: Path, optional: tuple[str, ...] = (), mirror: Path | None = None
) -> list[str]:
    """List the files in `folder` that `repository` names, sorted.

    Args:
        repository: what is wanted.
        folder: the repository's folder.
        optional: patterns that may match nothing.
        mirror: the folder that no link may lead out of; None for a folder that the user named, such as one of the
            hub's cache, whose files are links.

    Raises:
        Refused: as `choose`, or a link leads out of the mirror.
    """
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    chosen = choose(names, repository, optional, place=str(folder))
    for name in chosen:
        if mirror and not (folder / name).resolve().is_relative_to(mirror.resolve()):
            raise Refused(
                f"{repository.name}: {folder / name} is a link that leads out of the mirror, to "
                f"{(folder / name).resolve()}.\nPut the file itself there, or choose another `source`"
            )
    return chosen


def choose(names: Iterable[str], repository: Repository, optional: tuple[str, ...], place: str) -> list[str]:
    """List the names that the patterns of `repository` match, sorted.

    Raises:
        Refused: one of its patterns, `optional` ones aside, matches nothing; the message lists what is there.
            Or a name leads out of the repository.
    """
    names = sorted(names)
    left = [name for name in names if not _matches(name, repository.ignore)]
    for pattern in repository.files:
        if not fnmatch.filter(left, pattern):
            raise Refused(
                f"{repository.name}: nothing matches {pattern!r} in {place} (revision {repository.revision}).\n"
                f"There: {_some(names)}.\nComplete that folder, choose another `source`, or correct the pinned pattern"
            )
    chosen = [name for name in left if _matches(name, repository.files + optional)]
    for name in chosen:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise Refused(f"{repository.name}: {name!r} in {place} leads out of the repository: do not use this source")
    return chosen


def write_provenance(folder: Path, repository: str, revision: str, source: str, licence: str, terms: str = "") -> None:
    """Write `provenance.json` into `folder`: where its files come from, their sizes in bytes and SHA-256.

    Args:
        folder: what was fetched.
        repository: `owner/name`, or what stands for it.
        revision: the resolved commit, version or hash.
        source: the kind of place, such as `hub` or `mirror`; never a path, which differs between machines.
        licence: the licence, as its authors state it.
        terms: what a user must be told, or "" where there is nothing to say.
    """
    content = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
        for path in folder.rglob("*")
        if path.is_file()
    }
    head = {"repository": repository, "revision": revision, "source": source, "licence": licence}
    said = {"terms": terms} if terms else {}
    files.write_json(folder / "provenance.json", head | said | {"files": content})


def refuse_secret(source: str) -> str:
    """Return `source` if everyone may read it: dvc.lock keeps the command of every stage that has ended well.

    Raises:
        Refused: it may hold a password or a token; the message does not repeat it.
    """
    if holds_secret(source):
        raise Refused(
            "`source` holds a user name, a password, a query or a fragment (`…@`, `?…` or `#…`), which dvc.lock would "
            "keep for everyone to read.\nIt is not repeated here, and nothing was asked or recorded. But params.yaml "
            "or the command line has it, and DVC prints a stage's command: change what others could read there.\n"
            "Serve the mirror without one, or set `source` to the absolute path of a mirror folder"
        )
    return source


def refuse_address(own: Path) -> Path:
    """Return the path of a user's own file, and refuse an address.

    DVC would request an address, and would record it with any password or token in it.

    Raises:
        Refused: it is an address; the message does not repeat it.
    """
    if ADDRESS.match(str(own)):
        raise Refused(
            "the section `own` of params.yaml holds an address (`…://…`), wanted a file on this machine: download it, "
            "and give its absolute path.\nIt is not repeated here. But params.yaml or the command line has it, and "
            "DVC prints a stage's command: if it holds a password or a token, change what others could read there"
        )
    return own


def holds_secret(source: str) -> bool:
    """Return whether a `source` of any form has a part that may hold a password or a token; no folder has one."""
    if os.path.isdir(source):
        return False
    head, found, rest = source.partition("://")
    return "?" in source or "#" in source or "@" in (rest.partition("/")[0] if found else head)


def mirror_root(source: str) -> Path | str | None:
    """Return the folder or the http(s) address that `source` stands for; None for the hub."""
    if refuse_secret(source) == "hub":
        return None
    scheme, found, rest = source.partition("://")
    if found and scheme.lower() in ("http", "https"):
        return f"{scheme.lower()}://{rest.rstrip('/')}"
    path = MINI if source == "mini" else Path(source)
    if path.is_dir() and (source == "mini" or path.is_absolute()):
        return path
    raise Refused(
        f"source {source!r}: {path} is {'not absolute' if path.is_dir() else 'no folder here'}.\n"
        f"Use `hub`, `mini` (the folder {MINI} of this repository), the absolute path of a mirror folder,\n"
        "or a mirror's http(s) address; a relative path would break in queued experiments, which run in a copy"
    )


def _tell(repository: Repository) -> None:
    if repository.terms:
        print(f"{repository.name}: {repository.terms}")


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more


def _ask(
    repository: Repository, address: str | None, optional: tuple[str, ...]
) -> tuple[Repository, Place, list[Stated]]:
    """Return the repository as its host resolves it, the host, and the files to download."""
    if address:
        return repository, *_ask_mirror(repository, f"{address}/{repository.name}/", optional)
    if repository.host == "github":
        return repository, *_ask_pins(repository)
    return _ask_hub(repository, optional)


def _ask_hub(repository: Repository, optional: tuple[str, ...]) -> tuple[Repository, Place, list[Stated]]:
    from huggingface_hub import HfApi, constants, hf_hub_url, try_to_load_from_cache

    name, kind = repository.name, repository.host
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    place = Place(name, repository.revision, f"the hub ({page})", hub=True)
    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    info: ModelInfo | DatasetInfo = patiently(
        lambda: ask(name, revision=repository.revision, files_metadata=True), place
    )
    repository = _resolved(repository, info)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    wanted = []
    for file in choose(siblings, repository, optional, place.where):
        size, lfs, blob = siblings[file].size or 0, siblings[file].lfs, siblings[file].blob_id
        address = hf_hub_url(name, file, repo_type=kind, revision=repository.revision)
        cached = try_to_load_from_cache(name, file, repo_type=kind, revision=repository.revision)
        hashed = lfs.sha256 if lfs else blob or ""
        wanted.append(Stated(file, address, size, hashed, cached=Path(cached) if isinstance(cached, str) else None))
    return repository, place, wanted


def _resolved(repository: Repository, info: "ModelInfo | DatasetInfo") -> Repository:
    """Return the repository at the commit and with the licence that the hub states.

    Print how to pin a revision that is no full commit.
    """
    commit, licence, terms = info.sha or repository.revision, repository.licence, repository.terms
    if commit != repository.revision:
        print(
            f"{repository.name}: the revision {repository.revision} is no full commit; today it is {commit}.\n"
            f"A branch can move: to pin it, write {repository.name}@{commit} in params.yaml "
            "(`model` or `more_benchmarks`), or that commit in the set's file in alignment/corpora/",
        )
    if licence == UNSTATED:
        tags = [tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")]
        licence = ", ".join(tags) or UNSTATED
        if re.search(r"\bnc\b", licence):
            terms = f"its licence, {licence}, does not allow commercial use"
    return dataclasses.replace(repository, revision=commit, licence=licence, terms=terms)


def _ask_pins(repository: Repository) -> tuple[Place, list[Stated]]:
    """List the files of a GitHub repository from its pin.

    Where GitHub serves files it states neither sizes nor hashes, so the pin states them and names each file.
    """
    root = f"{GITHUB}/{repository.name}/{repository.revision}"
    wanted = [Stated(name, f"{root}/{name}", *repository.stated[name]) for name in repository.files]
    return Place(repository.name, repository.revision, f"GitHub ({root})"), wanted


def _ask_mirror(repository: Repository, root: str, optional: tuple[str, ...]) -> tuple[Place, list[Stated]]:
    """List the files of a static file server.

    It shows a folder as a page of links, and states a file's size and version.
    """
    from fsspec.core import url_to_fs

    filesystem, _ = url_to_fs(root)
    place = Place(repository.name, repository.revision, f"the mirror ({root})")
    addresses = {unquote(address.removeprefix(root)): address for address in _crawl(filesystem, root, place)}
    wanted = []
    for name in choose(addresses, repository, optional, place.where):
        info = patiently(lambda name=name: filesystem.info(addresses[name]), place)  # type: ignore[misc]
        if info["size"] is None:
            raise Refused(
                f"{repository.name}: {place.where} does not say how long {name} is, so one that is cut short would "
                "pass.\nHave it send a Content-Length, or set `source` to the absolute path of a mirror folder"
            )
        version = f"{info.get('ETag')} {info.get('Last-Modified')}"
        wanted.append(Stated(name, addresses[name], info["size"], "", version))
    return place, wanted


def _crawl(filesystem: Any, folder: str, place: Place) -> Iterator[str]:
    """Yield the address of every file in a folder of a mirror; fsspec's own walk skips a folder that fails."""
    for entry in patiently(lambda: filesystem.ls(folder, detail=True), place):
        if entry["type"] == "directory":
            yield from _crawl(filesystem, entry["name"], place)
        elif "?" not in entry["name"]:  # such a link sorts the page
            yield entry["name"]

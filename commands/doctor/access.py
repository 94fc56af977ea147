"""Access: whether the hub, a mirror and GitHub give what `fetch` will ask for, to this user, at its pinned revisions.

In: parameters. Out: findings, and the bytes of each repository whose place states them. Nothing is downloaded but a few
answers.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alignment import corpora
from alignment.choosing.parameters import Params
from alignment.corpora import Repository
from alignment.fetching import base_model, download, pins, repositories
from alignment.models import loadable
from alignment.runtime import Refused, records
from commands.doctor.findings import Finding, failure, ok

ANSWER_SECONDS = 10  # that the hub may take
FORMS = (  # of `model` that are no folder
    r"wheel:[\w.-]+==[\w.!+-]+#sha256=[0-9a-f]{64}|random:[1-9]\d{0,5}x[1-9]\d{0,5}|[\w.-]+/[\w.-]+@[\w.-]+"
)


@dataclass(frozen=True)
class SourceReply:
    """The answer of a hub, mirror or server about a repository.

    Attributes:
        finding: why it cannot be had, or None.
        size: bytes of its files, 0 where that was not said.
        unreached: which place gave no answer, in words, or "".
    """

    finding: Finding | None = None
    size: int = 0
    unreached: str = ""


def check(params: Params) -> tuple[list[Finding], dict[str, int]]:
    """Check that each repository can be had, and return the bytes of those whose source states them."""
    try:
        wanted, root = wanted_repositories(params), repositories.mirror_root(params["source"])
    except Refused as refusal:
        return [failure("source", str(refusal), "correct `source`, `model` or `more_benchmarks`")], {}
    if isinstance(root, Path):
        return _in_folder(wanted, root)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda repository: _ask(repository, root), wanted))
    found = [answer.finding for answer in answers if answer.finding]
    unreached: dict[str, list[str]] = {}
    for repository, answer in zip(wanted, answers, strict=True):
        if answer.unreached:
            unreached.setdefault(answer.unreached, []).append(repository.name)
    way = "try again when the network is up, or set `source` to the absolute path of a mirror folder"
    found += [failure("source", f"{said}; needed from there: {', '.join(n)}", way) for said, n in unreached.items()]
    if not found:
        place = "the hub and GitHub" if root is None else root
        found = [ok("source", f"{place}: all {len(wanted)} repositories answer at their pinned revisions")]
    token = [_token(wanted)] if root is None else []
    return [*token, *found], {r.name: answer.size for r, answer in zip(wanted, answers, strict=True) if answer.size}


def model(params: Params) -> list[Finding]:
    """Check `model` without a network: its form, its pin, and a folder of this machine."""
    name = params["model"]
    if Path(name).is_absolute():
        if not Path(name).is_dir():
            return [failure("model", f"there is no folder {name}", "correct `model`: a folder, or owner/name@<commit>")]
        try:
            _check_folder(Path(name))
        except Refused as refusal:
            way = "complete it, or correct `model`; weights are read from safetensors alone"
            return [failure("model", str(refusal).splitlines()[0], way)]
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        way = f"write `model: {name}@<commit>`, with the commit from its page"
        return [failure("model", f"{name} is not pinned, and a branch can move", way)]
    elif not re.fullmatch(FORMS, name):
        forms = "; ".join(" ".join(line.split()) for line in base_model.FORMS.splitlines()[1:])
        return [failure("model", f"{records.brief(name)} cannot be understood", f"write one of: {forms}")]
    return [ok("model", name)]


def _check_folder(folder: Path) -> None:
    """Check what `fetch` would copy of a folder, as `fetch` checks it."""
    chosen = repositories.listed(base_model.repository(str(folder), "as it is"), folder, base_model.OPTIONAL)
    with TemporaryDirectory() as copy:
        for name in chosen:
            (Path(copy) / name).symlink_to(folder / name)
        loadable.check(Path(copy), str(folder))


def wanted_repositories(params: Params) -> list[Repository]:
    """List the repositories that `fetch` will ask `source` for."""
    found = []
    if match := re.fullmatch(r"([\w.-]+/[\w.-]+)@([\w.-]+)", params["model"]):
        gated = match[1].startswith("meta-llama/")  # no pin says so
        found.append(base_model.repository(match[1], match[2], gated))
    names = dict.fromkeys((params["data"], params["preferences"]))
    found += [repository for name in names if (repository := corpora.load(name).SOURCE)]
    found += [*pins.BENCHMARKS.values(), *pins.more(params["more_benchmarks"]).values()]
    return found + ([pins.SAFETY] if params["sentences"] == "safenlp" else [])


def _in_folder(wanted: list[Repository], root: Path) -> tuple[list[Finding], dict[str, int]]:
    found, sizes = [], {}
    for repository in wanted:
        folder = root / repository.name
        if not folder.is_dir():
            is_model = repository.host == "model"
            way = "choose a `model` that is a wheel, a folder or `random:`" if is_model else "complete it"
            found.append(failure("source", f"{root} has no folder {repository.name}", f"{way}, or another `source`"))
            continue
        try:
            chosen = repositories.listed(repository, folder, _optional(repository), root)
        except Refused as refusal:
            found.append(failure("source", str(refusal).splitlines()[0], "complete that folder, or another `source`"))
        else:
            sizes[repository.name] = sum((folder / name).stat().st_size for name in chosen)
    return found or [ok("source", f"{root} has all {len(wanted)} repositories")], sizes


def _token(wanted: list[Repository]) -> Finding:
    from huggingface_hub import get_token

    gated = [repository for repository in wanted if repository.gated]
    if get_token():
        return ok("token", "one is set; it is shown nowhere")
    if gated:
        said = f"HF_TOKEN is not set, and gated are {', '.join(repository.name for repository in gated)}"
        pages = ", ".join(_page(repository) for repository in gated)
        return failure("token", said, f"accept the terms on {pages}; then export HF_TOKEN=…")
    return ok("token", "HF_TOKEN is not set, and nothing gated is needed")


def _page(repository: Repository) -> str:
    """Return the address where a repository's terms are read and accepted."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if repository.host == 'dataset' else ''}{repository.name}"


def _ask(repository: Repository, root: str | None) -> SourceReply:
    """Ask for a repository's files and for the head of one, which tells whether this user may have it."""
    from httpx2 import HTTPError
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    name, revision, kind = repository.name, repository.revision, repository.host
    place = download.Place(name, revision, f"the hub ({_page(repository)})", hub=True)
    if root:
        place = download.Place(name, revision, f"the mirror ({root}/{name}/)")
    elif kind == "github":
        address = f"{repositories.GITHUB}/{name}/{revision}/{repository.files[0]}"
        place = download.Place(name, revision, f"GitHub ({address})")
    try:
        if place.hub:
            return SourceReply(size=_ask_hub(repository, place))
        ask = get_session().get if root else get_session().head
        hf_raise_for_status(ask(f"{root}/{name}/" if root else address, timeout=ANSWER_SECONDS))
    except Refused as refusal:
        return SourceReply(failure("source", str(refusal).splitlines()[0], "correct the pin, or `source`"))
    except HFValidationError:
        way = "correct `model` or `more_benchmarks`: owner/name, as on its page"
        return SourceReply(failure("source", f"{name} is no name that a repository of the hub can have", way))
    except (HTTPError, OSError) as error:
        status = download.http_status(error)
        if status is None:
            offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else download.shortened(error, status)
            host = root or (constants.ENDPOINT if place.hub else repositories.GITHUB)
            return SourceReply(unreached=f"{host} could not be reached ({offline}): this machine may be offline")
        # The last sentence of a refusal says what to do.
        said, _, way = re.sub(r"\.\n", ". ", download.explanation(error, status, place)).partition(". ")
        return SourceReply(failure("source", said, way[:1].lower() + way[1:]))
    return SourceReply(size=sum(size for size, _ in repository.stated.values()))


def _optional(repository: Repository) -> tuple[str, ...]:
    """Return the files that `fetch` takes only where they exist."""
    return base_model.OPTIONAL if repository.host == "model" else ()


def _ask_hub(repository: Repository, place: download.Place) -> int:
    """Return the bytes of a repository's files on the hub."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

    name, kind, revision = repository.name, repository.host, repository.revision
    info: Any = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=ANSWER_SECONDS, files_metadata=True)
    siblings = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    chosen = repositories.choose(siblings, repository, _optional(repository), place.where)
    # A gated repository states its files to everyone and gives none of them.
    get_hf_file_metadata(hf_hub_url(name, chosen[0], repo_type=kind, revision=revision), timeout=ANSWER_SECONDS)
    return sum(siblings[file] for file in chosen)

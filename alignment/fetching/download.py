"""Files from the network onto this disk: several at once, resumed, checked, or refused with the way out.

In: files with what their host states about them, and a folder that keeps what has arrived so far. Out: the files at
their paths, each with the bytes that were stated; or a refusal, and then nothing but what the next run goes on from.

A file is written beside where it belongs and moved when it is whole, so the disk holds it once; the hub's own client
would keep it in its cache too, and throws away what a killed download had.
"""

import contextlib
import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from alignment.runtime import Refused, files

CONNECTIONS = 4  # files of one repository that are downloaded at once
DELAYS_SECONDS: tuple[float, ...] = (1, 4, 16)  # between attempts that bring nothing
LONGEST_WAIT_SECONDS = 300.0  # the hub counts requests in windows of five minutes
SETTLED_SECONDS = 60.0  # after which a file that changes again has another date, whatever the clocks
SILENCE_SECONDS = 30.0  # a connection that brings nothing for so long has failed

Result = TypeVar("Result")


@dataclass(frozen=True)
class Place:
    """Where a repository is served, for requests and for messages.

    Attributes:
        repository: `owner/name`.
        revision: what is asked for.
        where: the place in words, with its address.
        hub: whether it is the hub, which alone may see the user's token.
    """

    repository: str
    revision: str
    where: str
    hub: bool = False


@dataclass(frozen=True)
class Stated:
    """A file to download, and what its host or its pin states about it.

    Attributes:
        name: its path in the repository.
        address: where it is served.
        size: in bytes.
        hash: a SHA-256 (64 digits), a git blob id (40 digits), or "" where neither is stated.
        version: what else tells it from an earlier file at the same address.
        cached: where the hub's own cache has it, or None.
    """

    name: str
    address: str
    size: int
    hash: str
    version: str = ""
    cached: Path | None = None


def download(wanted: list[Stated], place: Place, downloads: Path, out: Path) -> None:
    """Download `wanted` to their paths in the folder `out`.

    The first failure stops the other connections; what has arrived stays in `downloads` for the next run. A second
    process that downloads the same repository waits for the first.

    Raises:
        Refused: a file cannot be downloaded, or differs from what was stated, or the disk has no room.
    """
    from tqdm import tqdm

    folder = downloads / place.repository.replace("/", "--")
    files.claim(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / files.digest([file.name, file.size, file.hash, file.version]) for file in wanted]
    missing = sum(file.size - _size(part) for file, part in zip(wanted, parts, strict=True))
    moved = 0 if folder.stat().st_dev == out.stat().st_dev else sum(file.size for file in wanted)
    stopped = threading.Event()
    with (
        room(place.repository, moved, out),
        room(place.repository, missing, folder),
        tqdm(total=missing, desc=place.repository, unit="B", unit_scale=True) as progress,
        ThreadPoolExecutor(CONNECTIONS) as pool,
    ):
        transfer = _Transfer(place, out, progress, stopped)
        futures = [pool.submit(transfer.get, file, part) for file, part in zip(wanted, parts, strict=True)]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stopped.set()  # a failure, or Ctrl-C: the other connections end with their next bytes
            pool.shutdown(wait=False, cancel_futures=True)
        for future in futures:
            if future in done:
                future.result()
    files.remove(folder)


@contextlib.contextmanager
def room(name: str, needed: int, folder: Path) -> Iterator[None]:
    """Refuse to begin without `needed` free bytes on the disk of `folder`; refuse too if the disk fills on the way.

    Raises:
        Refused: the message names what is needed, what is free, and what to do.
    """
    if needed > shutil.disk_usage(folder).free:
        raise _full(name, needed, folder)
    try:
        yield
    except OSError as error:
        if not files.is_full(error):
            raise
        raise _full(name, needed, folder) from None


def patiently(
    request: Callable[[], Result],
    place: Place,
    pause: Callable[[float], object] = time.sleep,
    arrived: Callable[[], int] = lambda: 0,
) -> Result:
    """Make a request, again where the failure may pass, and return its answer.

    Args:
        request: what to do.
        place: where the request goes, for messages.
        pause: called with the number of seconds to wait.
        arrived: how many bytes have arrived; while they grow, broken connections do not count as failures.

    Raises:
        Refused: the failure stays, or is not of the kind that passes.
    """
    from aiohttp import ClientError
    from httpx2 import HTTPError

    attempt, before = 0, arrived()
    while True:
        try:
            return request()
        except (HTTPError, ClientError, OSError) as failure:
            # fsspec wraps what went wrong
            error = failure.__cause__ if isinstance(failure, FileNotFoundError) and failure.__cause__ else failure
            if isinstance(error, OSError) and error.errno and not isinstance(error, ClientError):
                raise  # the disk's trouble, not the network's
            if (now := arrived()) > before:
                attempt, before = 0, now
            status = http_status(error)
            if attempt == len(DELAYS_SECONDS) or not _passes(error, status):
                raise Refused(explanation(error, status, place)) from None
            delay = max(DELAYS_SECONDS[attempt], _asked_seconds(error))
            print(f"{place.repository}: {shortened(error, status)}; again in {delay:g} s")
            pause(delay)
            attempt += 1


@dataclass
class _Transfer:
    """What the connections of one download share."""

    place: Place
    out: Path
    progress: Any
    stopped: threading.Event

    def get(self, file: Stated, part: Path) -> None:
        """Download `file`, check its bytes against what is stated, and move it to its place.

        A file with wrong bytes is removed and downloaded again, once.
        """
        if file.cached and not part.exists():
            shutil.copyfile(file.cached, part)  # not a link: an edit here would reach the hub's cache
        for _ in range(2):
            patiently(lambda: self.stream(file, part), self.place, self.stopped.wait, lambda: _size(part))
            found = (_size(part), _hash(part, file.hash))
            if found == (file.size, file.hash):
                (self.out / file.name).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(part, self.out / file.name)
                return
            part.unlink()
        kind = {64: "bytes, SHA-256", 40: "bytes, git blob", 0: "bytes"}[len(file.hash)]
        raise Refused(
            f"{self.place.repository}: {file.name} from {self.place.where} is not what was stated ({kind}):\n"
            f"found {found} twice, wanted {(file.size, file.hash)}. "
            "It was removed; try again, or over another connection"
        )

    def stream(self, file: Stated, part: Path) -> None:
        """Download `part` up to its stated length.

        Continue where it stops, or begin again where the rest may be of another version of the file.
        """
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        self.go_on()
        have, version = _kept(file, part)
        if have == file.size and part.exists():
            return
        headers = build_hf_headers() if self.place.hub else {}
        headers |= {"Accept-Encoding": "identity"}  # what is compressed on the way could not be resumed
        headers |= {"Range": f"bytes={have}-"} if have else {}
        headers |= {"If-Range": version} if have and version else {}
        with get_session().stream("GET", file.address, headers=headers, timeout=SILENCE_SECONDS) as response:
            hf_raise_for_status(response)
            if response.status_code != 206:
                files.remove(part)
                files.write_text(_version(part), _validator(response.headers))
            elif not _continues(response.headers, have, version):
                files.remove(part)
                raise ConnectionError("the server has another file by now, and does not heed If-Range")
            with part.open("ab") as stream:
                for piece in response.iter_bytes():
                    self.go_on()
                    self.progress.update(stream.write(piece))

    def go_on(self) -> None:
        """End this connection if another one has failed."""
        if self.stopped.is_set():
            raise CancelledError


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _version(part: Path) -> Path:
    """Return the path of the note that says which version of a file a part belongs to."""
    return part.with_name(f"{part.name}.version")


def _kept(file: Stated, part: Path) -> tuple[int, str]:
    """Return how many bytes can be kept, and of which version; 0 where nothing could tell two versions apart."""
    have = _size(part)
    version = _version(part).read_text(encoding="utf-8") if _version(part).exists() else ""
    return (have, version) if have <= file.size and (file.hash or version) else (0, "")


def _validator(headers: Mapping[str, str]) -> str:
    """Return a mark that no other version of the file has, for `If-Range` (RFC 9110, 8.8).

    It is a strong ETag or a date that is old enough, and "" where the server sends neither.
    """
    if (tag := headers.get("ETag", "")).startswith('"'):
        return tag
    changed, now = headers.get("Last-Modified", ""), headers.get("Date", "")
    with contextlib.suppress(ValueError, TypeError):  # no dates
        if (parsedate_to_datetime(now) - parsedate_to_datetime(changed)).total_seconds() >= SETTLED_SECONDS:
            return changed
    return ""


def _continues(headers: Mapping[str, str], have: int, version: str) -> bool:
    """Return whether a partial answer begins where a part stops, and states no other version."""
    stated = headers.get("ETag" if version.startswith('"') else "Last-Modified")
    return headers.get("Content-Range", "").startswith(f"bytes {have}-") and (not version or stated in (None, version))


def _hash(path: Path, like: str) -> str:
    """Compute the file's SHA-256 or git blob id, whichever `like` is; return "" for neither."""
    if len(like) != 40:
        return files.sha256(path) if like else ""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _full(name: str, needed: int, folder: Path) -> Refused:
    return Refused(
        f"{files.full(name, f'{needed:,}', folder)};\n"
        "or move the DVC cache, and with it the downloads, to a larger disk: dvc cache dir <folder>.\n"
        "What a download has so far is kept, and the next run goes on from there"
    )


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status of an error of httpx or aiohttp, or None where it has none."""
    return getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)


def _passes(error: BaseException, status: int | None) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, FileNotFoundError | OfflineModeIsEnabled):
        return False
    return status in (None, 408, 429) or status >= 500


def _asked_seconds(error: BaseException) -> float:
    """Return how many seconds a server asks to wait, by `RateLimit` or `Retry-After`; 0 where it does not."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    headers = getattr(getattr(error, "response", error), "headers", None) or {}
    limit = parse_ratelimit_headers(headers)
    after = headers.get("Retry-After", "")
    seconds = limit.reset_in_seconds if limit and limit.remaining == 0 else int(after) if after.isdigit() else 0
    return min(seconds, LONGEST_WAIT_SECONDS)


def shortened(error: BaseException, status: int | None) -> str:
    """Return the HTTP status or the kind of an error.

    The error's own text is left out: a header or an address in it may hold a token.
    """
    return type(error).__name__ if status is None else f"HTTP {status}"


def explanation(error: BaseException, status: int | None, place: Place) -> str:
    """Say what a failed request means, and what to do."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import OfflineModeIsEnabled

    where = place.where
    instead = "or set `source` to the absolute path of a mirror folder"
    if isinstance(error, OfflineModeIsEnabled):
        text = f"HF_HUB_OFFLINE keeps this process off the network. Unset it, {instead}"
    elif status in (401, 403) and place.hub:
        token = "the token in use has no access to it" if get_token() else "HF_TOKEN is not set"
        text = (
            f"{where} refuses access (HTTP {status}): it is gated, private or misspelt, and {token}.\n"
            f"Accept its terms on that page and set HF_TOKEN to a token of that account, {instead}"
        )
    elif isinstance(error, FileNotFoundError):
        text = f"{where}: there is nothing there, or it does not list its folders as pages. Correct `source`, {instead}"
    elif status == 404:
        text = f"{where} does not have it at revision {place.revision}. Correct the pin, {instead}"
    elif status in (401, 403):
        text = f"{where} refuses access (HTTP {status}). Open it to this machine, {instead}"
    else:
        text = f"{where} could not be reached ({shortened(error, status)}). Try again when the network is up, {instead}"
    return f"{place.repository}: {text}"

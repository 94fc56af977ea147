"""A server that speaks the hub's protocol on a real socket, GitHub's for single files, and a static mirror's.

It has what a `Hub` says, does to a request what `meets` says, and keeps a log of every request and of what it sent.
"""

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40
SMALL, LARGE = b'{"id": 1}\n' * 3, b"large" * 1000


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Meets:
    """What a request meets: a status, headers, other bytes; or a connection that breaks or waits after `cut` bytes.

    A failure that waits is told when the waiting ends; `after` is called when all is sent.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut: int | None = None
    wait: threading.Event | None = None
    after: Callable[[], None] = lambda: None


@dataclass
class Request:
    """One line of the log; `name` is a file's, or `api`, or `page` for a listing."""

    name: str
    host: str
    token: str | None
    range: str | None
    sent: int = 0


@dataclass
class Hub:
    """What the server has, and what it does."""

    stated: dict[str, bytes]
    lfs: set[str] = field(default_factory=set)
    repository: str = "owner/name"
    tags: list[str] = field(default_factory=list)
    token: str | None = None  # without it the repository is gated
    elsewhere: bool = False  # LFS files are served by another host, as the hub's are
    ranges: bool = True
    conditions: bool = True  # whether `If-Range` is heeded
    validators: tuple[str, ...] = ("ETag",)  # what tells two versions of a file apart: of `ETag`, `Last-Modified`
    changed: str = "Sat, 01 Aug 2020 10:00:00 GMT"  # when the files were, if that is told
    lengths: bool = True
    together: threading.Barrier | None = None  # every file waits until so many are asked for
    port: int = 0
    meets: dict[str, list[Meets]] = field(default_factory=lambda: defaultdict(list))
    log: list[Request] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked(self, name: str) -> list[Request]:
        return [request for request in self.log if request.name == name]

    def sibling(self, name: str) -> dict[str, Any]:
        content = self.stated[name]
        pointer = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
        sibling = {"rfilename": name, "size": len(content), "blobId": blob_id(content)}
        return sibling | ({"lfs": pointer} if name in self.lfs else {})


class Handler(BaseHTTPRequestHandler):
    """`/api/…` states what there is, `…/<file>` serves it, and a path that ends with a slash lists a folder."""

    hub: Hub

    def do_GET(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        name = "api" if "/revision/" in path else "page" if path.endswith("/") else "none"
        name = next((known for known in hub.stated if path.endswith(f"/{known}")), name)
        asked = Request(name, self.headers["Host"], self.headers["Authorization"], self.headers["Range"])
        if self.command == "GET" and name != "none":  # the hub's client looks around before it asks
            hub.log.append(asked)
            meets = hub.meets[name].pop(0) if hub.meets[name] else Meets()
        else:
            meets = Meets()
        if meets.status != 200:
            asked.sent = self.reply(meets.status, b"", meets)
        elif hub.token and name != "none" and asked.token != f"Bearer {hub.token}" and not self.is_elsewhere():
            meets.headers = {"X-Error-Code": "GatedRepo"}
            asked.sent = self.reply(403 if asked.token else 401, b"", meets)
        elif name == "api":
            siblings = [hub.sibling(file) for file in hub.stated]
            card = {"id": hub.repository, "sha": COMMIT, "siblings": siblings, "tags": hub.tags}
            asked.sent = self.reply(200, json.dumps(card).encode(), meets)
        elif name == "page" and f"/{hub.repository}/" in path:
            meets.headers = {"Content-Type": "text/html"}
            asked.sent = self.reply(200, self.page(path.partition(f"/{hub.repository}/")[2]).encode(), meets)
        elif name in hub.stated:
            self.serve(name, asked, meets)
        else:
            asked.sent = self.reply(404, b"", meets)

    do_HEAD = do_GET

    def is_elsewhere(self) -> bool:
        return self.headers["Host"].startswith("localhost")

    def page(self, folder: str) -> str:
        children = {
            head + slash
            for name in self.hub.stated
            if name.startswith(folder)
            for head, slash, _ in [name.removeprefix(folder).partition("/")]
        }
        return "".join(f'<a href="{child}">{child}</a>\n' for child in ["../", "?C=N;O=D", *sorted(children)])

    def serve(self, name: str, asked: Request, meets: Meets) -> None:
        hub = self.hub
        if hub.elsewhere and name in hub.lfs and not self.is_elsewhere():
            meets.headers = {"Location": f"http://localhost:{hub.port}/elsewhere/{name}"}
            self.reply(302, b"", meets)
            return
        if hub.together and self.command == "GET":
            hub.together.wait(timeout=10)
        content = hub.stated[name] if meets.body is None else meets.body
        told = {"ETag": f'"{blob_id(hub.stated[name])}"', "Last-Modified": hub.changed}
        told = {header: told[header] for header in hub.validators}
        meets.headers |= told
        condition = self.headers["If-Range"] if hub.conditions else None
        if asked.range and hub.ranges and condition in (None, *told.values()):
            start = int(asked.range.removeprefix("bytes=").removesuffix("-"))
            meets.headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            asked.sent = self.reply(206, content[start:], meets)
        else:
            asked.sent = self.reply(200, content, meets)

    def reply(self, status: int, body: bytes, meets: Meets) -> int:
        failing = status >= 400
        if meets.wait and failing:
            meets.wait.wait(timeout=30)
        self.send_response(status)
        for name, value in meets.headers.items():
            self.send_header(name, value)
        if self.hub.lengths:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = 0
        if self.command == "GET":
            sent = self.wfile.write(body[: meets.cut])
            self.wfile.flush()
        if meets.wait and not failing:
            meets.wait.wait(timeout=30)
        meets.after()
        return sent

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` on a free port of this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Handler,), {"hub": hub})) as server:
        server.daemon_threads = True
        hub.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield hub
        server.shutdown()

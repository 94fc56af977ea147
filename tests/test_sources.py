"""Pinned repositories on disk: the mirror's layout, what is refused, the hub's protocol spoken by a local server."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alignment import files, sources
from alignment.command import Refused
from alignment.pins import Repository

PINNED = Repository("owner/name", "a" * 40, ("data/*.jsonl",), "MIT", ignore=("*/skip*",))


def mirror(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"the content of {name}\n")
    return root


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# a mirror, the miniature


def test_a_mirror_gives_the_files_at_their_paths_and_their_provenance(tmp_path: Path) -> None:
    root = mirror(tmp_path / "mirror", "owner/name/data/a.jsonl", "owner/name/data/skip.jsonl", "owner/name/README.md")
    sources.fetch(PINNED, str(root), tmp_path / "out")
    content = b"the content of owner/name/data/a.jsonl\n"
    assert names(tmp_path / "out") == ["data/a.jsonl", "provenance.json"]
    assert (tmp_path / "out/data/a.jsonl").read_bytes() == content
    assert files.read_json(tmp_path / "out/provenance.json") == {
        "repository": "owner/name",
        "revision": "a" * 40,
        "source": "mirror",
        "licence": "MIT",
        "files": {"data/a.jsonl": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}},
    }


def test_the_bytes_do_not_depend_on_where_the_mirror_lies(tmp_path: Path) -> None:
    for place in ("one", "other/two"):
        root = mirror(tmp_path / place, "owner/name/data/b.jsonl", "owner/name/data/a.jsonl")
        sources.fetch(PINNED, str(root), tmp_path / place / "out")
    assert files.tree_sha256(tmp_path / "one/out") == files.tree_sha256(tmp_path / "other/two/out")


def test_the_miniature_is_read_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror(tmp_path / "data/mini", "owner/name/data/a.jsonl")
    monkeypatch.chdir(tmp_path)
    sources.fetch(PINNED, "mini", Path("out"))
    assert files.read_json(Path("out/provenance.json"))["source"] == "mini"


def test_an_older_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    root = mirror(tmp_path / "mirror", "owner/name/data/a.jsonl")
    mirror(tmp_path / "out", "data/stale.jsonl")
    sources.fetch(PINNED, str(root), tmp_path / "out")
    assert names(tmp_path / "out") == ["data/a.jsonl", "provenance.json"]


def test_an_optional_pattern_may_match_nothing(tmp_path: Path) -> None:
    root = mirror(tmp_path / "mirror", "owner/name/data/a.jsonl", "owner/name/LICENSE")
    sources.fetch(PINNED, str(root), tmp_path / "out", optional=("LICENSE", "NOTICE"))
    assert names(tmp_path / "out") == ["LICENSE", "data/a.jsonl", "provenance.json"]


def test_a_pattern_that_matches_nothing_says_what_is_there_and_leaves_nothing(tmp_path: Path) -> None:
    root = mirror(tmp_path / "mirror", *(f"owner/name/part-{number:02}.json" for number in range(23)))
    with pytest.raises(Refused) as refusal:
        sources.fetch(PINNED, str(root), tmp_path / "out")
    message = str(refusal.value)
    for part in ("owner/name", "'data/*.jsonl'", str(root), "part-00.json", "part-19.json and 3 more", "`source`"):
        assert part in message
    assert "part-20.json" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["mirror"]


def test_what_is_ignored_does_not_count_as_a_match(tmp_path: Path) -> None:
    root = mirror(tmp_path / "mirror", "owner/name/data/skip.jsonl")
    with pytest.raises(Refused, match=r"nothing matches 'data/\*.jsonl'"):
        sources.fetch(PINNED, str(root), tmp_path / "out")


def test_a_refusal_leaves_the_older_folder(tmp_path: Path) -> None:
    root = mirror(tmp_path / "mirror", "owner/name/other.txt")
    mirror(tmp_path / "out", "data/older.jsonl")
    with pytest.raises(Refused):
        sources.fetch(PINNED, str(root), tmp_path / "out")
    assert names(tmp_path / "out") == ["data/older.jsonl"]


def test_a_repository_that_the_mirror_lacks_is_named_with_those_it_has(tmp_path: Path) -> None:
    root = mirror(tmp_path / "mirror", "someone/else/a.jsonl")
    with pytest.raises(Refused) as refusal:
        sources.fetch(PINNED, str(root), tmp_path / "out")
    assert "owner/name" in str(refusal.value) and "someone/else" in str(refusal.value)


@pytest.mark.parametrize("source", ["there", "nowhere", "/nowhere/at/all", "Hub", ""])
def test_a_source_of_another_form_is_refused_with_the_three(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror(tmp_path / "there", "owner/name/data/a.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused) as refusal:
        sources.fetch(PINNED, source, tmp_path / "out")
    for part in (repr(source), "`hub`", "`mini`", "absolute path of a mirror folder"):
        assert part in str(refusal.value)


# a user's own file


def test_an_own_file_keeps_its_name_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"messages": []}\n')
    sources.fetch_own(tmp_path / "mine.jsonl", tmp_path / "out")
    assert (tmp_path / "out/mine.jsonl").read_text() == '{"messages": []}\n'
    provenance = files.read_json(tmp_path / "out/provenance.json")
    assert provenance["licence"] == "the user's own" and list(provenance["files"]) == ["mine.jsonl"]
    assert str(tmp_path) not in json.dumps(provenance)


@pytest.mark.parametrize(("name", "way_out"), [("gone.jsonl", "absolute path"), ("mine.csv", "wanted a .jsonl")])
def test_an_own_file_that_cannot_be_used_is_refused(name: str, way_out: str, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").touch()
    with pytest.raises(Refused, match=way_out) as refusal:
        sources.fetch_own(tmp_path / name, tmp_path / "out")
    assert name in str(refusal.value) and not (tmp_path / "out").exists()


# the hub and GitHub

COMMIT = "c" * 40
TOKEN = "hf_notarealtokenbutasecret"
SMALL, LARGE = b'{"id": 1}\n' * 3, b"large" * 1000


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Hub:
    """What the server has and does; `answers` are what a request meets before it is served: a status or other bytes."""

    stated: dict[str, bytes]
    lfs: set[str]
    endpoint: str = ""
    answers: dict[tuple[str, str], list[int | bytes]] = field(default_factory=lambda: defaultdict(list))
    error_code: str = ""
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    tokens: set[str | None] = field(default_factory=set)

    def sibling(self, name: str) -> dict[str, Any]:
        content = self.stated[name]
        pointer = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
        sibling = {"rfilename": name, "size": len(content), "blobId": blob_id(content)}
        return sibling | ({"lfs": pointer} if name in self.lfs else {})


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = next((name for name in self.hub.stated if path.endswith(f"/{name}")), "api")
        if name == "api" and "/revision/" not in path:
            self.reply(404, b"", {})  # the client looks around before it asks
            return
        self.hub.requests[self.command, name] += 1
        self.hub.tokens.add(self.headers["Authorization"])
        answers = self.hub.answers[self.command, name]
        answer = answers.pop(0) if answers else 200
        if isinstance(answer, int) and answer != 200:
            self.reply(answer, b"", {"X-Error-Code": self.hub.error_code})
        elif name == "api":
            siblings = [self.hub.sibling(name) for name in self.hub.stated]
            self.reply(200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode(), {})
        else:
            content = self.hub.stated[name]
            etag = hashlib.sha256(content).hexdigest() if name in self.hub.lfs else blob_id(content)
            head = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            self.reply(200, answer if isinstance(answer, bytes) else content, head)

    do_HEAD = do_GET

    def reply(self, status: int, body: bytes, head: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (head | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub({"data/small.jsonl": SMALL, "data/large.jsonl": LARGE, "README.md": b"hello\n"}, {"data/large.jsonl"})
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Handler,), {"hub": state})) as server:
        state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield state
        server.shutdown()


FETCH = """
import sys
from pathlib import Path
from alignment import sources
from alignment.command import Refused
from alignment.pins import Repository

sources.DELAYS_SECONDS = (0.01, 0.01)
sources.GITHUB = sys.argv[1]
host, out = sys.argv[2:4]
names = ("data/small.jsonl",) if host == "github" else ("data/*.jsonl",)
try:
    sources.fetch(Repository("owner/name", "v1", names, "MIT", host=host), "hub", Path(out))
except Refused as refusal:
    sys.exit(f"REFUSED {refusal}")
"""


def fetch(hub: Hub, tmp_path: Path, host: str = "dataset", **environment: str) -> subprocess.CompletedProcess[str]:
    """Fetch in another process: the hub's client reads its settings when it is imported."""
    dropped = ("HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    ended = subprocess.run(
        [sys.executable, "-c", FETCH, hub.endpoint, host, str(tmp_path / "out")],
        env=kept | settings | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert TOKEN not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    assert (ended.returncode == 0) == (tmp_path / "out").exists()
    return ended


def test_the_hub_gives_the_files_and_its_resolved_commit(hub: Hub, tmp_path: Path) -> None:
    assert fetch(hub, tmp_path).returncode == 0
    assert names(tmp_path / "out") == ["data/large.jsonl", "data/small.jsonl", "provenance.json"]
    assert (tmp_path / "out/data/small.jsonl").read_bytes() == SMALL
    assert (tmp_path / "out/data/large.jsonl").read_bytes() == LARGE
    provenance = files.read_json(tmp_path / "out/provenance.json")
    assert (provenance["revision"], provenance["source"]) == (COMMIT, "hub")
    assert hub.tokens == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("name", ["data/small.jsonl", "data/large.jsonl"])
def test_a_wrong_byte_is_got_again_and_then_refused(name: str, hub: Hub, tmp_path: Path) -> None:
    wrong = hub.stated[name][:-1] + b"X"
    hub.answers["GET", name] = [wrong, wrong]
    refused = fetch(hub, tmp_path).stderr
    for part in ("REFUSED owner/name", name, "SHA-256" if name in hub.lfs else blob_id(wrong), "try again"):
        assert part in refused
    assert hub.requests["GET", name] == 2
    assert fetch(hub, tmp_path).returncode == 0, "the wrong file must not stay in the cache"
    assert (tmp_path / "out" / name).read_bytes() == hub.stated[name]


def test_one_wrong_byte_heals(hub: Hub, tmp_path: Path) -> None:
    hub.answers["GET", "data/small.jsonl"] = [SMALL[:-1] + b"X"]
    assert fetch(hub, tmp_path).returncode == 0
    assert (tmp_path / "out/data/small.jsonl").read_bytes() == SMALL


def test_failures_that_pass_are_waited_out(hub: Hub, tmp_path: Path) -> None:
    hub.answers["GET", "api"] = [500, 429]
    hub.answers["HEAD", "data/small.jsonl"] = [503]
    hub.answers["GET", "data/small.jsonl"] = [500]
    ended = fetch(hub, tmp_path)
    assert ended.returncode == 0
    assert "owner/name: HTTP 500; again in 0.01 s" in ended.stdout


def test_a_failure_that_stays_is_refused_with_the_ways_out(hub: Hub, tmp_path: Path) -> None:
    hub.answers["GET", "api"] = [503] * 9
    refused = fetch(hub, tmp_path).stderr
    for part in ("REFUSED owner/name", "HTTP 503", "Try again", "mirror folder"):
        assert part in refused
    assert hub.requests["GET", "api"] == 3


@pytest.mark.parametrize(("method", "name", "status"), [("GET", "api", 401), ("HEAD", "data/large.jsonl", 403)])
def test_a_gated_repository_names_its_page_and_the_token(
    method: str, name: str, status: int, hub: Hub, tmp_path: Path
) -> None:
    hub.error_code = "GatedRepo"
    hub.answers[method, name] = [status] * 9
    refused = fetch(hub, tmp_path).stderr
    for part in ("owner/name", f"{hub.endpoint}/datasets/owner/name", "HF_TOKEN", "gated", "mirror folder"):
        assert part in refused
    assert hub.requests[method, name] == 1, "asking again would not help"


def test_a_missing_revision_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.error_code = "RevisionNotFound"
    hub.answers["GET", "api"] = [404] * 9
    refused = fetch(hub, tmp_path).stderr
    assert "owner/name" in refused and "revision v1" in refused and "Correct the pin" in refused


def test_without_a_network_the_refusal_says_so(hub: Hub, tmp_path: Path) -> None:
    refused = fetch(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9").stderr
    assert "owner/name" in refused and "could not be reached" in refused and "mirror folder" in refused


def test_an_offline_setting_is_named(hub: Hub, tmp_path: Path) -> None:
    refused = fetch(hub, tmp_path, HF_HUB_OFFLINE="1").stderr
    assert "owner/name" in refused and "HF_HUB_OFFLINE" in refused and "Unset it" in refused


def test_github_gives_literal_names_and_sees_no_token(hub: Hub, tmp_path: Path) -> None:
    hub.answers["GET", "data/small.jsonl"] = [502]
    assert fetch(hub, tmp_path, "github").returncode == 0
    assert names(tmp_path / "out") == ["data/small.jsonl", "provenance.json"]
    assert (tmp_path / "out/data/small.jsonl").read_bytes() == SMALL
    assert hub.tokens == {None}


def test_github_without_the_file_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.answers["GET", "data/small.jsonl"] = [404]
    refused = fetch(hub, tmp_path, "github").stderr
    assert "owner/name" in refused and "GitHub" in refused and "revision v1" in refused

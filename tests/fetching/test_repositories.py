"""Pinned repositories on disk: the mirror's layout, what is refused, the hub's protocol spoken by a local server."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from hub import COMMIT, LARGE, SMALL, Hub, Meets, blob_id, serving

from alignment import corpora
from alignment.corpora import Repository
from alignment.fetching import download, pins, repositories
from alignment.runtime import Refused, files

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
    repositories.fetch(PINNED, str(root), tmp_path / "out")
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
        repositories.fetch(PINNED, str(root), tmp_path / place / "out")
    assert files.tree_sha256(tmp_path / "one/out") == files.tree_sha256(tmp_path / "other/two/out")


def test_the_miniature_is_read_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror(tmp_path / "data/mini", "owner/name/data/a.jsonl")
    monkeypatch.chdir(tmp_path)
    repositories.fetch(PINNED, "mini", Path("out"))
    assert files.read_json(Path("out/provenance.json"))["source"] == "mini"


def test_an_older_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    root = mirror(tmp_path / "mirror", "owner/name/data/a.jsonl")
    mirror(tmp_path / "out", "data/stale.jsonl")
    repositories.fetch(PINNED, str(root), tmp_path / "out")
    assert names(tmp_path / "out") == ["data/a.jsonl", "provenance.json"]


def test_an_optional_pattern_may_match_nothing(tmp_path: Path) -> None:
    root = mirror(tmp_path / "mirror", "owner/name/data/a.jsonl", "owner/name/LICENSE")
    repositories.fetch(PINNED, str(root), tmp_path / "out", optional=("LICENSE", "NOTICE"))
    assert names(tmp_path / "out") == ["LICENSE", "data/a.jsonl", "provenance.json"]


def test_a_pattern_that_matches_nothing_says_what_is_there_and_leaves_nothing(tmp_path: Path) -> None:
    root = mirror(tmp_path / "mirror", *(f"owner/name/part-{number:02}.json" for number in range(23)))
    with pytest.raises(Refused) as refusal:
        repositories.fetch(PINNED, str(root), tmp_path / "out")
    message = str(refusal.value)
    for part in ("owner/name", "'data/*.jsonl'", str(root), "part-00.json", "part-19.json and 3 more", "`source`"):
        assert part in message
    assert "part-20.json" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["mirror"]


def test_what_is_ignored_does_not_count_as_a_match(tmp_path: Path) -> None:
    root = mirror(tmp_path / "mirror", "owner/name/data/skip.jsonl")
    with pytest.raises(Refused, match=r"nothing matches 'data/\*.jsonl'"):
        repositories.fetch(PINNED, str(root), tmp_path / "out")


def test_a_refusal_leaves_the_older_folder(tmp_path: Path) -> None:
    root = mirror(tmp_path / "mirror", "owner/name/other.txt")
    mirror(tmp_path / "out", "data/older.jsonl")
    with pytest.raises(Refused):
        repositories.fetch(PINNED, str(root), tmp_path / "out")
    assert names(tmp_path / "out") == ["data/older.jsonl"]


def test_a_repository_that_the_mirror_lacks_is_named_with_those_it_has(tmp_path: Path) -> None:
    root = mirror(tmp_path / "mirror", "someone/else/a.jsonl")
    with pytest.raises(Refused) as refusal:
        repositories.fetch(PINNED, str(root), tmp_path / "out")
    assert "owner/name" in str(refusal.value) and "someone/else" in str(refusal.value)


@pytest.mark.parametrize("source", ["there", "nowhere", "/nowhere/at/all", "Hub", ""])
def test_a_source_of_another_form_is_refused_with_those_known(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror(tmp_path / "there", "owner/name/data/a.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused) as refusal:
        repositories.fetch(PINNED, source, tmp_path / "out")
    for part in (repr(source), "`hub`", "`mini`", "absolute path of a mirror folder", "http(s) address"):
        assert part in str(refusal.value)


SECRETS = (
    "https://me:secret@example.org/m",
    "HTTP://me:secret@example.org/m",
    "http://:secret@example.org",
    "http://secret@example.org/m",
    "https://example.org/m?key=secret",
    "https://example.org/m#token=secret",
    "ftp://me:secret@example.org",
    "//me:secret@example.org/m",
    "http:/me:secret@example.org/m",
    "me:secret@example.org",
    f"https://example.org/m?token=secret{'0' * 300}",
)


@pytest.mark.parametrize("source", SECRETS)
def test_an_address_with_a_secret_is_refused_and_not_repeated(source: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"dvc\.lock") as refusal:
        repositories.fetch(PINNED, source, tmp_path / "out")
    assert "secret" not in str(refusal.value) and "example" not in str(refusal.value)


@pytest.mark.parametrize(
    "words",
    [
        ["model", "random:2x64", "out"],
        ["corpus", "own", "out", "--own", "mine.jsonl"],
        ["safety", "own", "out", "--own", "mine.json"],
    ],
)
def test_a_secret_is_refused_where_nothing_is_asked_for(words: list[str], tmp_path: Path) -> None:
    """DVC records a command that succeeds, whether or not it used its `source`."""
    command = [sys.executable, "-m", "stages.fetch", *words, "--downloads=downloads", f"--source={SECRETS[1]}"]
    settings = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "dvc.lock" in ended.stderr and "Traceback" not in ended.stderr
    assert "secret" not in ended.stdout + ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mirror#2", "me@home", "what?"])
def test_a_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    root = mirror(tmp_path / name, "owner/name/data/a.jsonl")
    repositories.fetch(PINNED, str(root), tmp_path / "out")
    assert names(tmp_path / "out") == ["data/a.jsonl", "provenance.json"]


def test_terms_are_said_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = mirror(tmp_path / "mirror", "owner/name/data/a.jsonl")
    limited = Repository("owner/name", "a" * 40, ("data/*",), "CC-BY-NC-4.0", terms="not for sale")
    repositories.fetch(limited, str(root), tmp_path / "out")
    assert capsys.readouterr().out == "owner/name: not for sale\n"
    assert files.read_json(tmp_path / "out/provenance.json")["terms"] == "not for sale"


def test_every_pinned_repository_names_its_licence_and_restricted_ones_their_terms() -> None:
    pinned = [*pins.BENCHMARKS.values(), pins.SAFETY]
    pinned += [source for name in corpora.names() if (source := corpora.load(name).SOURCE)]
    for repository in pinned:
        assert repository.licence.strip(), repository.name
        assert repository.terms or "NC" not in repository.licence, repository.name
        if repository.host == "github":
            assert set(repository.stated) == set(repository.files), repository.name


def test_the_safety_sentences_pin_is_the_file_of_that_commit(request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue("mirror") / pins.SAFETY.name / "data/toxiGen.json"
    assert pins.SAFETY.stated["data/toxiGen.json"] == (path.stat().st_size, files.sha256(path))


# a user's own file


def test_an_own_file_keeps_its_name_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"messages": []}\n')
    repositories.fetch_own(tmp_path / "mine.jsonl", tmp_path / "out")
    assert (tmp_path / "out/mine.jsonl").read_text() == '{"messages": []}\n'
    provenance = files.read_json(tmp_path / "out/provenance.json")
    assert provenance["licence"] == "the user's own" and list(provenance["files"]) == ["mine.jsonl"]
    assert str(tmp_path) not in json.dumps(provenance)


@pytest.mark.parametrize(("name", "way_out"), [("gone.jsonl", "absolute path"), ("mine.csv", "wanted a .jsonl")])
def test_an_own_file_that_cannot_be_used_is_refused(name: str, way_out: str, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").touch()
    with pytest.raises(Refused, match=way_out) as refusal:
        repositories.fetch_own(tmp_path / name, tmp_path / "out")
    assert name in str(refusal.value) and not (tmp_path / "out").exists()


def test_own_sentences_are_json(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("[]")
    repositories.fetch_own(tmp_path / "mine.json", tmp_path / "out", (".json",))
    assert (tmp_path / "out/mine.json").read_text() == "[]"
    with pytest.raises(Refused, match=r"found .jsonl, wanted a .json file"):
        repositories.fetch_own(tmp_path / "mine.jsonl", tmp_path / "out", (".json",))


# the hub, GitHub, a mirror behind an address

TOKEN = "hf_notarealtokenbutasecret"
WANTED = {"data/large.jsonl": LARGE, "data/small.jsonl": SMALL}
FETCH = """
import sys
from pathlib import Path
from alignment.corpora import UNSTATED, Repository
from alignment.fetching import download, repositories
from alignment.runtime import Refused

download.DELAYS_SECONDS = (0.01, 0.01)
folder, out, revision, pattern = Path(sys.argv[1]), *sys.argv[2:]
try:
    wanted = Repository("owner/name", revision, (pattern,), UNSTATED)
    repositories.fetch(wanted, "hub", folder / out, downloads=folder / "downloads")
except Refused as refusal:
    sys.exit(f"REFUSED {refusal}")
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub({**WANTED, "README.md": b"hello\n"}, {"data/large.jsonl"})) as state:
        yield state


def begin(
    hub: Hub, folder: Path, out: str = "out", revision: str = COMMIT, pattern: str = "data/*", **environment: str
) -> subprocess.Popen[str]:
    """Fetch in another process: the hub's client reads its settings when it is imported."""
    dropped = {"hf_hub_offline", "http_proxy", "https_proxy", "all_proxy"}
    kept = {name: value for name, value in os.environ.items() if name.lower() not in dropped}
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "home"), "HF_TOKEN": TOKEN}
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(folder), out, revision, pattern],
        env=kept | settings | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], folder: Path, out: str = "out") -> tuple[str, str]:
    """What it printed, and its refusal or ""; a token is nowhere, and nothing partial where a stage would read it."""
    printed, error = process.communicate(timeout=60)
    assert "Traceback" not in error, error
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in text for text in [printed.encode(), error.encode(), *written])
    assert (process.returncode == 0) == (folder / out).exists()
    assert not (folder / f".{out}.partial").exists()
    return printed, error.partition("REFUSED ")[2]


def fetch(hub: Hub, folder: Path, **settings: str) -> tuple[str, str]:
    return end(begin(hub, folder, **settings), folder)


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder) if name != "provenance.json"}


def arrived(folder: Path) -> int:
    """How much of the largest file a download has so far."""
    return max((path.stat().st_size for path in (folder / "downloads/owner--name").glob("*")), default=0)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_hub_gives_the_files_and_its_resolved_commit(hub: Hub, tmp_path: Path) -> None:
    process = begin(hub, tmp_path)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0 and "owner/name: 100%" in error, "there is progress"
    assert content(tmp_path / "out") == WANTED
    provenance = files.read_json(tmp_path / "out/provenance.json")
    assert (provenance["revision"], provenance["source"]) == (COMMIT, "hub")
    held = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == LARGE]
    assert held == [tmp_path / "out/data/large.jsonl"], "the disk holds it once"


def test_a_full_commit_is_pinned_and_a_branch_says_how_to_pin_it(hub: Hub, tmp_path: Path) -> None:
    assert fetch(hub, tmp_path) == ("", "")
    printed, _ = fetch(hub, tmp_path, revision="main")
    assert "owner/name: the revision main is no full commit" in printed
    assert f"owner/name@{COMMIT}" in printed and "params.yaml" in printed
    assert files.read_json(tmp_path / "out/provenance.json")["revision"] == COMMIT


def test_the_licence_is_read_from_the_hub_where_no_pin_states_it(hub: Hub, tmp_path: Path) -> None:
    hub.tags = ["text", "license:cc-by-nc-4.0"]
    printed, _ = fetch(hub, tmp_path)
    assert printed == "owner/name: its licence, cc-by-nc-4.0, does not allow commercial use\n"
    provenance = files.read_json(tmp_path / "out/provenance.json")
    assert provenance["licence"] == "cc-by-nc-4.0" and "commercial" in provenance["terms"]


def test_files_are_downloaded_at_once_and_the_result_is_the_same(hub: Hub, tmp_path: Path) -> None:
    hub.stated |= {f"data/{number}.jsonl": b"%d\n" % number for number in range(6)}
    hub.together = threading.Barrier(2)  # breaks unless two requests are open together
    assert fetch(hub, tmp_path) == ("", "")
    before = files.tree_sha256(tmp_path / "out")
    hub.together = None
    assert fetch(hub, tmp_path) == ("", "")
    assert files.tree_sha256(tmp_path / "out") == before and len(content(tmp_path / "out")) == 8


def test_the_first_failure_stops_the_others_and_they_go_on_later(hub: Hub, tmp_path: Path) -> None:
    hanging, failing = threading.Event(), threading.Event()
    hub.stated["data/huge.jsonl"] = b"huge" * 500_000
    hub.meets["data/huge.jsonl"] = [Meets(cut=1_000_000, wait=hanging), Meets(403)]
    hub.meets["data/small.jsonl"] = [Meets(404, wait=failing)]
    process = begin(hub, tmp_path)
    until(lambda: hub.asked("data/small.jsonl") and arrived(tmp_path) > 900_000)
    failing.set()
    time.sleep(0.3)
    hanging.set()
    _, refused = end(process, tmp_path)
    assert refused.startswith("owner/name: the hub") and "does not have it" in refused
    assert len(hub.asked("data/huge.jsonl")) == 1, "it is not asked for again"
    hub.meets.clear()
    assert fetch(hub, tmp_path) == ("", "")
    assert hub.asked("data/huge.jsonl")[-1].sent <= 1_100_000
    assert content(tmp_path / "out")["data/huge.jsonl"] == b"huge" * 500_000


def test_a_connection_that_is_cut_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.meets["data/large.jsonl"] = [Meets(cut=2000), Meets(cut=1000), Meets(cut=500), Meets(cut=250)]
    printed, refused = fetch(hub, tmp_path)
    assert not refused and content(tmp_path / "out") == WANTED
    asked = hub.asked("data/large.jsonl")
    assert [request.range for request in asked] == [None, *(f"bytes={at}-" for at in (2000, 3000, 3500, 3750))]
    assert [request.sent for request in asked] == [2000, 1000, 500, 250, 1250], "only the rest travels"
    assert printed.count("owner/name: RemoteProtocolError; again in 0.01 s") == 4, "while bytes arrive, it goes on"


def test_a_server_that_cannot_resume_begins_again(hub: Hub, tmp_path: Path) -> None:
    hub.ranges = False
    hub.meets["data/large.jsonl"] = [Meets(cut=2000)]
    assert fetch(hub, tmp_path)[1] == ""
    assert [request.sent for request in hub.asked("data/large.jsonl")] == [2000, 5000]
    assert content(tmp_path / "out") == WANTED


def test_a_killed_download_goes_on_in_the_next_run(hub: Hub, tmp_path: Path) -> None:
    released = threading.Event()
    hub.stated["data/huge.jsonl"] = b"huge" * 500_000
    hub.meets["data/huge.jsonl"] = [Meets(cut=1_000_000, wait=released)]
    process = begin(hub, tmp_path)
    until(lambda: arrived(tmp_path) > 900_000)
    process.kill()
    process.communicate()
    released.set()
    assert not (tmp_path / "out").exists(), "nothing where a stage would read it"
    rest = 2_000_000 - arrived(tmp_path)
    assert fetch(hub, tmp_path) == ("", "")
    assert hub.asked("data/huge.jsonl")[-1].sent == rest <= 1_100_000
    assert content(tmp_path / "out") == {**WANTED, "data/huge.jsonl": b"huge" * 500_000}
    assert not list(tmp_path.glob(".*.partial"))


def test_two_fetches_at_once_both_end_whole(hub: Hub, tmp_path: Path) -> None:
    hanging = threading.Event()
    hub.meets["data/large.jsonl"] = [Meets(cut=2000, wait=hanging)]
    processes = {out: begin(hub, tmp_path, out) for out in ("one", "two")}
    processes["other"] = begin(hub, tmp_path, "other", pattern="README.md")
    until(lambda: len(hub.asked("api")) == 3 and hub.asked("data/large.jsonl"))
    time.sleep(0.5)
    hanging.set()
    ended = [end(process, tmp_path, out) for out, process in processes.items()]
    assert [refused for _, refused in ended] == ["", "", ""]
    assert any("waiting: another process" in printed for printed, _ in ended)
    assert content(tmp_path / "one") == content(tmp_path / "two") == WANTED
    assert content(tmp_path / "other") == {"README.md": b"hello\n"}


def test_what_the_hubs_own_cache_has_is_checked_and_not_downloaded(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "home/hub/datasets--owner--name/snapshots" / COMMIT
    mirror(cache, "data/small.jsonl")
    (cache / "data/large.jsonl").write_bytes(LARGE)
    assert fetch(hub, tmp_path)[1] == ""
    assert content(tmp_path / "out") == WANTED, "the cached small.jsonl is a wrong one"
    assert (len(hub.asked("data/large.jsonl")), len(hub.asked("data/small.jsonl"))) == (0, 1)


@pytest.mark.parametrize("name", ["data/small.jsonl", "data/large.jsonl"])
def test_a_wrong_byte_is_got_again_and_then_refused(name: str, hub: Hub, tmp_path: Path) -> None:
    wrong = hub.stated[name][:-1] + b"X"
    hub.meets[name] = [Meets(body=wrong), Meets(body=wrong)]
    _, refused = fetch(hub, tmp_path)
    for part in ("owner/name", name, "SHA-256" if name in hub.lfs else blob_id(wrong), "It was removed; try again"):
        assert part in refused
    assert len(hub.asked(name)) == 2
    hub.meets[name] = [Meets(body=wrong)]
    assert fetch(hub, tmp_path) == ("", ""), "the wrong file is not kept, and one wrong answer heals"
    assert content(tmp_path / "out") == WANTED


def test_a_file_cut_at_a_lines_end_is_refused(hub: Hub, tmp_path: Path) -> None:
    """No parser can see it: it would be a dataset of fewer rows. What the hub states of the file tells."""
    hub.meets["data/small.jsonl"] = [Meets(body=SMALL[: SMALL.rindex(b"{")])] * 2
    _, refused = fetch(hub, tmp_path)
    assert "data/small.jsonl from the hub" in refused and "is not what was stated" in refused
    assert not (tmp_path / "out").exists()


def test_failures_that_pass_are_waited_out(hub: Hub, tmp_path: Path) -> None:
    hub.meets["api"] = [Meets(500), Meets(429)]
    hub.meets["data/small.jsonl"] = [Meets(503), Meets(502)]
    printed, refused = fetch(hub, tmp_path)
    assert not refused and content(tmp_path / "out") == WANTED
    for status in (500, 429, 503, 502):
        assert f"owner/name: HTTP {status}; again in 0.01 s" in printed


@pytest.mark.parametrize("headers", [{"Retry-After": "1"}, {"RateLimit": '"api";r=0;t=1'}])
def test_a_server_that_asks_for_time_gets_it(headers: dict[str, str], hub: Hub, tmp_path: Path) -> None:
    hub.meets["data/small.jsonl"] = [Meets(429, headers)]
    printed, refused = fetch(hub, tmp_path)
    assert not refused and printed == "owner/name: HTTP 429; again in 1 s\n"


@pytest.mark.parametrize("name", ["api", "data/small.jsonl"])
def test_a_failure_that_stays_is_refused_with_the_ways_out(name: str, hub: Hub, tmp_path: Path) -> None:
    hub.meets[name] = [Meets(503)] * 9
    _, refused = fetch(hub, tmp_path)
    for part in ("owner/name", "HTTP 503", "Try again", "mirror folder"):
        assert part in refused
    assert len(hub.asked(name)) == 3


def test_a_gated_repository_opens_for_its_token_which_goes_nowhere_else(hub: Hub, tmp_path: Path) -> None:
    hub.token, hub.elsewhere = TOKEN, True
    assert fetch(hub, tmp_path) == ("", "")
    assert content(tmp_path / "out") == WANTED
    away = [request for request in hub.log if request.host.startswith("localhost")]
    assert [(request.name, request.token) for request in away] == [("data/large.jsonl", None)]


@pytest.mark.parametrize(("token", "said"), [("", "HF_TOKEN is not set"), (TOKEN, "the token in use has no access")])
def test_a_gated_repository_names_its_page_and_the_token(token: str, said: str, hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_thetokenofanotheraccount"
    _, refused = fetch(hub, tmp_path, HF_TOKEN=token)
    for part in ("owner/name", f"({hub.endpoint}/datasets/owner/name)", "set HF_TOKEN", "gated", "mirror folder", said):
        assert part in refused
    assert len(hub.log) == 1, "asking again would not help"


@pytest.mark.parametrize("status", [400, 401, 403, 500])
def test_a_server_that_repeats_the_token_is_not_repeated(status: int, hub: Hub, tmp_path: Path) -> None:
    """In a header that the hub's client puts into its errors, or in an address; `end` looks for it everywhere."""
    said = f"Bearer {TOKEN} may not"
    hub.meets["api"] = [Meets(status, {"X-Error-Message": said, "X-Request-Id": TOKEN})] * 9
    _, refused = fetch(hub, tmp_path)
    assert "owner/name" in refused
    hub.meets["api"] = []
    hub.meets["data/small.jsonl"] = [Meets(status, {"X-Error-Message": said, "Location": f"/?token={TOKEN}"})] * 9
    _, refused = fetch(hub, tmp_path)
    assert "owner/name" in refused


def test_a_missing_revision_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.meets["api"] = [Meets(404, {"X-Error-Code": "RevisionNotFound"})]
    _, refused = fetch(hub, tmp_path, revision="v1")
    assert "owner/name" in refused and "revision v1" in refused and "Correct the pin" in refused


def test_a_pattern_that_matches_nothing_lists_what_the_hub_has(hub: Hub, tmp_path: Path) -> None:
    _, refused = fetch(hub, tmp_path, pattern="data/*.parquet")
    for part in ("'data/*.parquet'", "the hub", "README.md, data/large.jsonl, data/small.jsonl", COMMIT):
        assert part in refused


def test_a_name_that_leads_out_of_the_repository_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.stated["data/../../escaped"] = SMALL
    _, refused = fetch(hub, tmp_path)
    assert "'data/../../escaped'" in refused and not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [("HF_ENDPOINT", "http://127.0.0.1:9", "could not be reached"), ("HF_HUB_OFFLINE", "1", "Unset it")],
)
def test_without_a_network_the_refusal_says_so(setting: str, value: str, said: str, hub: Hub, tmp_path: Path) -> None:
    _, refused = fetch(hub, tmp_path, **{setting: value})
    assert "owner/name" in refused and said in refused and "mirror folder" in refused


@pytest.mark.parametrize("name", ["/etc/a.jsonl", "../a.jsonl", "data/../../a.jsonl"])
def test_a_name_is_refused_whatever_place_states_it(name: str) -> None:
    wanted = Repository("owner/name", "v1", ("*.jsonl",), "MIT")
    with pytest.raises(Refused, match="leads out of the repository"):
        repositories.choose(["data/b.jsonl", name], wanted, (), "anywhere")


@pytest.mark.parametrize("link", ["owner/name/data/a.jsonl", "owner/name/data", "owner/name", "owner"])
def test_no_link_in_a_mirror_leads_out_of_it(link: str, tmp_path: Path) -> None:
    mirror(tmp_path / "secret", "owner/name/data/a.jsonl")
    (tmp_path / "mirror" / link).parent.mkdir(parents=True)
    (tmp_path / "mirror" / link).symlink_to(tmp_path / "secret" / link)
    # A folder behind a link inside a repository is not even looked into.
    with pytest.raises(Refused, match=r"is a link that leads out of the mirror|nothing matches"):
        repositories.fetch(PINNED, str(tmp_path / "mirror"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_within_a_mirror_is_copied_as_a_file(tmp_path: Path) -> None:
    mirror(tmp_path / "mirror", "kept/a.jsonl", "owner/name/data/b.jsonl")
    (tmp_path / "mirror/owner/name/data/a.jsonl").symlink_to("../../../kept/a.jsonl")
    repositories.fetch(PINNED, str(tmp_path / "mirror"), tmp_path / "out")
    assert names(tmp_path / "out") == ["data/a.jsonl", "data/b.jsonl", "provenance.json"]
    assert not (tmp_path / "out/data/a.jsonl").is_symlink()


# GitHub and a mirror's address: no setting of the hub's client matters, so this process fetches


@pytest.fixture
def near(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The same server, as GitHub and as a mirror."""
    monkeypatch.setattr(download, "DELAYS_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(repositories, "GITHUB", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def pinned_on_github(name: str = "data/large.jsonl", content: bytes = LARGE) -> Repository:
    stated = {name: (len(content), hashlib.sha256(content).hexdigest())}
    return Repository("owner/name", "v1", (name,), "MIT", host="github", stated=stated)


def test_github_is_held_to_the_pin_and_sees_no_token(near: Hub, tmp_path: Path) -> None:
    near.meets["data/large.jsonl"] = [Meets(502), Meets(cut=2000)]
    repositories.fetch(pinned_on_github(), "hub", tmp_path / "out", downloads=tmp_path / "downloads")
    assert content(tmp_path / "out") == {"data/large.jsonl": LARGE}
    assert {request.token for request in near.log} == {None}
    near.meets["data/large.jsonl"] = [Meets(body=LARGE[:-1] + b"X")] * 2
    with pytest.raises(Refused, match=r"data/large\.jsonl from GitHub .* is not what was stated"):
        repositories.fetch(pinned_on_github(), "hub", tmp_path / "other", downloads=tmp_path / "downloads")
    assert not (tmp_path / "other").exists()


def test_github_without_the_file_is_refused(near: Hub, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"owner/name: GitHub .* revision v1"):
        repositories.fetch(pinned_on_github("gone.json"), "hub", tmp_path / "out", downloads=tmp_path / "downloads")


def test_a_mirror_behind_an_address_gives_the_bytes_of_its_folder(near: Hub, tmp_path: Path) -> None:
    address = f"{near.endpoint}/mirror/".replace("http", "HTTP")
    repositories.fetch(PINNED, address, tmp_path / "out", downloads=tmp_path / "downloads")
    for name, text in near.stated.items():
        (tmp_path / "mirror/owner/name" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mirror/owner/name" / name).write_bytes(text)
    repositories.fetch(PINNED, str(tmp_path / "mirror"), tmp_path / "same")
    assert content(tmp_path / "out") == WANTED
    assert files.tree_sha256(tmp_path / "out") == files.tree_sha256(tmp_path / "same")
    assert {request.token for request in near.log} == {None}


def test_a_mirrors_file_that_is_cut_short_is_not_taken_as_whole(near: Hub, tmp_path: Path) -> None:
    near.meets["page"] = [Meets(503)]
    near.meets["data/large.jsonl"] = [Meets(cut=2000)]
    fetched = (PINNED, f"{near.endpoint}/mirror", tmp_path / "out")
    repositories.fetch(*fetched, downloads=tmp_path / "downloads")
    assert content(tmp_path / "out") == WANTED
    assert [request.range for request in near.asked("data/large.jsonl")] == [None, "bytes=2000-"]
    near.meets["data/large.jsonl"] = [Meets(body=LARGE[:2000])] * 2  # a server that takes the part for the whole
    near.ranges = False
    with pytest.raises(Refused, match=r"data/large\.jsonl from the mirror .* is not what was stated \(bytes\)"):
        repositories.fetch(*fetched[:2], tmp_path / "other", downloads=tmp_path / "downloads")
    assert not (tmp_path / "other").exists()


def test_a_mirrors_file_that_changed_is_not_joined_to_what_was_there(near: Hub, tmp_path: Path) -> None:
    fetched = (PINNED, f"{near.endpoint}/mirror", tmp_path / "out")
    near.meets["data/large.jsonl"] = [Meets(cut=2000), *[Meets(503)] * 3]
    with pytest.raises(Refused, match="HTTP 503"):
        repositories.fetch(*fetched, downloads=tmp_path / "downloads")
    assert arrived(tmp_path) == 2000
    near.stated["data/large.jsonl"] = LARGE[::-1]
    repositories.fetch(*fetched, downloads=tmp_path / "downloads")
    assert content(tmp_path / "out")["data/large.jsonl"] == LARGE[::-1]


LATER = "Sat, 01 Aug 2020 10:00:01 GMT"


@pytest.mark.parametrize(
    ("validators", "conditions"),
    [(("ETag",), True), (("ETag",), False), (("Last-Modified",), True), (("Last-Modified",), False), ((), True)],
)
def test_a_file_that_changes_between_two_attempts_is_not_spliced(
    validators: tuple[str, ...], conditions: bool, near: Hub, tmp_path: Path
) -> None:
    """It has the same size, and no hash is stated, so only what the server says of versions can tell."""
    near.validators, near.conditions = validators, conditions
    near.meets["data/large.jsonl"] = [Meets(cut=2000, after=lambda: change(near))]
    repositories.fetch(PINNED, f"{near.endpoint}/mirror", tmp_path / "out", downloads=tmp_path / "downloads")
    assert content(tmp_path / "out")["data/large.jsonl"] == LARGE[::-1]


def change(hub: Hub) -> None:
    hub.stated["data/large.jsonl"], hub.changed = LARGE[::-1], LATER


@pytest.mark.parametrize(
    ("validators", "changed", "range"),
    [
        (("ETag",), "", "bytes=2000-"),
        (("Last-Modified",), LATER, "bytes=2000-"),
        (("Last-Modified",), "", None),  # just now: it may change once more within that second
        ((), "", None),
    ],
)
def test_what_tells_no_version_apart_begins_anew(
    validators: tuple[str, ...], changed: str, range: str | None, near: Hub, tmp_path: Path
) -> None:
    near.validators, near.changed = validators, changed or formatdate(usegmt=True)
    near.meets["data/large.jsonl"] = [Meets(cut=2000)]
    repositories.fetch(PINNED, f"{near.endpoint}/mirror", tmp_path / "out", downloads=tmp_path / "downloads")
    assert content(tmp_path / "out") == WANTED
    assert [request.range for request in near.asked("data/large.jsonl")] == [None, range]


@pytest.mark.parametrize(
    ("pattern", "address", "said"),
    [
        ("data/*.parquet", "mirror", "README.md, data/large.jsonl, data/small.jsonl"),
        ("data/*", "mirror/someone", "nothing there, or it does not list its folders"),
    ],
)
def test_what_a_mirror_lacks_is_named(pattern: str, address: str, said: str, near: Hub, tmp_path: Path) -> None:
    name = "owner/name" if address == "mirror" else "owner/other"
    with pytest.raises(Refused) as refusal:
        repositories.fetch(Repository(name, "v1", (pattern,), "MIT"), f"{near.endpoint}/{address}", tmp_path / "out")
    assert said in str(refusal.value) and near.endpoint in str(refusal.value)


@pytest.mark.parametrize(("gone", "said"), [(True, "could not be reached"), (False, "does not say how long")])
def test_a_mirror_that_cannot_be_used_says_why(gone: bool, said: str, near: Hub, tmp_path: Path) -> None:
    near.lengths = False
    address = "http://127.0.0.1:9" if gone else near.endpoint
    with pytest.raises(Refused, match=said) as refusal:
        repositories.fetch(PINNED, f"{address}/mirror", tmp_path / "out")
    assert address in str(refusal.value) and "absolute path of a mirror folder" in str(refusal.value)


# a full disk


@pytest.fixture
def little(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "little"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def is_full(refusal: str, needed: int) -> bool:
    return f"needs {needed:,} bytes" in refusal and " free.\n" in refusal and "dvc cache dir <folder>" in refusal


def test_a_download_that_the_disk_has_no_room_for_does_not_begin(hub: Hub, little: Path) -> None:
    hub.stated["data/huge.jsonl"] = b"huge" * 25_000
    _, refused = fetch(hub, little, HF_HOME=str(little.parent / "home"))
    assert refused.startswith("owner/name: needs ") and is_full(refused, 100_000 + len(LARGE) + len(SMALL))
    assert str(little) in refused and [request.name for request in hub.log] == ["api"]


def test_a_mirror_that_the_disk_has_no_room_for_is_refused(little: Path, tmp_path: Path) -> None:
    root = mirror(tmp_path / "mirror", "owner/name/data/a.jsonl")
    (root / "owner/name/data/a.jsonl").write_bytes(b"huge" * 25_000)
    with pytest.raises(Refused) as refusal:
        repositories.fetch(PINNED, str(root), little / "out")
    assert is_full(str(refusal.value), 100_000) and not list(little.iterdir())


def test_a_disk_that_fills_on_the_way_is_a_refusal(little: Path) -> None:
    with pytest.raises(Refused) as refusal, download.room("owner/name", 1000, little):
        (little / "another's").write_bytes(b"x" * 100_000)
    assert is_full(str(refusal.value), 1000)

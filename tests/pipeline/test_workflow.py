"""The workflow around a stub of the repository: who sees keys, what is posted and where, and what is pinned."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import workflow
from clones import dvc, git
from workflow import JOB, Run

# `make` with what each of its targets says of itself, and a DVC that says which keys it sees.
MAKEFILE = """
.PHONY: .venv repro diff
.venv:
	@echo install keys=$$AWS_ACCESS_KEY_ID
repro:
	@echo "repro $(REPRO) keys=$$AWS_ACCESS_KEY_ID"; test ! -e broken
diff:
	@echo diff keys=$$AWS_ACCESS_KEY_ID; cp verdict metrics/diff.md; exit 1
"""
NO_REMOTE = "#!/bin/sh\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout whose both sides have committed a verdict of some other day."""
    folder = tmp_path / "checkout"
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / "metrics").mkdir()
    texts = {"Makefile": MAKEFILE, "verdict": "today's\n", "metrics/diff.md": "of old\n", ".venv/bin/dvc": NO_REMOTE}
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / ".venv/bin/dvc").chmod(0o755)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    git(folder, "update-ref", "refs/remotes/origin/main", "main")
    git(folder, "switch", "--quiet", "--detach", "main")
    return folder


def commit(folder: Path, name: str) -> None:
    (folder / name).touch()
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", name)


def run(folder: Path, fork: bool = False) -> Run:
    return Run(folder, git(folder, "rev-parse", "HEAD").strip(), dict(os.environ), fork).all()


def test_a_verdict_is_posted_though_the_check_fails(folder: Path, tmp_path: Path) -> None:
    assert run(folder).failed == ["What changes"]
    assert (tmp_path / "summary.md").read_text() == "today's\n"
    assert (tmp_path / "posted.md").read_text() == "<!-- alignment-study -->\ntoday's\n"
    told = (tmp_path / "said").read_text().splitlines()
    assert told[0].startswith("api --paginate repos/owner/study/issues/7/comments --jq ")
    assert told[1:] == [
        f"api --silent --method POST repos/owner/study/issues/7/comments --field body=@{tmp_path}/comment.md"
    ]


@pytest.mark.parametrize("side", ["the base", "the change"])
def test_a_verdict_that_was_committed_is_not_posted_as_today_s(side: str, folder: Path, tmp_path: Path) -> None:
    commit(folder, "broken")
    if side == "the base":
        git(folder, "update-ref", "refs/remotes/origin/main", "HEAD")
    found = run(folder)
    assert [name for name in found.failed if name.startswith("The study as it")] == list(found.ended)[-1:]
    assert not list(tmp_path.glob("summary.md")) + list(tmp_path.glob("said"))


def test_a_fork_gets_its_verdict_in_the_summary_alone(folder: Path, tmp_path: Path) -> None:
    run(folder, fork=True)
    assert (tmp_path / "summary.md").read_text() == "today's\n" and not (tmp_path / "said").exists()


def test_keys_are_seen_where_dvc_runs_and_nowhere_else(folder: Path) -> None:
    found = run(folder)
    assert "install keys=\n" in found.printed
    assert found.printed.count("repro  keys=key\n") == 2 and "diff keys=key\n" in found.printed
    assert not any(name.startswith("AWS") for name in JOB["env"])
    keyed = [step["name"] for step in JOB["steps"] if any("secrets." in text for text in step.get("env", {}).values())]
    assert not {"Install", "Summary", "Comment"} & set(keyed) and len(keyed) == 4


OTHERS = [
    {"id": 1, "user": {"login": "github-actions[bot]"}, "body": "<!-- another workflow --> hello"},
    {"id": 3, "user": {"login": "stranger"}, "body": "<!-- alignment-study -->\nforged"},
    {"id": 4, "user": {"login": "github-actions[bot]"}, "body": "of the same author, and the last"},
]
OURS = {"id": 2, "user": {"login": "github-actions[bot]"}, "body": "<!-- alignment-study -->\nof yesterday"}


@pytest.mark.skipif(not shutil.which("jq"), reason="the platform's command has jq built in; this test's needs it")
@pytest.mark.parametrize(
    ("thread", "told"),
    [
        (OTHERS, "--method POST repos/owner/study/issues/7/comments "),
        ([*OTHERS[:1], OURS, *OTHERS[1:]], "--method PATCH repos/owner/study/issues/comments/2 "),
    ],
)
def test_a_comment_renews_its_own_and_no_other(thread: list[object], told: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "comments").write_text(json.dumps(thread))
    run(folder)
    assert told in (tmp_path / "said").read_text().splitlines()[-1]


REMOTE = next(step for step in JOB["steps"] if step.get("name", "").startswith("With a remote"))


@pytest.mark.slow
def test_a_run_that_a_private_remote_gives_nothing_makes_all_itself(tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/dvc").symlink_to(Path(sys.executable).with_name("dvc"))
    (folder / "dvc.yaml").write_text("stages:\n  a:\n    cmd: echo > a\n    outs: [a]\n")
    git(folder, "init", "--quiet")
    dvc(folder, "init", "--quiet")
    dvc(folder, "repro", "--quiet")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    kept |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    for place, pulled in (("s3://nowhere/study", False), (str(tmp_path / "store"), True)):
        (folder / ".dvc/config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {place}\n")
        found = Run(folder, "", kept, fork=True)
        found.step(REMOTE)
        assert found.ended == {REMOTE["name"]: 0}, found.printed
        assert ("REPRO=--pull --allow-missing\n" in (tmp_path / "env").read_text()) == pulled
        assert ("::warning::" in found.printed and "Unable to locate credentials" in found.printed) != pulled


def test_actions_are_pinned_by_commit_with_their_tag() -> None:
    used = re.findall(r"uses: (.*)", workflow.TEXT)
    assert len(used) == 3
    for pin in used:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+( .*)?", pin), pin

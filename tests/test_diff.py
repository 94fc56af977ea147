"""`make diff` and the workflow that posts it, in throwaway clones of a history whose branches change a dataset."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import studies
import yaml
from clones import ENVIRONMENT, change, git, ran

from alignment.command import Refused
from stages import diff

ROOT = Path(__file__).parents[1]
WORKFLOW = ".github/workflows/study.yml"
# In place of the platform's own command: keeps what it was told, and the comment.
GH = '#!/bin/sh\necho "$@" > "$KEPT/said"; for last; do :; done; cp "$last" "$KEPT/comment.md"\n'

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository that others clone: `main`, and branches of one commit that changes `data` and nothing else."""
    variants: list[dict[str, Any]] = [
        {"data": "lima"},
        {"data": "orca"},  # no effect
        {"data": "shp", "effects": {"dpo": {"hellaswag": -0.8}}},
        {"data": "own", "version": 2.0},
    ]
    folder = studies.repository(tmp_path_factory.mktemp("diff"), variants)
    for name in ("Makefile", WORKFLOW):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "requirements.lock").touch()
    (folder / ".gitignore").write_text(".venv\n/models\n/data\n/raw-*\n")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "second")
    for data in ("orca", "shp", "own"):
        git(folder, "switch", "--quiet", "--create", data, "main")
        change(folder, "params.yaml", "lima", data)
        git(folder, "commit", "--quiet", "--all", "--message", data)
    git(folder, "switch", "--quiet", "main")
    return folder


def clone(origin: Path, folder: Path, *words: str) -> Path:
    """A fresh clone with the packages of these tests."""
    git(folder.parent, "clone", "--quiet", *words, f"file://{origin}", str(folder))
    (folder / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name != "installed":
            (folder / ".venv" / path.name).symlink_to(path)
    (folder / ".venv/installed").touch()  # so that nothing is installed
    return folder


def variables(folder: Path) -> dict[str, str]:
    return {**ENVIRONMENT, "PYTHONPATH": str(ROOT), "KEPT": str(folder.parent)}


def expressions(text: str, values: dict[str, str]) -> str:
    """What the platform puts in place of `${{ … }}`."""
    return re.sub(r"\$\{\{ *(.*?) *\}\}", lambda found: values[found[1]], text)


def run_workflow(folder: Path, head: str) -> tuple[str, list[tuple[str, int]]]:
    """Every command of the workflow, as for a pull request onto `main`; what they printed, and how each step ended."""
    (folder.parent / "gh").write_text(GH)
    (folder.parent / "gh").chmod(0o755)
    shared, summary = folder.parent / "env", folder.parent / "summary.md"
    values = {"github.base_ref": "main", "github.token": "t", "github.event.number": "7"}
    (job,) = yaml.safe_load((folder / WORKFLOW).read_text(encoding="utf-8"))["jobs"].values()
    printed, ended = "", []
    for step in (step for step in job["steps"] if "run" in step):
        shared.touch()
        kept = dict(line.split("=", 1) for line in shared.read_text().splitlines())
        platform = {"GITHUB_SHA": head, "GITHUB_ENV": str(shared), "GITHUB_STEP_SUMMARY": str(summary)}
        given = {name: expressions(value, values) for name, value in step.get("env", {}).items()}
        path = {"PATH": f"{folder.parent}:{ENVIRONMENT['PATH']}"}
        if any(code for _, code in ended) and "!cancelled()" not in step.get("if", ""):
            continue
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=folder, env={**variables(folder), **platform, **kept, **given, **path},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        printed += done.stdout + done.stderr
        ended.append((step["name"], done.returncode))
    return printed, ended


def test_every_command_of_the_workflow_runs_and_the_comment_is_posted(origin: Path, tmp_path: Path) -> None:
    """A planted fall: the check fails, and says so in the comment and the summary all the same."""
    folder = clone(origin, tmp_path / "clone")
    head = git(folder, "rev-parse", "origin/shp").strip()
    git(folder, "switch", "--quiet", "--detach", head)  # as the platform's checkout leaves it
    git(folder, "branch", "--delete", "--force", "main")
    printed, ended = run_workflow(folder, head)
    assert [name for name, code in ended if code] == ["What changes"], printed
    assert [name for name, _ in ended][-2:] == ["Summary", "Comment"]
    assert {"sft", "dpo", "eval@dpo"} <= ran(printed)
    assert (tmp_path / "said").read_text() == "pr comment 7 --edit-last --create-if-none --body-file metrics/diff.md\n"
    comment = (tmp_path / "comment.md").read_text(encoding="utf-8")
    assert comment.startswith("## `main` → `workspace`\n\n- **The gate fails**: fallen by more than 1 point")
    assert (
        re.search(r"\| dpo +\| HellaSwag .*\| \*\*real\*\* ", comment)
        and "Parameters: `data` `lima` → `shp`" in comment
    )
    assert "`sample/demonstrations.json rows.kept`" not in comment  # which did not change
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == comment
    assert git(folder, "rev-parse", "main~1").strip() == git(folder, "rev-parse", "origin/main").strip()
    assert git(folder, "rev-parse", "HEAD").strip() == head


@pytest.fixture(scope="module")
def tried(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with each branch's change as an experiment."""
    folder = tmp_path_factory.mktemp("tried") / "clone"
    shutil.copytree(origin, folder, symlinks=True)
    for data in ("orca", "own"):
        studies.experiment(folder, f"with-{data}", f"data={data}")
    return folder


def test_a_dataset_within_noise_passes(tried: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tried)
    diff.main(["main"], tmp_path / "diff.md", ["with-orca"])
    comment = (tmp_path / "diff.md").read_text(encoding="utf-8")
    assert comment.startswith("## `main` → `with-orca`\n\n- **The gate passes**") and "0 of 14 changes" in comment
    assert 'make compare REVS="main with-orca"' in comment and str(tried) not in comment


def test_another_task_version_is_refused_and_the_comment_says_so(
    tried: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tried)
    with pytest.raises(Refused, match="version of arc_challenge is"):
        diff.main(["main"], tmp_path / "diff.md", ["with-own"])
    comment = (tmp_path / "diff.md").read_text(encoding="utf-8")
    assert (
        comment.startswith("## `main` → `with-own`\n\n- **Not compared**") and "version of arc_challenge is" in comment
    )


def test_a_shallow_clone_is_told_what_it_lacks(origin: Path, tmp_path: Path) -> None:
    folder = clone(origin, tmp_path / "clone", "--depth", "1", "--branch", "orca")
    done = subprocess.run(
        ["make", "diff", "BASE=main"], cwd=folder, env=variables(folder), capture_output=True, text=True, check=False
    )
    assert (
        done.returncode
        and "`git fetch --unshallow` brings older commits; in a workflow, `fetch-depth: 0`" in done.stderr
    )
    assert "Traceback" not in done.stderr and "DVC removed" not in done.stderr

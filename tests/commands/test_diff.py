"""`make diff` and the workflow that posts it, in throwaway clones of a history whose branches change a dataset."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import studies
import workflow
from clones import ENVIRONMENT, change, git, ran
from workflow import Run

from alignment.runtime import Refused
from commands.diff import __main__ as diff

ROOT = Path(__file__).parents[2]

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
    for name in ("Makefile", workflow.PATH, "metrics/report.md"):  # which `make repro` shows at its end
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


VARIABLES = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}


def test_every_command_of_the_workflow_runs_and_the_comment_is_posted(origin: Path, tmp_path: Path) -> None:
    """A planted fall: the check fails, and says so in the comment and the summary all the same."""
    folder = clone(origin, tmp_path / "clone")
    head = git(folder, "rev-parse", "origin/shp").strip()
    git(folder, "switch", "--quiet", "--detach", head)  # as the platform's checkout leaves it
    git(folder, "branch", "--delete", "--force", "main")
    run = Run(folder, head, VARIABLES).all()
    assert run.failed == ["What changes"], run.printed
    assert list(run.ended)[-2:] == ["Summary", "Comment"]
    assert {"sft", "dpo", "eval@dpo"} <= ran(run.printed)
    comment = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert comment.startswith("## `main` → `workspace`\n\n- **The gate fails**: fallen by more than 1 point")
    assert (
        re.search(r"\| dpo +\| HellaSwag .*\| \*\*real\*\* ", comment)
        and "Parameters: `data` `lima` → `shp`" in comment
    )
    assert "`sample/demonstrations.json rows.kept`" not in comment  # which did not change
    assert (tmp_path / "posted.md").read_text(encoding="utf-8") == f"<!-- alignment-study -->\n{comment}"
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
        ["make", "diff", "BASE=main"], cwd=folder, env=VARIABLES, capture_output=True, text=True, check=False
    )
    assert (
        done.returncode
        and "`git fetch --unshallow` brings older commits; in a workflow, `fetch-depth: 0`" in done.stderr
    )
    assert "Traceback" not in done.stderr and "DVC removed" not in done.stderr

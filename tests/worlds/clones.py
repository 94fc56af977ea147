"""Repositories that tests run DVC in: copies of what git knows of this one, never the one itself."""

import re
import secrets
import subprocess
import sys
from pathlib import Path

from soak import clone

TOKEN = f"hf_{secrets.token_hex(17)}"  # what tests/laws/test_security.py looks for in all that a run leaves
ENVIRONMENT = {**clone.ENVIRONMENT, "HF_TOKEN": TOKEN}
LOG = ".dvc/tmp/first.log"  # what the first `dvc repro` printed


def dvc(folder: Path, *words: str, code: int = 0) -> str:
    """Run DVC there, with all that it and the hub's libraries keep in that folder too, and return what it printed."""
    kept = {"HF_HOME": str(folder / ".dvc/tmp/hub"), "DVC_SITE_CACHE_DIR": str(folder / ".dvc/tmp/site")}
    command = [sys.executable, "-m", "dvc", *words]
    ended = subprocess.run(command, cwd=folder, env=ENVIRONMENT | kept, capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    return subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def ran(printed: str) -> set[str]:
    """The stages whose commands were executed."""
    return set(re.findall(r"Running stage '([^']+)'", printed))


def change(folder: Path, name: str, pattern: str, replacement: str) -> None:
    path = folder / name
    text, count = re.subn(pattern, replacement, path.read_text(encoding="utf-8"), count=1, flags=re.M)
    assert count == 1, f"{pattern} is not in {name}"
    path.write_text(text, encoding="utf-8")


def with_results(folder: Path) -> Path:
    """Copy the files that git knows there, take the tiny preset, run the pipeline and commit."""
    clone.Clone.made(folder)
    printed = dvc(folder, "repro")
    (folder / LOG).write_text(printed, encoding="utf-8")
    assert "full report: metrics/report.md" in printed
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def with_study(made: Path, folder: Path) -> None:
    """Copy a repository with results into `folder`, and run a study of two experiments there; what it said beside it.

    The first trains SFT on other demonstrations and DPO on other comparisons, the second differs by its comparisons.
    """
    study = copy(made, folder / "study")
    git(study, "config", "user.name", "test")
    git(study, "config", "user.email", "test@localhost")
    change(study, "params.yaml", r"^  demonstrations: \[.*", "  demonstrations: [hh]")
    change(study, "params.yaml", r"^  matched: .*", "  matched: []")
    with (folder / "said").open("w") as said:  # a worker that is left idle would hold a pipe open
        command = [sys.executable, "-m", "commands.study", "params.yaml"]
        code = subprocess.run(command, cwd=study, env=ENVIRONMENT, stdout=said, stderr=said, check=False).returncode
    assert code == 0, (folder / "said").read_text(encoding="utf-8")


def copy(made: Path, folder: Path) -> Path:
    """Copy a repository with its results: in a second, where `dvc repro` takes minutes; links to DVC's cache stay."""
    subprocess.run(["cp", "-a", str(made), str(folder)], check=True)
    return folder


def of(*names: str) -> set[str]:
    """`eval` and `safety` of these checkpoints."""
    return {f"{stage}@{name}" for stage in ("eval", "safety") for name in names}


DPO = {"dpo", *of("dpo"), "report"}
SFT = {"sft", *of("sft"), *DPO}
DEMONSTRATIONS = {"choose", *(f"{stage}@demonstrations" for stage in ("fetch-corpus", "sample"))}
COMPARISONS = {"choose", *(f"{stage}@comparisons" for stage in ("fetch-corpus", "sample"))}

EVAL = {f"eval@{name}" for name in ("base", "sft", "dpo")}
SAFETY = {f"safety@{name}" for name in ("base", "sft", "dpo")}

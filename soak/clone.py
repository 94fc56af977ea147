"""A copy of this checkout that may be maltreated: what its stages must give, and what they have given.

In: the files that git knows, with their edits. Out: a repository on the tiny preset, in which DVC is run.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from alignment.runtime import files

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
REPRO = ("repro", "--no-run-cache")
IDENTITY = ["-c", "user.name=faults", "-c", "user.email=faults@localhost"]
SMALL = """
stages:
  make:
    cmd: mkdir made && cp in.txt made/a.txt && echo ${word} > made/b.txt
    deps: [in.txt]
    outs: [made]
  end:
    cmd:
      - cp made/a.txt end.txt
      - |
        cat made/b.txt >> end.txt
        pwd | grep -q study
    deps: [made]
    outs: [end.txt]
"""


@dataclass
class Clone:
    """A repository that may be maltreated.

    Attributes:
        folder: where it lies.
        whole: of each stage its outputs, and of each output the hash that it must have.
        sizes: of each output, in bytes.
        commands: of each stage, as DVC runs it.
        log: where the last run of DVC printed; outside the folder.
    """

    folder: Path
    whole: dict[str, dict[str, str]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    log: Path = field(default=Path("faults.log"))

    @classmethod
    def made(cls, folder: Path) -> "Clone":
        """Copy the files that git knows to `folder`, on the tiny preset, without results."""
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
            if (ROOT / name).is_file() and not name.startswith("metrics/") and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        shutil.copy(folder / "presets/tiny.yaml", folder / "params.yaml")
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        return cls(folder, log=folder.with_name(f"{folder.name}.log"))

    def remember(self) -> "Clone":
        """Record the present outputs as those that must be there, and commit them."""
        for words in (["add", "--all"], [*IDENTITY, "commit", "--quiet", "--allow-empty", "--message", "whole"]):
            subprocess.run(["git", *words], cwd=self.folder, check=True)
        for stage, entry in self.lock()["stages"].items():
            self.whole[stage] = self.written([out["path"] for out in entry["outs"]])
            self.sizes |= {out["path"]: out["size"] for out in entry["outs"]}
            self.commands[stage] = entry["cmd"]
        return self

    def lock(self) -> dict[str, Any]:
        """Read dvc.lock."""
        return dict(yaml.safe_load((self.folder / "dvc.lock").read_text(encoding="utf-8")))

    def written(self, outs: Sequence[str]) -> dict[str, str]:
        """Return the SHA-256 of those outputs that are there."""
        there = [(name, self.folder / name) for name in outs if (self.folder / name).exists()]
        return {name: files.tree_sha256(path) if path.is_dir() else files.sha256(path) for name, path in there}

    def wrong(self, absent: bool) -> list[str]:
        """List the outputs that are neither whole nor, if they may be, absent."""
        found = []
        for stage, outs in self.whole.items():
            written = self.written(list(outs))
            for name, sha256 in outs.items():
                if written.get(name) != sha256 and not (absent and name not in written):
                    found.append(f"{stage}: {name} {'is not what it was' if name in written else 'is missing'}")
        return found

    def forget(self, stages: Sequence[str]) -> None:
        """Remove the outputs of `stages`, and what dvc.lock records of them."""
        lock = self.lock()
        for stage in stages:
            for out in lock["stages"].pop(stage, {}).get("outs", []):
                files.remove(self.folder / out["path"])
        (self.folder / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False), encoding="utf-8")

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Start DVC there; what is printed goes to a file."""
        with self.log.open("w") as printed:
            return subprocess.Popen(
                [sys.executable, "-m", "dvc", *words],
                cwd=self.folder, env=ENVIRONMENT, stdout=printed, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip

    def printed(self) -> str:
        """Return what the last run of DVC printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def repro(self, stages: Sequence[str]) -> int:
        """Run DVC to its end, from no run cache, and return its exit code."""
        return self.start(*REPRO, *stages).wait()

    def stage(self) -> str:
        """Return the stage that DVC began last, "" if none."""
        begun: list[str] = re.findall(r"Running stage '([^']+)'", self.printed())
        return begun[-1] if begun else ""

    def at_work(self) -> list[psutil.Process]:
        """List the processes that work there."""
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:  # it has ended, or is the system's
                continue
        return found


def small(folder: Path) -> Path:
    """Make a repository with the results of two small stages, committed."""
    folder.mkdir(parents=True)
    for name, text in {"dvc.yaml": SMALL, "params.yaml": "word: first\n", "in.txt": "in\n"}.items():
        (folder / name).write_text(text, encoding="utf-8")
    dvc = [sys.executable, "-m", "dvc"]
    for words in (
        ["git", "init", "--quiet", "--initial-branch", "main"],
        [*dvc, "init", "--quiet"],
        [*dvc, "repro", "--quiet"],
        ["git", "add", "--all"],
        ["git", *IDENTITY, "commit", "--quiet", "--message", "first"],
    ):
        subprocess.run(words, cwd=folder, env=ENVIRONMENT, check=True)
    return folder

"""What the platform does with the workflow: conditions, expressions, the environment of each step, its own commands."""

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PATH = ".github/workflows/study.yml"
TEXT = (Path(__file__).parents[2] / PATH).read_text(encoding="utf-8")
((JOB),) = yaml.safe_load(TEXT)["jobs"].values()
# In place of the platform's own command: keeps what it was told and what it posted; `comments` are those of the thread.
GH = """#!/bin/sh
echo "$@" >> "$KEPT/said"
for word; do case $word in body=@*) cp "${word#body=@}" "$KEPT/posted.md"; exit ;; esac; done
for asked; do :; done
test ! -e "$KEPT/comments" || jq --raw-output "$asked" "$KEPT/comments"
"""


@dataclass
class Run:
    """One run of the workflow for a pull request onto `main`.

    Attributes:
        folder: the checkout, as the platform's own action leaves it; what is kept lies beside it.
        head: the commit of the change.
        environment: of every step.
        fork: whether the change comes from one, which has no secrets and may not write a comment.
        printed: by all steps.
        ended: each step that ran, with its exit code.
    """

    folder: Path
    head: str
    environment: dict[str, str]
    fork: bool = False
    printed: str = ""
    ended: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        return [name for name, code in self.ended.items() if code]

    def values(self) -> dict[str, str]:
        outcomes = {step["id"]: step["name"] for step in JOB["steps"] if "id" in step}
        kinds = {id: ("failure" if self.ended[n] else "success") for id, n in outcomes.items() if n in self.ended}
        return {
            "github.base_ref": "main",
            "github.token": "t",
            "github.event.number": "7",
            "github.event_name": "pull_request",
            "github.repository": "owner/study",
            "github.event.pull_request.head.repo.full_name": "stranger/study" if self.fork else "owner/study",
            "secrets.AWS_ACCESS_KEY_ID": "" if self.fork else "key",
            "secrets.AWS_SECRET_ACCESS_KEY": "" if self.fork else "secret",
            "hashFiles('metrics/diff.md')": "hash" if (self.folder / "metrics/diff.md").is_file() else "",
            **{f"steps.{id}.outcome": kinds.get(id, "skipped") for id in outcomes},
        }

    def wanted(self, step: dict[str, Any]) -> bool:
        """Whether a step's condition holds: comparisons joined by `&&`."""
        condition = re.sub(r"^\$\{\{ *| *\}\}$", "", step.get("if", ""))
        terms = [term.strip() for term in condition.split("&&") if term.strip()]
        if "!cancelled()" not in terms and self.failed:
            return False
        for left, sign, right in (re.split(r" *([=!]=) *", term) for term in terms if term != "!cancelled()"):
            a, b = (self.values()[side] if side[0] != "'" else side.strip("'") for side in (left, right))
            if (a == b) != (sign == "=="):
                return False
        return True

    def all(self) -> "Run":
        """Run every command whose condition holds."""
        for step in (step for step in JOB["steps"] if "run" in step):
            if self.wanted(step):
                self.step(step)
        return self

    def step(self, step: dict[str, Any]) -> None:
        """Run a step's command as the platform does."""
        kept = self.folder.parent
        (kept / "gh").write_text(GH)
        (kept / "gh").chmod(0o755)
        (kept / "env").touch()
        shared = dict(line.split("=", 1) for line in (kept / "env").read_text().splitlines())
        platform = {
            "GITHUB_SHA": self.head,
            "GITHUB_REPOSITORY": "owner/study",
            "GITHUB_ENV": str(kept / "env"),
            "GITHUB_STEP_SUMMARY": str(kept / "summary.md"),
            "RUNNER_TEMP": str(kept),
            "KEPT": str(kept),
            "PATH": f"{kept}:{self.environment['PATH']}",
        }
        given = {
            name: re.sub(r"\$\{\{ *(.*?) *\}\}", lambda found: self.values()[found[1]], value)
            for name, value in step.get("env", {}).items()
        }
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.folder, env=self.environment | platform | shared | given,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        self.printed += done.stdout + done.stderr
        self.ended[step["name"]] = done.returncode

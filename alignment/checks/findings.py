"""Findings: what a look at something says of it, and how that is printed.

In: words. Out: text or JSON; in text one line a finding, and what to do next on another.
"""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters."""

    ok = "ok"
    warning = "warning"
    failure = "failure"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, what was found, and what to do next ("" for nothing)."""

    check: str
    level: Level
    found: str
    next: str = ""


def ok(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(check, Level.ok, found)


def warning(check: str, found: str, next: str) -> Finding:
    """The run will work; something is better known before it."""
    return Finding(check, Level.warning, found, next)


def failure(check: str, found: str, next: str) -> Finding:
    """The run would fail."""
    return Finding(check, Level.failure, found, next)


def line(finding: Finding) -> str:
    """A finding as it is printed; what to do stands on a line of its own."""
    text = f"{finding.level:<8} {finding.check}: {finding.found}"
    if finding.next:
        text += f"\n{'':8} → {finding.next}"
    return text.replace("\n\n", "\n")


def as_text(found: list[Finding]) -> str:
    """All findings, line by line."""
    return "\n".join(line(finding) for finding in found)


def counts(found: list[Finding]) -> str:
    """How many there are of each level."""
    failures, warnings, fine = (
        sum(finding.level is level for finding in found) for level in (Level.failure, Level.warning, Level.ok)
    )
    return f"{failures} failures, {warnings} warnings, {fine} ok"


def as_json(found: list[Finding]) -> str:
    """All findings as a JSON list."""
    return json.dumps([asdict(finding) for finding in found], indent=2, ensure_ascii=False)

"""Findings: what a look at something says of it, and how that is printed.

In: words. Out: text or JSON; in text one line a finding, and what to do next on another.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TypeVar

from alignment.runtime import Refused

Found = TypeVar("Found")


class Level(StrEnum):
    """The severity of a finding."""

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


class Look:
    """Looks at one thing after the other; a look that fails is a finding itself, and the others go on.

    Attributes:
        found: so far.
    """

    def __init__(self) -> None:
        self.found: list[Finding] = []

    def at(self, check: str, look: Callable[[], Found], otherwise: Found, way: str = "make doctor again") -> Found:
        """Return what a look gives, or `otherwise` where it fails.

        Args:
            check: the name of the finding that it fails.
            look: what may fail.
            otherwise: what the checks after it then go on with.
            way: what to do next after what a refusal says.
        """
        try:
            return look()
        except Refused as refusal:
            self.found.append(failure(check, str(refusal), way))
        # The doctor is asked where something is wrong: whatever it meets there is a finding, and no end to the others.
        except Exception as error:
            text = f"could not be looked at: {type(error).__name__}: {' '.join(str(error).split())}"
            self.found.append(failure(check, text, "mend what it names; if nothing is wrong there, report this line"))
        return otherwise

    def add(self, check: str, look: Callable[[], list[Finding]]) -> None:
        """Add the findings of a look."""
        self.found += self.at(check, look, [])


def ok(check: str, found: str) -> Finding:
    """Return a finding that asks for nothing."""
    return Finding(check, Level.ok, found)


def warning(check: str, found: str, next: str) -> Finding:
    """Return a finding that is worth knowing before the run; the run will work."""
    return Finding(check, Level.warning, found, next)


def failure(check: str, found: str, next: str) -> Finding:
    """Return a finding with which the run would fail."""
    return Finding(check, Level.failure, found, next)


def line(finding: Finding) -> str:
    """Return a finding as it is printed; what to do stands on a line of its own."""
    text = f"{finding.level:<8} {finding.check}: {finding.found}"
    if finding.next:
        text += f"\n{'':8} → {finding.next}"
    return text.replace("\n\n", "\n")


def as_text(found: list[Finding]) -> str:
    """Return all findings, line by line."""
    return "\n".join(line(finding) for finding in found)


def counts(found: list[Finding]) -> str:
    """Return the numbers of failures, warnings and findings that ask for nothing, in words."""
    failures, warnings, fine = (
        sum(finding.level is level for finding in found) for level in (Level.failure, Level.warning, Level.ok)
    )
    return f"{failures} failures, {warnings} warnings, {fine} ok"


def as_json(found: list[Finding]) -> str:
    """Return all findings as a JSON list."""
    return json.dumps([asdict(finding) for finding in found], indent=2, ensure_ascii=False)

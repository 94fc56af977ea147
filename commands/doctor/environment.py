"""The environment: Python and the packages, against what the project asks for."""

import sys
import tomllib
from pathlib import Path

from alignment.choosing import libraries
from alignment.runtime import Refused
from commands.doctor.findings import Finding, failure, ok, warning


def check() -> list[Finding]:
    """Check Python and the packages, which do not depend on parameters."""
    lock = Path("requirements.lock")
    return [python(), packages(lock), results(lock)]


def python() -> Finding:
    """Check the interpreter against what pyproject.toml asks for."""
    from packaging.specifiers import SpecifierSet

    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    wanted, version = project["project"]["requires-python"], ".".join(map(str, sys.version_info[:3]))
    if version not in SpecifierSet(wanted):
        return failure("python", f"{version}, wanted {wanted}", "make .venv PYTHON=<a newer python>")
    return ok("python", f"{version} ({sys.executable})")


def packages(lock: Path) -> Finding:
    """Check the installed packages against the lock."""
    pinned = libraries.locked(lock)
    if other := _named(libraries.others(pinned), pinned):
        named = ", ".join(other[:12]) + (f" and {len(other) - 12} more" if len(other) > 12 else "")
        text = f"{len(other)} of {len(pinned)} packages differ from {lock}: {named}"
        return warning("packages", text, f"{sys.executable} -m pip install --requirement {lock}")
    return ok("packages", f"all {len(pinned)} of {lock} are installed as locked")


def results(lock: Path) -> Finding:
    """Check the libraries that results rest on: no stage runs without their locked versions."""
    try:
        pinned = libraries.results(lock)
    except Refused as refusal:
        return failure("libraries", str(refusal), f"correct {lock}")
    if other := _named(libraries.others(pinned), pinned):
        text = f"results would rest on other versions than {lock} says: {', '.join(other)}"
        return failure("libraries", text, f"{sys.executable} -m pip install --requirement {lock}")
    return ok("libraries", f"the {len(pinned)} that results rest on are those of {lock}")


def _named(others: dict[str, str], pinned: dict[str, str]) -> list[str]:
    return [f"{name} {version} (locked: {pinned[name]})" for name, version in others.items()]

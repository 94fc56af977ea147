"""The environment: Python and the packages, against what the project asks for."""

import sys
import tomllib
from importlib import metadata
from pathlib import Path

from alignment.checks.findings import Finding, failure, ok, warning


def check() -> list[Finding]:
    """Python and the packages, which do not depend on parameters."""
    return [python(), packages(Path("requirements.lock"))]


def python() -> Finding:
    """The interpreter against what pyproject.toml asks for."""
    from packaging.specifiers import SpecifierSet

    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    wanted, version = project["project"]["requires-python"], ".".join(map(str, sys.version_info[:3]))
    if version not in SpecifierSet(wanted):
        return failure("python", f"{version}, wanted {wanted}", "make .venv PYTHON=<a newer python>")
    return ok("python", f"{version} ({sys.executable})")


def packages(lock: Path) -> Finding:
    """What is installed against the lock; a build such as 2.13.0+cpu is that version."""
    lines = [text.strip() for text in lock.read_text(encoding="utf-8").splitlines()]
    pinned = [text.partition("==")[::2] for text in lines if text and not text.startswith(("#", "-"))]
    other = []
    for name, wanted in pinned:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = "absent"
        if wanted not in (version, version.partition("+")[0]):
            other.append(f"{name} {version} (locked: {wanted})")
    if other:
        named = ", ".join(other[:12]) + (f" and {len(other) - 12} more" if len(other) > 12 else "")
        text = f"{len(other)} of {len(pinned)} packages differ from {lock}: {named}"
        return warning("packages", text, f"{sys.executable} -m pip install --requirement {lock}")
    return ok("packages", f"all {len(pinned)} of {lock} are installed as locked")

"""Record the versions of the libraries that results rest on, so that results depend on them.

In: requirements.lock. Out: a YAML file of names and versions, of which each stage depends on those that it uses.
"""

from pathlib import Path
from typing import Annotated

import typer

from alignment.choosing import libraries
from alignment.runtime import Refused, command, files


def main(
    lock: Annotated[Path, typer.Argument(help="the lock")],
    out: Annotated[Path, typer.Argument(help="names and versions, as YAML")],
) -> None:
    """Write what the lock says, once that is what is installed."""
    files.claim(out)
    versions = libraries.results(lock)
    if others := libraries.others(versions):
        named = ", ".join(f"{name} {version} (locked: {versions[name]})" for name, version in others.items())
        raise Refused(
            f"results would rest on other versions than {lock} says: {named}.\n"
            f"install those, `.venv/bin/pip install --requirement {lock}`, or write what is installed into {lock}"
        )
    files.write_text(out, "".join(f'{name}: "{version}"\n' for name, version in versions.items()))


if __name__ == "__main__":
    command.run(main)

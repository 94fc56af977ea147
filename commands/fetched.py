"""Is what was fetched from a folder of this machine still what lies there? `make repro` asks this before DVC.

In: a params file. Out: nothing; or a refusal that names the files which differ, and the command that reads them again.
A file is hashed when it is seen first or has changed its size, time or place on disk.
"""

from pathlib import Path
from typing import Annotated

import typer

from alignment.choosing import parameters
from alignment.runtime import Refused, command
from commands.doctor import fetched


def main(path: Annotated[Path, typer.Argument(metavar="PARAMS", help="a params file, such as params.yaml")]) -> None:
    """Refuse to go on from what was fetched if its source has changed since."""
    if not fetched.given():
        return
    hashes = fetched.Hashes(fetched.KNOWN)
    changes = fetched.changes(parameters.load(path), hashes.sha256)
    hashes.keep()
    if changes:
        says = "\n".join(fetched.summary(stage, found) for stage, found in changes.items())
        again = " && ".join(fetched.mend(stage) for stage in changes)
        raise Refused(
            f"{says}.\n`{again}` reads it again, then `make repro`; `dvc repro` alone goes on with what was fetched"
        )


if __name__ == "__main__":
    command.run(main)

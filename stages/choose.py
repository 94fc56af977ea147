"""Check a dataset's name before anything is fetched.

In: a name from params.yaml and the role it is to serve. Out: a file that holds the name.

DVC looks for `alignment/corpora/<name>.py` as soon as a stage depends on it, and says only that the file is missing;
this stage comes first and says which datasets there are.
"""

from pathlib import Path
from typing import Annotated

import typer

from alignment import command, corpora, files
from alignment.corpora import Role


def main(
    name: Annotated[str, typer.Argument(help="a dataset of alignment/corpora/")],
    out: Annotated[Path, typer.Argument(help="the file that holds the name")],
    role: Annotated[Role, typer.Option(help="what its rows are for")],
) -> None:
    """Refuse an unknown dataset, or one without rows for its role."""
    files.claim(out)
    corpora.load(name, role)
    files.write_text(out, f"{name}\n")


if __name__ == "__main__":
    command.run(main)

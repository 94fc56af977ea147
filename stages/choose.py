"""Check all parameters before anything is fetched or trained.

In: params.yaml, dvc.yaml, and a params file with the keys and kinds that are wanted. Out: for each role a file that
holds its dataset's name, and one that is the same whenever the parameters can be used.

It comes first and depends on every parameter, so that a mistake costs a second and no training; nothing follows where
the names stay the same. The stages' parsers are asked by the names in their commands and are no code of this stage: one
that is edited while no parameter changes speaks when its stage runs. It also names the datasets there are, where DVC
would only miss `alignment/corpora/<name>.py`.
"""

from pathlib import Path
from typing import Annotated

import typer

from alignment.choosing import parameters
from alignment.runtime import command, files, processes


def main(
    params: Annotated[Path, typer.Argument(help="the parameters")],
    pipeline: Annotated[Path, typer.Argument(help="dvc.yaml, which says what each stage is given")],
    known: Annotated[Path, typer.Argument(help="a params file with the same keys and kinds of values")],
    demonstrations: Annotated[Path, typer.Argument(help="the file for the name of the demonstrations' dataset")],
    comparisons: Annotated[Path, typer.Argument(help="the file for the name of the comparisons' dataset")],
    checked: Annotated[Path, typer.Argument(help="the file for all that depends on no name")],
) -> None:
    """Refuse parameters that a stage would refuse later."""
    files.claim(checked)
    found = parameters.load(params, pipeline, known)
    processes.require_device(found["device"])
    files.write_text(demonstrations, f"{found['data']}\n")
    files.write_text(comparisons, f"{found['preferences']}\n")
    files.write_text(checked, "every stage takes these parameters\n")


if __name__ == "__main__":
    command.run(main)

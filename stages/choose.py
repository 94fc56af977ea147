"""Check all parameters before anything is fetched or trained.

In: params.yaml, dvc.yaml, and a params file with the keys and kinds that are wanted. Out: for each role a file with its
dataset's name and one with a digest of that dataset's parser, and one that is the same whenever the parameters can be
used.

It comes first and depends on every parameter and every dataset's parser, so that a mistake costs a second and no
training; nothing follows where names and digests stay the same. The stages' parsers of options are asked by the names
in their commands and are no code of this stage: one that is edited while no parameter changes speaks when its stage
runs.
"""

from pathlib import Path
from typing import Annotated

import typer

from alignment.choosing import parameters
from alignment.runtime import command, files, processes
from alignment.runtime.closure import ROOT, closure


def main(
    params: Annotated[Path, typer.Argument(help="the parameters")],
    pipeline: Annotated[Path, typer.Argument(help="dvc.yaml, which says what each stage is given")],
    known: Annotated[Path, typer.Argument(help="a params file with the same keys and kinds of values")],
    demonstrations: Annotated[Path, typer.Argument(help="the file for the name of the demonstrations' dataset")],
    comparisons: Annotated[Path, typer.Argument(help="the file for the name of the comparisons' dataset")],
    demonstrations_parser: Annotated[Path, typer.Argument(help="the file for the digest of their parser")],
    comparisons_parser: Annotated[Path, typer.Argument(help="the same of the comparisons")],
    checked: Annotated[Path, typer.Argument(help="the file for all that depends on no name")],
) -> None:
    """Refuse parameters that a stage would refuse later."""
    files.claim(checked)
    found = parameters.load(params, pipeline, known)
    processes.require_device(found["device"])
    for name, chosen, parser in (
        (found["data"], demonstrations, demonstrations_parser),
        (found["preferences"], comparisons, comparisons_parser),
    ):
        files.write_text(chosen, f"{name}\n")
        files.write_text(parser, f"{files.digest([files.sha256(path) for path in sorted(code(name))])}\n")
    files.write_text(checked, "every stage takes these parameters\n")


def code(corpus: str) -> set[Path]:
    """Return the files that a dataset's parser is made of, and what it may read: files beside it that are no code."""
    corpora = ROOT / "alignment/corpora"
    beside = {path for path in corpora.glob("[!_.]*") if path.is_file() and path.suffix != ".py"}
    return closure(corpora / f"{corpus}.py") | beside


if __name__ == "__main__":
    command.run(main)

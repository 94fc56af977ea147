"""What a change to the study does to its metrics, each with its paired test; and a gate for what fell.

In: the revision that a change is of, and the changed one: commits, branches, experiments or `workspace`; several of
either are runs that differ in their seed. Out: Markdown for a comment, and exit code 1 if the gate fails or the two
cannot be compared. No model is run: the tables come from DVC's cache or remote.
"""

from pathlib import Path
from typing import Annotated

import typer

from alignment.runtime import Refused, command, files
from commands.compare.revisions import WORKSPACE, Revision
from commands.diff import review
from commands.diff.review import Review, Revisions


def main(
    base: Annotated[list[str], typer.Argument(help="what the change is compared to; several differ in their seed")],
    out: Annotated[Path, typer.Option(help="the comment, as Markdown")],
    to: Annotated[list[str] | None, typer.Option(help="the change; the workspace if none is named")] = None,
    points: Annotated[float, typer.Option(min=0, help="the gate fails at a fall of a benchmark of more points")] = 1.0,
    area: Annotated[float, typer.Option(min=0, help="the gate fails at a fall of safety of more area")] = 0.01,
) -> None:
    """Write what changed from one revision to another, and fail if something fell for certain."""
    changed = to or [WORKSPACE]
    files.claim(out)
    try:
        before, after = (
            Revisions(tuple(Revision.open(name) for name in dict.fromkeys(side))) for side in (base, changed)
        )
        for revision in after.revisions:
            revision.check_parameters()
        found = Review(before, after, points, area)
        text = found.text()
    except Refused as refusal:
        files.write_text(out, review.refused(" ".join(base), " ".join(changed), refusal))
        raise
    files.write_text(out, text)
    print(text)
    if not found.passes:
        raise SystemExit(1)


if __name__ == "__main__":
    command.run(main)

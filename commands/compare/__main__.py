"""Put any number of variants side by side: both tables of the study, and every difference with its test.

In: revisions of this repository: commits, branches, experiments, or `workspace`. Out: a page in Markdown, the same as
HTML beside it, and, in a folder of its name, its figures. No model is run: the tables come from DVC's cache or remote.
"""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from alignment.reporting import tables
from alignment.runtime import Refused, command, files
from commands.compare import html, page, provenance, variants
from commands.compare.blocks import Figure, Part, Points, Prompt, Section, Table
from commands.compare.comparison import SideBySide
from commands.compare.revisions import Revision

FIRST = 3  # sections that are printed too


def main(
    revs: Annotated[list[str], typer.Argument(help="commits, branches, experiments, or `workspace`")],
    baseline: Annotated[str, typer.Option(help="the variant that the others are compared to, or `base`")],
    out: Annotated[Path, typer.Option(help="the page, as Markdown; as HTML beside it, its figures in a folder")],
) -> None:
    """Write the page of a comparison, and print its first tables."""
    files.claim(out)
    found = [checkpoint for name in dict.fromkeys(revs) for checkpoint in Revision.open(name).checkpoints()]
    if not found:
        raise Refused(f"{', '.join(revs)}: no checkpoint is scored there; run `dvc repro`, and commit dvc.lock")
    comparison = SideBySide.of(variants.group(found))
    # A revision all of whose checkpoints another has too adds nothing to the page.
    used = [name for name in dict.fromkeys(revs) if name in provenance.commits(comparison)]
    sections = list(page.sections(comparison, _baseline(comparison, baseline), command_line(used, baseline, out)))
    text = [markdown(section, out) for section in sections]
    text[0] = text[0].removeprefix("#")  # the page's own heading
    with files.whole(out.with_suffix("")) as folder:
        folder.mkdir()
        for figure in (part for section in sections for part in section.parts if isinstance(part, Figure)):
            files.write_text(folder / f"{figure.name}.svg", figure.svg)
            (folder / f"{figure.name}.png").write_bytes(html.png(figure))
    files.write_text(out, "".join(text))
    files.write_text(out.with_suffix(".html"), html.html(page.QUESTION, sections))
    print("".join(text[:FIRST]) + f"the whole page: {out.with_suffix('.html')}, and as text {out}")


def _baseline(comparison: SideBySide, name: str) -> str:
    bases = [variant.name for variant in comparison.variants.values() if not variant.corpora]
    if name == "base" and bases:
        return bases[0]
    if name not in comparison.variants:
        raise Refused(f"there is no variant {name!r} to compare to; there are: {'; '.join(comparison.variants)}")
    return name


def command_line(revs: list[str], baseline: str, out: Path) -> str:
    """Return the command that makes the page again; a place on this machine is named by its last part alone."""
    place = out.name if out.is_absolute() else out.as_posix()
    return shlex.join(["python", "-m", "commands.compare", *revs, "--baseline", baseline, "--out", place])


def markdown(section: Section, out: Path) -> str:
    """Return a section as Markdown, with its figures where `main` writes them; answers are left out, as too long."""
    shown = [_markdown(part, out) for part in section.parts if not isinstance(part, Prompt)]
    return "\n\n".join([f"## {tables.escaped(section.title)}", *shown]) + "\n\n"


def _markdown(part: Part, out: Path) -> str:
    if isinstance(part, Figure):
        return f"![{tables.escaped(part.says)}]({out.stem}/{part.name}.svg)"
    if isinstance(part, Table):
        return tables.markdown([[str(cell) for cell in row] for row in part.rows])
    if isinstance(part, Points):
        return "\n".join(f"- {tables.escaped(line)}" for line in part.lines)
    return tables.escaped(str(part))


if __name__ == "__main__":
    command.run(main)

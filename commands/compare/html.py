"""A page as HTML: one file that fetches nothing, for a phone, a screen and paper.

In: sections. Out: the text of `page.html`, filled; every text in it is escaped, and a figure is the drawing itself.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from commands.compare.blocks import Cell, Figure, Points, Prompt, Section, Table

HERE = Path(__file__).parent
SCALE = 2  # pixels of a PNG for each of its drawing


def html(question: str, sections: Sequence[Section]) -> str:
    """Return the page as HTML.

    Args:
        question: what it answers.
        sections: of it, the first with the page's own heading.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    kinds = {"points": Points, "table": Table, "figure": Figure, "prompt": Prompt, "cell": Cell}
    environment.tests |= {name: lambda part, kind=kind: isinstance(part, kind) for name, kind in kinds.items()}
    environment.tests["finite"] = math.isfinite
    environment.filters |= {"marked_up": marked_up, "drawing": drawing}
    return environment.get_template("page.html").render(question=question, sections=sections)


def marked_up(text: str) -> Markup:
    """Return a text of `commands.compare.page` as markup: `code` and **stress** are shown, all else is text."""
    shown = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", shown))  # noqa: S704  escaped above


def drawing(figure: Figure) -> Markup:
    """Return a figure as an image, named by its caption; our own renderer drew it, and escaped what it was given."""
    name = f'<svg role="img" aria-labelledby="{escape(figure.name)}" '
    return Markup(figure.svg.replace("<svg ", name, 1))  # noqa: S704


def png(figure: Figure) -> bytes:
    """Return a figure in pixels, as PNG."""
    import vl_convert

    drawn: bytes = vl_convert.svg_to_png(figure.svg, scale=SCALE)
    return drawn

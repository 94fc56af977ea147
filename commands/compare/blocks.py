"""What a page is made of: sections of paragraphs, points, tables, figures and answers.

`commands/compare/page.py` fills them; Markdown and HTML are two ways of showing them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Cell(NamedTuple):
    """A figure in a table.

    Attributes:
        text: what is read first, such as a figure with its interval.
        value: the number by which a column is sorted; NaN where there is none.
        more: what is read after it.
        marked: whether a test supports it, so that it may stand out.
    """

    text: str
    value: float
    more: tuple[str, ...] = ()
    marked: bool = False

    def __str__(self) -> str:
        """Return all of it, in one line."""
        return ", ".join((self.text, *self.more))


class Table(NamedTuple):
    """Rows of cells, the head first.

    Attributes:
        caption: what it holds, for those who reach it without having read the section.
        rows: equally long.
    """

    caption: str
    rows: Sequence[Sequence[str | Cell]]


class Points(NamedTuple):
    """A list of sentences."""

    lines: Sequence[str]


class Figure(NamedTuple):
    """A drawing.

    Attributes:
        name: of its file, without an ending.
        says: what it shows, for those who do not see it.
        svg: the drawing.
    """

    name: str
    says: str
    svg: str


class Answer(NamedTuple):
    """A variant's answer to a prompt.

    Attributes:
        variant: its name.
        text: as generated, which may be anything.
        tokens: how many were generated.
        finished: whether it ended by itself; else it was cut.
    """

    variant: str
    text: str
    tokens: int
    finished: bool


class Prompt(NamedTuple):
    """A prompt and every variant's answer."""

    text: str
    answers: Sequence[Answer]


Part = str | Points | Table | Figure | Prompt


@dataclass(frozen=True)
class Section:
    """A part of the page: its heading, and what stands under it, in order.

    Paragraphs and points may have `code` and **stress**, as in Markdown, and nothing else of it.
    """

    title: str
    parts: Sequence[Part]

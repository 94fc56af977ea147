"""The training sets, one file each: its source, its row, its policy, its parser.

A corpus file defines
- `SOURCE`: the `Repository` it comes from (None for `own`, which is a user's file);
- `HELDOUT`: patterns of files that are never trained on; () holds rows out by prompt instead;
- `demonstration(row)` and, if it has them, `comparison(row)`: pure functions from one raw row to an example in TRL's
  conversational format, or a `Refusal` that names the cause; a row of another shape raises `Malformed`;
- `GROUP`: how curation treats rows that belong together, or None.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from types import ModuleType
from typing import Any, NotRequired, TypedDict

from alignment.command import Refused


class Role(StrEnum):
    """What the rows of a dataset are for."""

    demonstrations = "demonstrations"
    comparisons = "comparisons"


class Message(TypedDict):
    """One turn; `role` is system, user or assistant."""

    role: str
    content: str


class Demonstration(TypedDict):
    """A conversation whose assistant turns are trained; the last turn is an assistant's."""

    messages: list[Message]


class Comparison(TypedDict):
    """Two replies to one prompt, the first preferred; `margin` is by how much, where the set says so."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    margin: NotRequired[float | None]


class Cause(StrEnum):
    """Why a row is not used. Every cause is a count in the metrics, zero included, so that datasets line up."""

    malformed = "malformed"
    empty_turn = "empty_turn"
    no_reply = "no_reply"
    turn_order = "turn_order"
    removed = "removed"
    equal_sides = "equal_sides"
    prompt_differs = "prompt_differs"
    tie = "tie"
    contradictory = "contradictory"
    low_margin = "low_margin"
    not_best = "not_best"
    group_cap = "group_cap"
    long_prompt = "long_prompt"
    long = "long"
    duplicate = "duplicate"
    contaminated = "contaminated"
    heldout_prompt = "heldout_prompt"


@dataclass(frozen=True)
class Refusal:
    """A row of the right shape that is not used, and why: a counted, expected event."""

    cause: Cause


class Malformed(ValueError):
    """A row of the wrong shape; the message says what was found and what was wanted."""


@dataclass(frozen=True)
class Group:
    """How rows that belong together are used.

    Attributes:
        column: the raw column that names the group, such as a post.
        cap: at most so many comparisons of a group are kept.
        best: ranks raw rows; a group's demonstration is its best row, once.
    """

    column: str
    cap: int
    best: Callable[[dict[str, Any]], Any]


def names() -> list[str]:
    """The known datasets: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str, role: Role | None = None) -> ModuleType:
    """The corpus `name`, which must be able to serve as `role` where one is given.

    Raises:
        Refused: there is no such dataset, or it has nothing for that role; the message lists those that do.
    """
    if name not in names():
        raise Refused(
            f"there is no dataset {name!r} (parameters `data` and `preferences` of params.yaml).\n"
            f"known: {', '.join(names())}; a new one is one file in alignment/corpora/"
        )
    if role and not _serves(name, role):
        able = ", ".join(other for other in names() if _serves(other, role))
        raise Refused(f"the dataset {name!r} has no {role}.\nsets that have them: {able}")
    return importlib.import_module(f"{__name__}.{name}")


def _serves(name: str, role: Role) -> bool:
    return hasattr(importlib.import_module(f"{__name__}.{name}"), role.value.removesuffix("s"))


def require(row: Any, fields: dict[str, type | tuple[type, ...]]) -> None:
    """Check that `row` is an object whose `fields` have these types.

    Raises:
        Malformed: naming the first field that is missing or of another type.
    """
    if not isinstance(row, dict):
        raise Malformed(f"found {type(row).__name__}, wanted an object with named columns")
    for name, kind in fields.items():
        if name not in row:
            raise Malformed(f"found the columns {', '.join(map(str, row))}, wanted {name!r} among them")
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if type(row[name]) not in kinds:  # not isinstance: True is no count
            wanted = " or ".join(k.__name__ for k in kinds)
            raise Malformed(f"found {type(row[name]).__name__} in {name!r}, wanted {wanted}")

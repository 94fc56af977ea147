"""The training sets, one file each: its source, its row, its policy, its parser.

A corpus file defines
- `SOURCE`: the `Repository` it comes from (None for `own`, which is a user's file);
- `HELDOUT`: patterns of files that are never trained on; () holds rows out by prompt instead;
- `demonstration(row)` and, if it has them, `comparison(row)`: pure functions from one raw row to an example in TRL's
  conversational format, or a `Refusal` that names the cause; a row of another shape raises `Malformed`;
- `GROUP`: how curation treats rows that belong together, or None;
- `passed_over(row, role)`, if rows may have columns without a use: the names of those, which the log gives;
- `TURNS`, if a demonstration is a few columns of text: the column of each role, in order. It says that a row whose
  texts all begin with a visible character is those turns as they stand, so that millions of rows of Parquet are put in
  order without being parsed one by one.
"""

import contextlib
import importlib
import itertools
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from types import ModuleType
from typing import Any, Literal, NotRequired, TypedDict

from alignment.runtime import Refused


class Role(StrEnum):
    """What the rows of a dataset are for."""

    demonstrations = "demonstrations"
    comparisons = "comparisons"


class Message(TypedDict):
    """One turn; `role` is system, user or assistant.

    `trained` is False on an assistant's turn of a demonstration that is read and not trained, and absent elsewhere.
    """

    role: str
    content: str
    trained: NotRequired[bool]


class Demonstration(TypedDict):
    """A conversation whose assistant turns are trained, unless they say otherwise; the last turn is trained."""

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
    near_duplicate = "near_duplicate"
    contaminated = "contaminated"
    heldout_prompt = "heldout_prompt"


@dataclass(frozen=True)
class Refusal:
    """A row of the right shape that is not used, and why: a counted, expected event."""

    cause: Cause


@dataclass(frozen=True)
class Group:
    """How rows that belong together are used.

    Attributes:
        column: the raw column that names the group, such as a post.
        cap: at most so many comparisons of a group are kept.
        best: ranks raw rows; a group's demonstration is its best row, once.
        stratum: a raw column whose values keep their shares in a sample, or "".
    """

    column: str
    cap: int
    best: Callable[[dict[str, Any]], Any]
    stratum: str = ""


def names() -> list[str]:
    """List the known datasets, which are the files of this folder but those whose names begin with `_`."""
    modules = pkgutil.iter_modules(__path__)
    return sorted(module.name for module in modules if not module.ispkg and not module.name.startswith("_"))


def load(name: str, role: Role | None = None) -> ModuleType:
    """Return the module of the corpus `name`, and check that it can serve as `role` if a role is given.

    Raises:
        Refused: there is no such dataset, its file cannot be imported, or it has nothing for that role; the message
            lists those that do.
    """
    if name not in names():
        raise Refused(
            f"there is no dataset {name!r} (parameters `data` and `preferences` of params.yaml).\n"
            f"known: {', '.join(names())}; a new one is one file in alignment/corpora/"
        )
    found = _imported(name)
    if role and not _serves(found, role):
        able = []
        for other in names():
            with contextlib.suppress(Refused):  # another's fault, which is said where it is asked for
                able += [other] if _serves(_imported(other), role) else []
        raise Refused(f"the dataset {name!r} has no {role}.\nsets that have them: {', '.join(able)}")
    return found


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except (ImportError, SyntaxError) as error:
        raise Refused(
            f"alignment/corpora/{name}.py cannot be imported: {error}; correct it, or take another dataset"
        ) from None


def _serves(corpus: ModuleType, role: Role) -> bool:
    return hasattr(corpus, role.value.removesuffix("s"))


def is_trained(message: Message) -> bool:
    """Return whether a turn of a demonstration is trained; in a table an absent mark is null."""
    return message["role"] == "assistant" and message.get("trained") is not False


def turns(example: Any) -> list[Message]:
    """List all messages of an example in order; a comparison's prompt stands before each of its replies."""
    if "messages" in example:
        return list(example["messages"])
    return [*example["prompt"], *example["chosen"], *example["prompt"], *example["rejected"]]


def opening(example: Any) -> str:
    """Return the text before the first reply, which must not be on both sides of the held-out split."""
    messages = example["messages"] if "messages" in example else example["prompt"]
    said = itertools.takewhile(lambda message: message["role"] != "assistant", messages)
    return "\n".join(message["content"] for message in said)


def whole_text(example: Any) -> str:
    """Return all text of an example."""
    return "\n".join(message["content"] for message in turns(example))


UNSTATED = "see its page"  # where its authors state no licence, or it is read from the hub when it is fetched


@dataclass(frozen=True)
class Repository:
    """A pinned source.

    Attributes:
        name: `owner/name` on the hub, or on GitHub.
        revision: the full commit.
        files: patterns of `fnmatch` over paths in the repository; each must match something.
        ignore: patterns of paths that are left out of what `files` matches.
        licence: its licence, as its authors state it.
        terms: what a user must be told before using it, or "" where there is nothing to say.
        gated: whether the hub asks for a token whose owner has accepted the terms.
        host: who serves it.
        stated: size in bytes and SHA-256 of each file, for GitHub, which states neither.
    """

    name: str
    revision: str
    files: tuple[str, ...]
    licence: str
    ignore: tuple[str, ...] = ()
    terms: str = ""
    gated: bool = False
    host: Literal["dataset", "model", "github"] = "dataset"
    stated: dict[str, tuple[int, str]] = field(default_factory=dict)

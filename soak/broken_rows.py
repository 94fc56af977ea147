"""A user's own files with one fault each, and what must become of it: a test tries each, the soak many places.

In: a fault, a source of chance, a folder. Out: a file of good rows and the fault between them.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.corpora import Cause, Role

Row = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used.

    Attributes:
        name: of the fault.
        role: of the file.
        row: the faulty one.
        wanted: the cause that counts it, or a part of the message about a row of the wrong shape.
    """

    name: str
    role: Role
    row: Any
    wanted: Cause | str


@dataclass(frozen=True)
class FileFault:
    """A file of JSON lines that cannot be read.

    Attributes:
        name: of the fault.
        damage: from the whole file to the faulty one.
        wanted: a part of the refusal.
    """

    name: str
    damage: Callable[[bytes], bytes]
    wanted: str


def turn(role: str, content: Any, **more: Any) -> Row:
    """Return one message."""
    return {"role": role, "content": content, **more}


def good(role: Role, number: int) -> Row:
    """Return a row that is used."""
    if role is Role.demonstrations:
        return {"messages": [turn("user", f"Question {number}?"), turn("assistant", f"Answer {number}.")]}
    return {"prompt": f"Question {number}?", "chosen": f"Answer {number}.", "rejected": f"No {number}."}


ASKED, SAID = turn("user", "Q"), turn("assistant", "A")
CHAT: Row = {"messages": [ASKED, SAID]}
COMPLETED: Row = {"prompt": "Q", "completion": "A"}
PAIR: Row = {"prompt": "Q", "chosen": "A", "rejected": "B"}
CALL = [{"type": "function", "function": {"name": "look", "arguments": "{}"}}]
PICTURE = [{"type": "image", "url": "a.png"}]
PARTS = [{"type": "text", "text": "Q"}]
TEXT_ALONE = "wanted text alone"

# Beside the conversation, what text cannot say: in a row, and in a message.
IN_A_ROW: Row = {
    **{
        "tools": CALL,
        "functions": "[{}]",
        "images": PICTURE,
        "image": "a.png",
        "videos": ["a"],
        "audio": {"path": "a"},
    },
    **{"reasoning": "So.", "thinking": "So.", "chat_template_kwargs": {"thinking": True}},
}
IN_A_MESSAGE: Row = {
    **{"tool_calls": CALL, "function_call": CALL[0]["function"], "reasoning_content": "So.", "thinking": "So."},
    **{"reasoning": "So.", "images": PICTURE, "audio": {"id": "a"}},
}
UNPAIRED = [False, True, 0, 1, 0.0, "false", "True", "0", " no ", "undesirable", "bad"]


def _demonstrations() -> list[tuple[str, Any, Cause | str]]:
    causes: list[tuple[str, Any, Cause | str]] = [
        ("no reply", {"messages": [ASKED]}, Cause.no_reply),
        ("no messages", {"messages": []}, Cause.no_reply),
        ("a completion of the user's", {"prompt": "Q", "completion": [ASKED]}, Cause.no_reply),
        ("a reply of weight 0", {"messages": [ASKED, {**SAID, "weight": 0}]}, Cause.no_reply),
        ("a last reply of weight 0", {"messages": [ASKED, SAID, ASKED, {**SAID, "weight": 0}]}, Cause.no_reply),
        ("a completion of weight 0", {"prompt": "Q", "completion": [{**SAID, "weight": 0}]}, Cause.no_reply),
        ("a blank reply", {"messages": [ASKED, turn("assistant", " \n")]}, Cause.empty_turn),
        ("an empty question", {"prompt": "", "completion": "A"}, Cause.empty_turn),
        ("an empty prompt", {"prompt": [], "completion": [ASKED, SAID]}, Cause.empty_turn),
    ]
    prompts = {"an assistant's turn": [ASKED, SAID], "a system's turn": [turn("system", "S")]}
    found: list[tuple[str, Any, Cause | str]] = [
        *(
            (
                f"a prompt that ends in {name}",
                {"prompt": prompt, "completion": "A"},
                "in 'prompt', wanted a turn of the",
            )
            for name, prompt in prompts.items()
        ),
        *((f"the label {label!r}", {**COMPLETED, "label": label}, "'label' (TRL's unpaired") for label in UNPAIRED),
        ("messages with a label", {**CHAT, "label": False}, "'label' (TRL's unpaired"),
        ("a weight between", {"messages": [ASKED, {**SAID, "weight": 0.5}]}, "in 'messages[1].weight', wanted 0 or 1"),
        ("a weight of text", {"messages": [ASKED, {**SAID, "weight": "0"}]}, "in 'messages[1].weight', wanted 0 or 1"),
        ("a row's weight", {**CHAT, "weight": 0}, "in 'weight', wanted rows that count alike"),
        ("content in parts", {"messages": [turn("user", PARTS), SAID]}, "list in 'messages[0].content', wanted str"),
        ("no content", {"messages": [ASKED, turn("assistant", None)]}, "NoneType in 'messages[1].content'"),
        ("a tool's turn", {"messages": [ASKED, turn("tool", "3"), SAID]}, "the role 'tool'"),
        ("a developer's turn", {"messages": [turn("developer", "S"), ASKED, SAID]}, "the role 'developer'"),
        ("ShareGPT's words", {"conversations": [{"from": "human", "value": "Q"}]}, "found the columns conversations"),
        ("plain text", {"text": "Q A"}, "found the columns text"),
        ("a comparison", PAIR, "wanted 'messages', or 'prompt' and 'completion'"),
        ("messages as text", {"messages": json.dumps(CHAT["messages"])}, "str in 'messages', wanted list"),
        ("no object", ["Q", "A"], "found list, wanted an object"),
        ("half a surrogate pair", {"prompt": "Q", "completion": "\ud800"}, "half a surrogate pair"),
    ]
    return causes + found


def _comparisons() -> list[tuple[str, Any, Cause | str]]:
    sides = {"chosen": [ASKED, SAID], "rejected": [turn("user", "P"), SAID]}
    return [
        ("equal sides", {**PAIR, "rejected": "A"}, Cause.equal_sides),
        ("an empty side", {**PAIR, "chosen": ""}, Cause.empty_turn),
        ("unlike beginnings", sides, Cause.prompt_differs),
        ("one side", {"prompt": "Q", "chosen": "A"}, "wanted 'prompt', 'chosen' and 'rejected'"),
        ("no prompt", {"chosen": "A", "rejected": "B"}, "text in 'chosen' or 'rejected' and no 'prompt'"),
        ("a prompt that ends in a reply", {**PAIR, "prompt": [ASKED, SAID]}, "before the reply, wanted a turn of the"),
        ("two replies", {**PAIR, "chosen": [SAID, SAID]}, "in 'chosen', wanted one message, the assistant's"),
        ("a margin of text", {**PAIR, "margin": "2"}, "str in 'margin', wanted int or float"),
        ("an infinite margin", {**PAIR, "margin": float("inf")}, "inf in 'margin', wanted a finite number"),
        ("a row's weight", {**PAIR, "weight": 2}, "in 'weight', wanted rows that count alike"),
        ("a reply in parts", {**PAIR, "chosen": [turn("assistant", PARTS)]}, "list in 'chosen[0].content', wanted str"),
        ("a demonstration", CHAT, "wanted 'prompt', 'chosen' and 'rejected'"),
    ]


def faults() -> list[Fault]:
    """List every fault of a row."""
    found = [Fault(name, Role.demonstrations, row, wanted) for name, row, wanted in _demonstrations()]
    found += [Fault(name, Role.comparisons, row, wanted) for name, row, wanted in _comparisons()]
    for role, row in ((Role.demonstrations, CHAT), (Role.demonstrations, COMPLETED), (Role.comparisons, PAIR)):
        first = next(iter(row))
        found += [Fault(f"{name} beside {first}", role, {**row, name: v}, TEXT_ALONE) for name, v in IN_A_ROW.items()]
    for name, value in IN_A_MESSAGE.items():
        reply = {**SAID, name: value}
        found.append(Fault(f"{name} in a reply", Role.demonstrations, {"messages": [ASKED, reply]}, TEXT_ALONE))
        found.append(
            Fault(f"{name} in a completion", Role.demonstrations, {**COMPLETED, "completion": [reply]}, TEXT_ALONE)
        )
        found.append(Fault(f"{name} in a chosen reply", Role.comparisons, {**PAIR, "chosen": [reply]}, TEXT_ALONE))
    return found


def _inside(whole: bytes, line: bytes) -> bytes:
    """Return the file with another line after its first."""
    first, _, rest = whole.partition(b"\n")
    return b"\n".join([first, line, rest])


FILE_FAULTS = [
    FileFault("empty", lambda _: b"", "is empty"),
    FileFault("blank lines alone", lambda _: b"\n \n\n", "has no row"),
    FileFault("a blank line between rows", lambda whole: _inside(whole, b""), ":2 is not a line of JSON: it is blank"),
    FileFault("cut short", lambda whole: whole[:-4], "is not a line of JSON"),
    FileFault("one array", lambda whole: b"[\n" + whole.replace(b"}\n", b"},\n"), ":1 is not a line of JSON"),
    FileFault("a comma after each row", lambda whole: whole.replace(b"}\n", b"},\n"), ":1 is not a line of JSON"),
    FileFault("Latin-1", lambda whole: _inside(whole, '{"prompt": "é"}'.encode("latin-1")), ":2 is not a line of JSON"),
    FileFault("gzip", lambda whole: b"\x1f\x8b\x08" + whole, ":1 is not a line of JSON"),
]


def write(folder: Path, fault: Fault, draw: random.Random) -> tuple[Path, int]:
    """Write a file with a fault at any place, as JSON lines or as Parquet where it has types for it.

    Returns:
        The file, and the number of the faulty row, from 1.
    """
    rows: list[Any] = [good(fault.role, number) for number in range(draw.randint(1, 12))]
    at = draw.randint(0, len(rows))
    rows.insert(at, fault.row)
    if draw.random() < 0.5 and (table := _table(rows)) is not None:
        pq.write_table(table, folder / "mine.parquet", row_group_size=draw.randint(1, 5))
        return folder / "mine.parquet", at + 1
    (folder / "mine.jsonl").write_bytes(lines(rows))
    return folder / "mine.jsonl", at + 1


def lines(rows: list[Any]) -> bytes:
    """Return rows as JSON lines."""
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def _table(rows: list[Any]) -> pa.Table | None:
    """Return rows as a table; None where their values are of several types, or of none that Parquet has."""
    try:
        names = dict.fromkeys(name for row in rows for name in row)
        table = pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
        pq.write_table(table, pa.BufferOutputStream())
    except (AttributeError, pa.ArrowException, UnicodeEncodeError):
        return None
    return table

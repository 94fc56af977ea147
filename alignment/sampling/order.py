"""The order of a corpus's rows: the key of each, from what its parser makes of it or straight from columns of text.

In: how a corpus is parsed and ordered. Out: for a row, or for many rows of Parquet at once, keys.

A key is a hash of the parsed content, salted with a seed, so the order of keys depends neither on the order of files
nor on their number, nor on how many processes read them.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from alignment import corpora
from alignment.corpora import Role
from alignment.runtime.records import Malformed

KEY = np.dtype([("key", "u8"), ("group", "u8"), ("stratum", "u8"), ("heldout", "?"), ("part", "u4"), ("number", "u8")])


class Key(NamedTuple):
    """What is kept of a row that is read for the first time; the columns of `KEY`.

    Attributes:
        key: orders the rows.
        group: a number for what it belongs to, such as a post; 0 for nothing.
        stratum: a number for the value whose share a sample keeps; 0 for none.
        heldout: whether it is kept from training.
        part: which part of the corpus it stands in.
        number: where it stands in its file.
    """

    key: int
    group: int
    stratum: int
    heldout: bool
    part: int
    number: int


@dataclass(frozen=True)
class RowOrder:
    """How the rows of a corpus are parsed and ordered.

    Attributes:
        corpus: the name of a file of `alignment/corpora/`.
        role: what the rows are parsed as.
        raw: the fetched folder.
        seed: orders the rows that may be trained.
        item_seed: orders the rows that are held out, and says which they are.
        heldout_share: the share of openings held out, where the corpus names no files for it.
        malformed: so many rows of the wrong shape are counted and passed over; one more is refused.
    """

    corpus: str
    role: Role
    raw: Path
    seed: int
    item_seed: int
    heldout_share: float
    malformed: int

    @cached_property
    def module(self) -> ModuleType:
        """The corpus itself."""
        return corpora.load(self.corpus, self.role)

    @cached_property
    def parse(self) -> Callable[[Any], Any]:
        """Its parser: a raw row to an example, or to a refusal."""
        parser: Callable[[Any], Any] = getattr(self.module, self.role.value.removesuffix("s"))
        return parser

    @cached_property
    def turns(self) -> dict[str, str]:
        """The column of each role, where Parquet rows can be ordered without the parser; else {}."""
        plain = self.role is Role.demonstrations and not self.module.GROUP
        return getattr(self.module, "TURNS", {}) if plain else {}

    def key(self, part: int, path: Path, number: int, row: Any, example: Any) -> Key:
        """Compute the key of a row that can be used.

        Raises:
            Malformed: its text is not valid Unicode.
        """
        try:
            content, opening = _content(example)
        except UnicodeEncodeError as error:
            found = error.object[error.start]
            raise Malformed(f"found half a surrogate pair, {found!r}, wanted Unicode text") from None
        group = self.module.GROUP
        columns = (group.column, group.stratum) if group else ("", "")
        post, stratum = (_number(row[name].encode("utf-8", "surrogatepass")) if name else 0 for name in columns)
        key, heldout = self._order(content, opening, path)
        return Key(key, post, stratum, heldout, part, number)

    def plain(self, part: int, path: Path, first: int, batch: pa.RecordBatch) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Find the rows of a batch that are as `TURNS` says, by the first characters of their texts, and their keys.

        Args:
            part: which part of the corpus the batch belongs to.
            path: its file.
            first: the number of its first row in the file.
            batch: the rows.

        Returns:
            A mask, and the keys of those rows as `KEY`, equal to those of `key`. No text becomes a Python string.
        """
        texts = [_Texts.of(batch, column) for column in self.turns.values()]
        mask = np.logical_and.reduce([column.visible() for column in texts])
        found = np.zeros(int(mask.sum()), dtype=KEY)
        found["part"], found["number"] = part, first + np.flatnonzero(mask)
        content = _joined(None, [("messages", role, "{}") for role in self.turns]).format
        before = list(itertools.takewhile(lambda role: role != "assistant", self.turns))
        opening = _opened(["{}" for _ in before]).format
        for place, row in enumerate(zip(*(column.numbers(mask) for column in texts), strict=True)):
            found["key"][place], found["heldout"][place] = self._order(content(*row), opening(*row), path)
        return mask, found

    def _order(self, content: str, opening: str, path: Path) -> tuple[int, bool]:
        """Return the number that a row is ordered by, and whether it is held out."""
        if patterns := self.module.HELDOUT:
            heldout = any(fnmatch(path.relative_to(self.raw).as_posix(), pattern) for pattern in patterns)
        else:
            heldout = _number(opening.encode(), self._salts[2]) < self.heldout_share * 2**64
        return _number(content.encode(), self._salts[heldout]), heldout

    @cached_property
    def _salts(self) -> tuple[int, int, int]:
        """The salts of the order of trainable rows, of the order of held-out rows, and of the held-out choice."""
        salts = (f"train {self.seed}", f"heldout {self.item_seed}", f"whether {self.item_seed}")
        first, second, third = (_number(salt.encode()) for salt in salts)
        return first, second, third


def _content(example: Any) -> tuple[str, str]:
    """Return all that an example says, and all before the first reply, with each text as a number.

    The results are equal for examples that say the same, and for others only if 64-bit hashes collide.
    """
    marks, opening, replied = [], [], False
    for side in ("messages", "prompt", "chosen", "rejected"):
        for message in example.get(side, ()):
            text = str(_number(message["content"].encode()))
            marks.append((side, message["role"] + "-" * ("trained" in message), text))  # which turns are trained
            replied = replied or message["role"] == "assistant"
            if not replied:
                opening.append(text)
    return _joined(example.get("margin"), marks), _opened(opening)


def _joined(margin: float | None, marks: Iterable[tuple[str, str, str]]) -> str:
    return " ".join([repr(margin), *(" ".join(mark) for mark in marks)])


_opened = " ".join


def _number(content: bytes | memoryview, salt: int = 0) -> int:
    return xxh3_64_intdigest(content, salt)


class _Texts(NamedTuple):
    """A column of text as bytes, without Python's strings.

    Attributes:
        data: the UTF-8 of all texts.
        starts: where each begins.
        ends: where each ends; where it begins, for a null.
    """

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, batch: pa.RecordBatch, name: str) -> "_Texts":
        """Read the column `name` as bytes; nulls where it is missing or holds no text."""
        place = batch.schema.get_field_index(name)
        column = batch.column(place) if place >= 0 else pa.nulls(len(batch))
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            column = pa.nulls(len(batch), pa.string())
        column = column.cast(pa.large_string()).fill_null("")
        _, offsets, data = column.buffers()
        edges = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
        return cls(np.frombuffer(data or b"", np.uint8), edges[:-1], edges[1:])

    def visible(self) -> NDArray[np.bool_]:
        """Mark the texts that begin with a visible ASCII character, and so are not empty by any definition."""
        filled = self.ends > self.starts
        first = np.zeros(len(filled), np.uint8)
        first[filled] = self.data[self.starts[filled]]
        return (first > ord(" ")) & (first < 127)

    def numbers(self, rows: NDArray[np.bool_]) -> Iterable[int]:
        """Return the number of the text in each of `rows`."""
        view = self.data.data
        edges = zip(self.starts[rows].tolist(), self.ends[rows].tolist(), strict=True)
        return (_number(view[start:end]) for start, end in edges)

"""Which rows of a dataset are used, and why the others are not.

In: a corpus. Out: the rows that are kept, a count for every one that is not, and the benchmark items found in rows.

Rows are taken in the order of their keys (see `order`) through length, duplicates and contamination until enough are
kept; the rest count as not needed. So asking for more rows gives a superset. Rows that are held out never vary with
the seed, and no opening of a conversation stands on both sides.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alignment.corpora import Cause, Role, opening, turns, whole_text
from alignment.models import loading
from alignment.models.chat import Chat, Lengths, Template
from alignment.runtime import Refused
from alignment.sampling import decontamination, deduplication
from alignment.sampling.decontamination import Contamination, Item
from alignment.sampling.deduplication import NearDuplicates
from alignment.sampling.reader import ParsedRow, Reader
from alignment.sampling.words import hashes, normal
from alignment.scoring.benchmarks import tasks
from alignment.scoring.benchmarks.tasks import BENCHMARKS


def check_limit(max_tokens: int, base: Path) -> None:
    """Check that the base model can read rows of the longest length that is allowed.

    Raises:
        Refused: the base model cannot.
    """
    longest = loading.longest_row(base)
    if max_tokens > longest:
        raise Refused(
            f"`sample.max_tokens` is {max_tokens}, and the base model in {base} can read {longest} tokens; "
            f"set it to at most {longest} in params.yaml, or choose a `model` that reads more"
        )


class Measured(NamedTuple):
    """What decides about a row, and needs its text.

    Attributes:
        text: a hash of all its words: rows of equal words are duplicates.
        opening: a hash of the words before the first reply.
        lengths: its tokens.
        too_long: the cause for which its length refuses it, or None.
        contaminated: the benchmark items that it contains.
        signature: its MinHash.
    """

    text: bytes
    opening: bytes
    lengths: Lengths
    too_long: Cause | None
    contaminated: list[Item]
    signature: NDArray[np.uint32]


@dataclass(frozen=True)
class Measure:
    """How an example is measured.

    Attributes:
        chat: the tokenizer and the template.
        max_prompt_tokens: longer prompts are refused.
        max_tokens: longer rows are refused; the longer reply of a comparison counts.
        contamination: what finds benchmark items.
    """

    chat: Chat
    max_prompt_tokens: int
    max_tokens: int
    contamination: Contamination

    @classmethod
    def load(
        cls,
        base: Path,
        template: Template,
        max_prompt_tokens: int,
        max_tokens: int,
        benchmark_folder: Path,
        contamination_ngram: int,
    ) -> "Measure":
        """Load the tokenizer of a base model and the items of all benchmarks that were fetched."""
        texts = {task: _texts(benchmark_folder, task) for task in tasks.tasks(benchmark_folder)}
        chat = Chat(loading.tokenizer(base), template)
        return cls(chat, max_prompt_tokens, max_tokens, Contamination(texts, contamination_ngram))

    def __call__(self, example: Any) -> Measured:
        """Measure one example."""
        lengths = self.chat.lengths(example)
        long = Cause.long if lengths.prompt + max(lengths.reply, lengths.other) > self.max_tokens else None
        words = hashes(normal(whole_text(example)))
        return Measured(
            text=_digest(words.tobytes()),
            opening=_digest(" ".join(normal(opening(example))).encode()),
            lengths=lengths,
            too_long=Cause.long_prompt if lengths.prompt > self.max_prompt_tokens else long,
            contaminated=self.contamination(words),
            signature=deduplication.signature(words),
        )


def _texts(folder: Path, task: str) -> Iterator[tuple[str, str, str]]:
    """Yield the name, question and answer of each of a task's items."""
    if task in BENCHMARKS:
        yield from tasks.texts(folder, task)
        return
    items = list(tasks.items(folder, task))
    names = [tasks.name(raw) for raw in items]
    yield from ((names[number], question, answer) for number, question, answer in decontamination.telling(items))


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


@dataclass
class RowCounts:
    """Every row read has one line here: kept, held out, not needed, or dropped for a cause.

    Attributes:
        sides: how many rows could be trained on, and how many held out, before their text was looked at.
        contaminated: the id of every row dropped for the benchmark items that it contains, and these.
    """

    read: int = 0
    kept: int = 0
    heldout: int = 0
    not_needed: int = 0
    sides: tuple[int, int] = (0, 0)
    dropped: Counter[Cause] = field(default_factory=Counter)
    contaminated: list[tuple[str, list[Item]]] = field(default_factory=list)

    def metrics(self, counts: Sequence[str]) -> dict[str, int]:
        """Return flat counts that name every cause and every benchmark, so that all datasets have the same columns.

        Args:
            counts: the tasks whose items were looked for.
        """
        rows = {"read": self.read, "kept": self.kept, "heldout": self.heldout, "not_needed": self.not_needed}
        dropped = {f"dropped.{cause}": self.dropped[cause] for cause in Cause}
        touched = Counter(task for _, items in self.contaminated for task in {task for task, _ in items})
        return {
            **{f"rows.{name}": count for name, count in rows.items()},
            **dropped,
            **{f"contaminated.{task}": touched[task] for task in counts},
            "contaminated.items": len({item for _, items in self.contaminated for item in items}),
        }

    def check(self) -> None:
        """Raise `AssertionError` unless every row read is accounted for."""
        used = self.kept + self.heldout + self.not_needed + self.dropped.total()
        assert used == self.read, f"{self.read} rows read, {used} accounted for"


def choose(
    reader: Reader, kept: int, heldout: int, cap: int | None, near_duplicate: float
) -> tuple[list[ParsedRow], list[ParsedRow], RowCounts]:
    """Take rows of a corpus in the order of their keys until there are enough.

    Held-out rows are taken first, since a training row must not have the opening of one of them.

    Args:
        reader: reads the corpus; it measures a row as `Measured`.
        kept: how many rows to train on, at most.
        heldout: how many rows to hold out, at most.
        cap: how many rows of one group to take, at most, or None.
        near_duplicate: the similarity from which a row nearly repeats an earlier one.

    Returns:
        The rows to train on, the rows held out, in the order in which they were taken, and what became of every row.
    """
    keys, read, dropped = reader.keys()
    apart = int(np.count_nonzero(keys["heldout"]))
    account = RowCounts(read=read, sides=(len(keys) - apart, apart), dropped=dropped)
    taker = _Taker(reader, keys, account, cap, NearDuplicates(near_duplicate))
    held = taker.take(order(keys, heldout=True), heldout)
    taker.reserved = {row.measured.opening for row in held}
    train = taker.take(order(keys, heldout=False), kept)
    account.kept, account.heldout = len(train), len(held)
    account.check()
    return train, held, account


@dataclass
class _Taker:
    """The rows taken so far, as far as they decide about the next row."""

    reader: Reader
    keys: NDArray[Any]
    account: RowCounts
    cap: int | None
    near: NearDuplicates
    reserved: set[bytes] = field(default_factory=set)
    texts: set[bytes] = field(default_factory=set)
    groups: Counter[int] = field(default_factory=Counter)

    def take(self, places: NDArray[np.intp], wanted: int) -> list[ParsedRow]:
        """Take at most `wanted` of the rows at these places, in their order."""
        taken: list[ParsedRow] = []
        start, ahead = 0, wanted + wanted // 8 + 64  # a few more than wanted: some are dropped
        while start < len(places) and len(taken) < wanted:
            for row in self.reader.rows(self.keys[places[start : start + ahead]]):
                if len(taken) == wanted:
                    self.account.not_needed += 1
                elif cause := self.refusal(row):
                    self.account.dropped[cause] += 1
                else:
                    taken.append(row)
            start += ahead
        self.account.not_needed += max(len(places) - start, 0)
        return taken

    def refusal(self, row: ParsedRow) -> Cause | None:
        """Return why a row is not taken; None keeps it."""
        measured: Measured = row.measured
        if measured.opening in self.reserved:
            return Cause.heldout_prompt
        if measured.text in self.texts:
            return Cause.duplicate
        if self.cap is not None and self.groups[row.group] >= self.cap:
            return Cause.group_cap
        if measured.too_long:
            return measured.too_long
        if measured.contaminated:
            self.account.contaminated.append((row.id, measured.contaminated))
            return Cause.contaminated
        # The rows of a group share much; how many of them are kept is its corpus's policy.
        if self.near.has(measured.signature, row.group or None):
            return Cause.near_duplicate
        self.texts.add(measured.text)
        self.groups[row.group] += 1
        self.near.add(measured.signature, row.group or None)
        return None


def order(keys: NDArray[Any], heldout: bool) -> NDArray[np.intp]:
    """List the places of the held-out rows, or of the others, in the order in which they are taken.

    Rows go by key, and each stratum advances in proportion to its share.

    Args:
        keys: of all rows, as `order.KEY`.
        heldout: whether the held-out rows are wanted.
    """
    places = np.flatnonzero(keys["heldout"] == heldout)
    last = [keys[name][places] for name in ("number", "part", "key")]  # equal keys are equal rows: any order will do
    stratum = keys["stratum"][places]
    by_stratum = np.lexsort((*last, stratum))
    _, starts, counts = np.unique(stratum[by_stratum], return_index=True, return_counts=True)
    pace = np.empty(len(places))
    pace[by_stratum] = (np.arange(len(places)) - np.repeat(starts, counts) + 0.5) / np.repeat(counts, counts)
    return places[np.lexsort((*last, pace))]


AT_ONCE = 1000  # rows that become Python's objects at once, for the table
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
MARKED = pa.list_(pa.struct([*MESSAGES.value_type, ("trained", pa.bool_())]))  # where a turn is not trained
SCHEMAS: dict[Role, pa.Schema] = {
    Role.demonstrations: pa.schema([("id", pa.string()), ("split", pa.string()), ("messages", MESSAGES)]),
    Role.comparisons: pa.schema(
        [
            ("id", pa.string()),
            ("split", pa.string()),
            *((side, MESSAGES) for side in ("prompt", "chosen", "rejected")),
            ("margin", pa.float64()),
        ]
    ),
}
FOUND = pa.schema([("row", pa.string()), ("task", pa.string()), ("item", pa.string())])


def table(role: Role, train: list[ParsedRow], heldout: list[ParsedRow]) -> pa.Table:
    """Make the table of chosen rows in TRL's conversational format, with an id and a split (`train`, `heldout`).

    If a turn is marked as not trained, messages have a column `trained`.
    """
    schema = SCHEMAS[role]
    if any("trained" in message for row in (*train, *heldout) for message in turns(row.example)):
        schema = schema.set(schema.get_field_index("messages"), pa.field("messages", MARKED))
    chosen = [("train", row) for row in train] + [("heldout", row) for row in heldout]
    parts = (chosen[start : start + AT_ONCE] for start in range(0, len(chosen), AT_ONCE))
    tables = (
        pa.Table.from_pylist([{"id": row.id, "split": split, **row.example} for split, row in part], schema)
        for part in parts
    )
    return pa.concat_tables(tables)


def found(account: RowCounts) -> pa.Table:
    """List the benchmark items found and the rows dropped for them, as `FOUND`, sorted.

    Equal rows have one line per item.
    """
    lines = sorted({(row, *item) for row, items in account.contaminated for item in items})
    return pa.Table.from_pylist([dict(zip(FOUND.names, line, strict=True)) for line in lines], FOUND)

"""Which rows of a dataset are used, and why the others are not.

In: raw rows. Out: the rows that are kept, and a count for every one that is not.

Choice is a function of the seed and of a row's parsed content, by a keyed hash: neither the order of files nor their
number matters, and asking for more rows gives a superset. Rows are taken in the order of their keys through length,
duplicates and contamination until enough are kept; the rest count as not needed. Rows that are held out never vary
with the seed, and no opening of a conversation stands on both sides.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from alignment import files, records
from alignment.command import Refused
from alignment.corpora import Cause, Malformed, Message, Refusal, Role

WORD = re.compile(r"\w+")
SHORTEST = 8  # words; a shorter question is looked for together with its answer


@dataclass(frozen=True)
class Row:
    """A parsed row on its way through curation.

    Attributes:
        place: file and row it came from.
        example: a demonstration or a comparison.
        group: what it belongs to, such as a post, or None.
        heldout: whether it is kept from training.
        key: where it stands in the order of choice.
    """

    place: str
    example: Any
    group: Any
    heldout: bool
    key: str

    @property
    def id(self) -> str:
        """A name made of the content alone."""
        return files.digest(self.example)[:16]


@dataclass
class Account:
    """Every row read has one line here: kept, held out, not needed, or dropped for a cause."""

    read: int = 0
    kept: int = 0
    heldout: int = 0
    not_needed: int = 0
    dropped: Counter[Cause] = field(default_factory=Counter)
    contaminated: Counter[str] = field(default_factory=Counter)

    def metrics(self, benchmarks: Iterable[str]) -> dict[str, int]:
        """Flat counts, every cause and every benchmark named, so that datasets line up in one set of columns."""
        rows = {"read": self.read, "kept": self.kept, "heldout": self.heldout, "not_needed": self.not_needed}
        dropped = {f"dropped.{cause}": self.dropped[cause] for cause in Cause}
        return {
            **{f"rows.{name}": count for name, count in rows.items()},
            **dropped,
            **{f"contaminated.{name}": self.contaminated[name] for name in benchmarks},
        }

    def check(self) -> None:
        """Raise `AssertionError` unless every row read is accounted for."""
        used = self.kept + self.heldout + self.not_needed + self.dropped.total()
        assert used == self.read, f"{self.read} rows read, {used} accounted for"


def parse(
    corpus: ModuleType, role: Role, raw: Path, seed: int, item_seed: int, heldout_share: float, malformed: int
) -> tuple[list[Row], Account]:
    """Read and parse every row of a fetched corpus.

    Args:
        corpus: a file of `alignment/corpora/`.
        role: what the rows are parsed as.
        raw: the fetched folder.
        seed: orders the rows that may be trained.
        item_seed: orders the rows that are held out, and says which they are.
        heldout_share: the share of openings held out, where the corpus names no files for it.
        malformed: so many rows of the wrong shape are counted and passed over; one more stops the stage.

    Raises:
        Refused: too many rows have the wrong shape; the message shows the first few.
    """
    parser: Callable[[Any], Any] = getattr(corpus, role.value.removesuffix("s"))
    account, rows, wrong = Account(), [], []
    best: dict[Any, tuple[Any, Row]] = {}
    for path, place, raw_row in _raw_rows(raw):
        account.read += 1
        try:
            example = parser(raw_row)
            _require_unicode(example)
        except Malformed as error:
            wrong.append(f"{place}: {error}")
            account.dropped[Cause.malformed] += 1
            if len(wrong) > malformed and len(wrong) >= 5:
                break
            continue
        if isinstance(example, Refusal):
            account.dropped[example.cause] += 1
            continue
        if corpus.HELDOUT:
            heldout = any(fnmatch(path, pattern) for pattern in corpus.HELDOUT)
        else:
            heldout = files.share(normal(opening(example)), f"heldout {item_seed}") < heldout_share
        key = files.digest(example, f"heldout {item_seed}" if heldout else f"train {seed}")
        group = corpus.GROUP and raw_row[corpus.GROUP.column]
        row = Row(place, example, group, heldout, key)
        if corpus.GROUP and role is Role.demonstrations:
            rank = (corpus.GROUP.best(raw_row), row.key)
            if group in best:
                account.dropped[Cause.not_best] += 1
            if group not in best or rank > best[group][0]:
                best[group] = (rank, row)
        else:
            rows.append(row)
    if len(wrong) > malformed:
        shown = "\n".join(f"  {line}" for line in wrong[:5])
        raise Refused(
            f"{len(wrong)} or more rows have the wrong shape, {malformed} are allowed (`sample.malformed`):\n{shown}"
        )
    return [*rows, *(row for _, row in best.values())], account


def _require_unicode(example: Any) -> None:
    if isinstance(example, Refusal):
        return
    try:
        whole_text(example).encode()
    except UnicodeEncodeError as error:
        raise Malformed(f"found half a surrogate pair, {error.object[error.start]!r}, wanted Unicode text") from None


def _raw_rows(raw: Path) -> Iterator[tuple[str, str, Any]]:
    for path in sorted(raw.rglob("*")):
        if path.is_file() and path.name != "provenance.json":
            for place, row in records.rows(path):
                yield path.relative_to(raw).as_posix(), place, row


def choose(
    rows: list[Row],
    account: Account,
    cap: int | None,
    kept: int,
    heldout: int,
    too_long: Callable[[Row], Cause | None],
    contamination: Callable[[str], list[str]],
) -> tuple[list[Row], list[Row]]:
    """Take rows in the order of their keys until there are enough.

    Args:
        rows: parsed rows, in any order.
        account: counts what is kept and what is dropped.
        cap: at most so many rows of one group, or None.
        kept: how many rows to train on, at most.
        heldout: how many rows to hold out, at most.
        too_long: the cause for which a row's length refuses it, or None.
        contamination: the benchmarks of which a text contains an item.

    Returns:
        The rows to train on and the rows held out, in the order of their keys.
    """
    seen: set[str] = set()
    groups: Counter[Any] = Counter()
    reserved = {normal(opening(row.example)) for row in rows if row.heldout}

    def refusal(row: Row) -> Cause | None:
        text = normal(whole_text(row.example))
        if not row.heldout and normal(opening(row.example)) in reserved:
            return Cause.heldout_prompt
        if text in seen:
            return Cause.duplicate
        if cap is not None and groups[row.group] >= cap:
            return Cause.group_cap
        if cause := too_long(row):
            return cause
        if found := contamination(text):
            account.contaminated.update(found)
            return Cause.contaminated
        seen.add(text)
        groups[row.group] += 1
        return None

    def take(pool: list[Row], wanted: int) -> list[Row]:
        taken: list[Row] = []
        for row in sorted(pool, key=lambda row: (row.key, row.place)):
            if len(taken) == wanted:
                account.not_needed += 1
            elif cause := refusal(row):
                account.dropped[cause] += 1
            else:
                taken.append(row)
        return taken

    held = take([row for row in rows if row.heldout], heldout)
    train = take([row for row in rows if not row.heldout], kept)
    account.kept, account.heldout = len(train), len(held)
    account.check()
    return train, held


MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
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


def table(role: Role, train: list[Row], heldout: list[Row]) -> pa.Table:
    """The chosen rows in TRL's conversational format, with an id and a split, `train` or `heldout`."""
    chosen = [("train", row) for row in train] + [("heldout", row) for row in heldout]
    return pa.Table.from_pylist(
        [{"id": row.id, "split": split, **row.example} for split, row in chosen], schema=SCHEMAS[role]
    )


def describe(lengths: list[tuple[int, int]]) -> dict[str, float]:
    """What the training rows are like: tokens in all, and the length of prompts and of what follows them."""
    prompts, totals = (np.array(column) for column in zip(*lengths, strict=True))
    figures: dict[str, float] = {"tokens.total": int(totals.sum())}
    for name, values in (("prompt", prompts), ("reply", totals - prompts)):
        figures[f"tokens.{name}.mean"] = round(float(values.mean()), 1)
        figures[f"tokens.{name}.median"] = float(np.median(values))
        figures[f"tokens.{name}.p95"] = round(float(np.quantile(values, 0.95)), 1)
    return figures


def turns(example: Any) -> list[Message]:
    """All messages of an example, in order; the prompt of a comparison stands before each of its replies."""
    if "messages" in example:
        return list(example["messages"])
    return [*example["prompt"], *example["chosen"], *example["prompt"], *example["rejected"]]


def opening(example: Any) -> str:
    """What is said before the first reply: what must not stand on both sides of the held-out split."""
    messages = example["messages"] if "messages" in example else example["prompt"]
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return "\n".join(message["content"] for message in messages[: replies[0] if replies else None])


def whole_text(example: Any) -> str:
    """Everything that an example says."""
    return "\n".join(message["content"] for message in turns(example))


def normal(text: str) -> str:
    """Words alone: compatibility forms, case, punctuation and space make no difference."""
    return " ".join(WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


class Contamination:
    """Finds benchmark items in training text by shared runs of words.

    A row contains an item if they share a run of `ngram` words of the item's question and answer, or if it holds the
    whole of a shorter question. A question of less than `SHORTEST` words counts only together with its answer, and
    not at all where it has none: "to find out more" is an item of ToxiGen.

    Args:
        items: for each benchmark, the question and the answer of every item.
        ngram: words in a run.
    """

    def __init__(self, items: dict[str, Iterable[tuple[str, str]]], ngram: int) -> None:
        self._runs: dict[int, dict[str, set[str]]] = {}
        for task, texts in items.items():
            for question, answer in texts:
                asked, answered = normal(question).split(), normal(answer).split()
                words = [*asked, *answered]
                if SHORTEST <= len(asked) < ngram:
                    self._add(task, asked, ngram)
                if (len(asked) < SHORTEST and answered) or len(words) >= ngram:
                    self._add(task, words, ngram)

    def _add(self, task: str, words: list[str], ngram: int) -> None:
        length = min(ngram, len(words))
        for run in _runs(words, length):
            self._runs.setdefault(length, {}).setdefault(run, set()).add(task)

    def __call__(self, text: str) -> list[str]:
        """The benchmarks of which `text`, already `normal`, contains an item."""
        words = text.split()
        found: set[str] = set()
        for length, runs in self._runs.items():
            if length >= 4:  # three words prove nothing
                found.update(*(runs[run] for run in _runs(words, length) if run in runs))
        return sorted(found)


def _runs(words: list[str], length: int) -> Iterator[str]:
    for start in range(len(words) - length + 1):
        yield " ".join(words[start : start + length])

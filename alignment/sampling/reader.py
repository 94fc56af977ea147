"""A corpus, read twice by several processes: first the keys of all rows, then the text of those whose turn comes.

In: a fetched folder and how its rows are parsed and ordered. Out: the key of every row that can be used, with a count
for every one that cannot; and rows, parsed and measured, in the order in which they are asked for.

A row's key is a keyed hash of its parsed content, so the order of keys depends neither on the order of files nor on
their number, nor on how many processes read them. Of millions of rows nothing else stays in memory.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from alignment.corpora import Cause, Refusal, Role
from alignment.runtime import Refused, files, records
from alignment.runtime.records import Chunk, Malformed, shown
from alignment.sampling.order import KEY, Key, RowOrder

SMALL_BYTES = 1 << 26  # less than this is read before other processes have started
SHARED = (
    "alignment.sampling.curation",
    "transformers.tokenization_utils_tokenizers",
)  # imported once for all processes
SHOWN = 5  # malformed rows that a message shows


class ParsedRow(NamedTuple):
    """A row that is read for the second time.

    Attributes:
        content: a demonstration or a comparison as JSON, which takes half the memory of Python's objects.
        group: as in `Key`.
        measured: what the reader's `measure` says of the example.
    """

    content: bytes
    group: int
    measured: Any

    @property
    def example(self) -> Any:
        """The demonstration or the comparison."""
        return json.loads(self.content)

    @property
    def id(self) -> str:
        """A name made of the content alone."""
        return files.digest(self.example)[:16]


@dataclass
class Found:
    """What the first reading of a part finds, or of several.

    Attributes:
        read: how many rows there are.
        dropped: how many cannot be used, by cause.
        wrong: the first few of the wrong shape, with their places.
        keys: of the rows that can be used, as `KEY`.
        best: of a group's rows, where only the best one is used: its rank and its key.
        passed_over: the names of columns without a use.
    """

    read: int = 0
    dropped: Counter[Cause] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    keys: list[NDArray[Any]] = field(default_factory=list)
    best: dict[int, tuple[Any, Key]] = field(default_factory=dict)
    passed_over: set[str] = field(default_factory=set)

    def add(self, other: "Found") -> None:
        """Add what another part has."""
        self.read += other.read
        self.dropped += other.dropped
        self.wrong = (self.wrong + other.wrong)[:SHOWN]
        self.keys += other.keys
        self.passed_over |= other.passed_over
        for group, (rank, key) in other.best.items():
            self.compare(group, rank, key)

    def compare(self, group: int, rank: Any, key: Key) -> None:
        """Keep the better of two rows of a group, and count the other."""
        self.dropped[Cause.not_best] += group in self.best
        if group not in self.best or (rank, key.key) > (self.best[group][0], self.best[group][1].key):
            self.best[group] = rank, key


class Reader:
    """Reads a corpus.

    Args:
        policy: how rows are parsed and ordered.
        measure: computes what is wanted of an example besides the example.
        parts: what is read in one go.
        across: `map`, or that of a pool of processes that `_start` has made ready.
    """

    def __init__(
        self, policy: RowOrder, measure: Callable[[Any], Any], parts: list[Chunk], across: Callable[..., Any] | None
    ) -> None:
        self.policy = policy
        self._parts = parts
        self._find = partial(_find, policy) if across is None else _find_here
        self._take = partial(_take, policy, measure) if across is None else _take_here
        self._map: Callable[..., Any] = across or map

    def keys(self) -> tuple[NDArray[Any], int, Counter[Cause]]:
        """Return the keys of all usable rows, how many rows were read, and how many cannot be used, by cause.

        Raises:
            Refused: more rows have the wrong shape than the policy allows; the message shows the first few.
        """
        found = Found()
        with tqdm(total=len(self._parts), desc=f"{self.policy.corpus}, keys", unit="part") as progress:
            for part in self._map(self._find, range(len(self._parts)), self._parts):
                found.add(part)
                progress.update()
                if (wrong := found.dropped[Cause.malformed]) > self.policy.malformed:
                    own = files.copied(self._parts[0].path)
                    lines = "\n".join([*(f"  {line}" for line in found.wrong), *([own] if own else [])])
                    raise Refused(
                        f"{wrong} or more rows have the wrong shape, {self.policy.malformed} are allowed "
                        f"(`sample.malformed`):\n{lines}"
                    )
        if found.passed_over:
            names = shown(dict.fromkeys(sorted(found.passed_over)))
            print(f"{self.policy.corpus}, {self.policy.role}: passed over {names}")
        best = np.array([key for _, key in found.best.values()], dtype=KEY)
        return np.concatenate([*found.keys, best]), found.read, found.dropped

    def rows(self, keys: NDArray[Any]) -> list[ParsedRow]:
        """Read the rows of some keys, parsed and measured, in the order of the keys."""
        wanted: dict[int, dict[int, int]] = {}
        for place, (part, number) in enumerate(zip(keys["part"].tolist(), keys["number"].tolist(), strict=True)):
            wanted.setdefault(part, {})[number] = place
        jobs = sorted(wanted)
        taken: list[tuple[bytes, Any]] = [(b"", None)] * len(keys)
        with tqdm(total=len(keys), desc=f"{self.policy.corpus}, rows", unit="row") as progress:
            numbers = ({*wanted[job]} for job in jobs)
            for job, found in zip(jobs, self._map(self._take, (self._parts[j] for j in jobs), numbers), strict=True):
                for number, content, measured in found:
                    taken[wanted[job][number]] = content, measured
                progress.update(len(found))
        return [
            ParsedRow(content, group, measured)
            for (content, measured), group in zip(taken, keys["group"].tolist(), strict=True)
        ]


def paths(raw: Path) -> list[Path]:
    """List the files with rows in a fetched folder, sorted."""
    return sorted(path for path in raw.rglob("*") if path.is_file() and path.name != "provenance.json")


@contextlib.contextmanager
def reading(
    policy: RowOrder, make: Callable[[], Callable[[Any], Any]], processes: int | None = None
) -> Iterator[Reader]:
    """Yield a reader, with the processes that it shares its work with.

    Args:
        policy: how rows are parsed and ordered.
        make: makes the function that measures an example; it must be possible to send it to other processes.
        processes: how many. By default one for each core that this process may use, and only this one for little
            data. Their number changes nothing but the time.
    """
    found = paths(policy.raw)
    parts = [part for path in found for part in records.chunks(path)]
    if processes is None:
        small = sum(path.stat().st_size for path in found) < SMALL_BYTES
        processes = 1 if small else _cores()
    if processes == 1:
        yield Reader(policy, make(), parts, None)
        return
    # A fork of this process would copy locks that other threads hold; these are forks of one that has no threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(SHARED))
    with ProcessPoolExecutor(1, context, _end_with_stage) as other:
        measure = other.submit(make).result()  # what it imports and leaves behind goes with that process
    pool = ProcessPoolExecutor(processes, context, _start, (policy, measure))
    try:
        yield Reader(policy, measure, parts, pool.map)
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    usable = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(usable(0)) if usable else os.cpu_count() or 1


_here: list[Any] = []  # in a process of a pool: the policy and the measure, sent once


def _end_with_stage() -> None:
    """Stop this process when the stage dies: the server that it was forked from would keep it running."""
    stage = multiprocessing.parent_process()
    assert stage

    def watch() -> None:
        stage.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _start(policy: RowOrder, measure: Callable[[Any], Any]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core already
    _end_with_stage()
    _here[:] = [policy, measure]


def _find_here(number: int, part: Chunk) -> Found:
    return _find(_here[0], number, part)


def _take_here(part: Chunk, wanted: set[int]) -> list[tuple[int, bytes, Any]]:
    policy, measure = _here
    return _take(policy, measure, part, wanted)


def _find(policy: RowOrder, place: int, part: Chunk) -> Found:
    """Read a part for the first time."""
    group = policy.module.GROUP
    best = group.best if group and policy.role is Role.demonstrations else None
    passed_over = getattr(policy.module, "passed_over", None)
    found, keys = Found(), []
    for number, row in _left(policy, place, part, found):
        found.read += 1
        try:
            example = policy.parse(row)
            if isinstance(example, Refusal):
                found.dropped[example.cause] += 1
                continue
            key = policy.key(place, part.path, number, row, example)
            if passed_over:
                found.passed_over |= passed_over(row, policy.role)
        except Malformed as error:
            found.dropped[Cause.malformed] += 1
            if len(found.wrong) < SHOWN:
                found.wrong.append(f"{part.path}:{number}: {error}")
            if found.dropped[Cause.malformed] >= max(SHOWN, policy.malformed + 1):
                break
            continue
        if best:
            found.compare(key.group, best(row), key)
        else:
            keys.append(key)
    found.keys.append(np.array(keys, dtype=KEY))
    return found


def _left(policy: RowOrder, place: int, part: Chunk, found: Found) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a part that must be parsed; the keys of the others are added to `found` from their columns."""
    if not (policy.turns and records.is_parquet(part)):
        yield from records.numbered(part)
        return

    def parsed(first: int, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        plain, keys = policy.plain(place, part.path, first, batch)
        found.read += len(keys)
        found.keys.append(keys)
        return ~plain

    yield from records.chosen(part, parsed)


def _take(
    policy: RowOrder, measure: Callable[[Any], Any], part: Chunk, wanted: set[int]
) -> list[tuple[int, bytes, Any]]:
    """Read some rows of a part for the second time."""
    examples = ((number, policy.parse(row)) for number, row in records.numbered(part, wanted))
    return [(number, json.dumps(example).encode(), measure(example)) for number, example in examples]

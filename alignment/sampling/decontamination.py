"""Benchmark items in training rows, found by the runs of words that give them away.

In: the texts of items, and a row's words. Out: the items that the row contains.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.sampling.words import CHARACTER, Hashes, hashes, normal, runs

SHORTEST = 8  # words; a shorter question is looked for together with its answer
PROOF = 4  # words; a run of three proves nothing
Item = tuple[str, str]  # a benchmark, and the name of one of its items


def _parts(words: Sequence[str]) -> int:
    """Count how many words of `normal` make one: two where more than half are single characters."""
    return 1 + (2 * sum(map(bool, map(CHARACTER.match, words))) > len(words))


class Contamination:
    """Finds benchmark items in training text by shared runs of words.

    A row contains an item if they share a run of `ngram` words of the item's question and answer, or if it holds the
    whole of a shorter question. A question of less than `SHORTEST` words counts only together with its answer, and
    not at all where it has none: "to find out more" is an item of ToxiGen. Of Chinese and Japanese twice as many
    characters count.

    Args:
        items: for each benchmark, the name, the question and the answer of every item.
        ngram: words in a run.
    """

    def __init__(self, items: Mapping[str, Iterable[tuple[str, str, str]]], ngram: int) -> None:
        self._items: list[Item] = []
        self._ngram = ngram
        found: dict[int, list[tuple[int, Hashes]]] = {}  # the number of an item and its runs, by their length
        for task, texts in items.items():
            for name, question, answer in texts:
                for length, numbers in self._telling(question, answer):
                    found.setdefault(length, []).append((len(self._items), numbers))
                self._items.append((task, name))
        self._known = {length: _sorted(parts) for length, parts in found.items()}

    def _telling(self, question: str, answer: str) -> Iterator[tuple[int, Hashes]]:
        """Yield the runs that give an item away, with their length."""
        asked, answered = normal(question), normal(answer)
        words = [*asked, *answered]
        parts = _parts(words)
        longest, shortest = parts * self._ngram, parts * SHORTEST
        wanted = [asked] if shortest <= len(asked) < longest else []
        if (len(asked) < shortest and answered) or len(words) >= longest:
            wanted.append(words)
        for text in wanted:
            length, numbers = max(runs(hashes(text), longest), key=lambda run: run[0])
            if length >= parts * PROOF:
                yield length, numbers

    def __call__(self, words: Hashes) -> list[Item]:
        """List the items that a text contains, by the hashes of its words, sorted."""
        found: set[int] = set()
        for length, numbers in runs(words, max(self._known, default=0)):
            if length in self._known:
                known, items = self._known[length]
                first = np.searchsorted(known, numbers)
                hit = known[np.minimum(first, len(known) - 1)] == numbers
                for start, run in zip(first[hit], numbers[hit], strict=True):
                    found.update(items[start : np.searchsorted(known, run, side="right")].tolist())
        return sorted({self._items[number] for number in found})


def telling(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[int, str, str]]:
    """Yield texts that may be the question and the answer of items whose columns nobody has named.

    Each text of a row stands for itself, which counts from `SHORTEST` words on. A shorter one counts together with
    another short one of another column, in either order: one of them may be the question and the other its answer, or
    a wrong choice. Single letters are labels, and a text that all rows have is no item's own.

    Args:
        rows: raw rows of one task.

    Yields:
        The number of a row, and two texts for `Contamination`.
    """
    found = [{name: list(_texts(value)) for name, value in row.items()} for row in rows]
    said = [{text for texts in columns.values() for text in texts} for columns in found]
    common = set.intersection(*said) if len(said) > 1 else set()
    for number, columns in enumerate(found):
        own = [(name, text) for name, texts in columns.items() for text in texts if text not in common]
        yield from ((number, text, "") for _, text in own)
        short = [(name, text) for name, text in own if _is_short(normal(text))]
        yield from ((number, text, after) for name, text in short for other, after in short if name != other)


def _is_short(words: Sequence[str]) -> bool:
    return len(words) < _parts(words) * SHORTEST


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts inside a value, in order."""
    if isinstance(value, str) and (len(value) > 1 or value.isdecimal()):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _sorted(parts: list[tuple[int, Hashes]]) -> tuple[Hashes, NDArray[np.int32]]:
    """Sort runs, and return for each the number of its item; a run of several items occurs once for each."""
    known = np.concatenate([numbers for _, numbers in parts])
    items = np.repeat(np.array([item for item, _ in parts], dtype=np.int32), [len(n) for _, n in parts])
    order = np.argsort(known, kind="stable")
    return known[order], items[order]

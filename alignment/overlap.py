"""What texts share: runs of words that give a benchmark item away, and near duplicates.

In: texts. Out: their words without case and punctuation, the benchmark items that a text contains, whether a text
nearly repeats another one.

Words are compared by 64-bit hashes and runs of words by polynomials over them. That two different runs of a million
rows and of all benchmarks meet in one hash by chance is expected once in ten thousand such datasets.
"""

import hashlib
import re
import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\w+")
# Chinese and Japanese have no space between words, so each of their characters stands for itself: half a word, about.
CHARACTERS = "\u3005\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
CHARACTER = re.compile(f"[{CHARACTERS}]")
APART = re.compile(rf"[{CHARACTERS}]|[^\W{CHARACTERS}]+")
SHORTEST = 8  # words; a shorter question is looked for together with its answer
PROOF = 4  # words; a run of three proves nothing
SHINGLE = 5  # words of the runs by which near duplicates are compared
PERMUTATIONS = 128  # of MinHash: an estimated similarity is within 0.07 of the true one, 19 times of 20, at 0.8
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # of the polynomials; odd, so that no word's hash is lost

Hashes = NDArray[np.uint64]
Item = tuple[str, str]  # a benchmark, and the name of one of its items


def normal(text: str) -> list[str]:
    """A text's words: compatibility forms, case, punctuation and space make no difference."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return (WORD if plain.isascii() else APART).findall(plain)


def _parts(words: Sequence[str]) -> int:
    """How many words as `normal` has them make one: two where more than half are single characters."""
    return 1 + (2 * sum(map(bool, map(CHARACTER.match, words))) > len(words))


def hashes(words: Iterable[str]) -> Hashes:
    """A number for each word."""
    joined = b"".join(hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words)
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64)


def runs(words: Hashes, longest: int) -> Iterator[tuple[int, Hashes]]:
    """For each length up to `longest` a number for each run of so many words; nothing where there are fewer words."""
    found = words[:0]
    for length in range(1, min(longest, len(words)) + 1):
        found = words.copy() if length == 1 else found[:-1] * FACTOR + words[length - 1 :]
        yield length, found


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
        """The runs that give an item away, with their length."""
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
        """The items that a text contains, by the hashes of its words, sorted."""
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
    """What may be the question and the answer of items whose columns nobody has named.

    Each text of a row stands for itself, which counts from `SHORTEST` words on. A shorter one counts together with
    another short one of another column, in either order: one of them may be the question and the other its answer, or
    a wrong choice. Single letters are labels, and a text that all rows have is no item's own.

    Args:
        rows: of one task.

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
    """The texts inside a value, in order."""
    if isinstance(value, str) and (len(value) > 1 or value.isdecimal()):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _sorted(parts: list[tuple[int, Hashes]]) -> tuple[Hashes, NDArray[np.int32]]:
    """Runs in order, one that several items have as often, and for each the number of its item."""
    known = np.concatenate([numbers for _, numbers in parts])
    items = np.repeat(np.array([item for item, _ in parts], dtype=np.int32), [len(n) for _, n in parts])
    order = np.argsort(known, kind="stable")
    return known[order], items[order]


def signature(words: Hashes) -> NDArray[np.uint32]:
    """A text's MinHash (Broder 1997) over its runs of `SHINGLE` words, or over all of fewer words."""
    *_, (_, numbers) = [(0, words), *runs(words, SHINGLE)]
    sketch = _empty().copy()
    sketch.update_batch((numbers >> np.uint64(32)).tolist())
    return np.asarray(sketch.hashvalues, dtype=np.uint32)


class NearDuplicates:
    """Texts that were kept, by their signatures.

    Args:
        similarity: the share of runs that two texts have in common, of the runs that either has (Jaccard), from
            which they count as nearly the same, as MinHash estimates it.
    """

    def __init__(self, similarity: float) -> None:
        from datasketch import MinHashLSH

        # Texts are compared that agree in one of so many bands of a signature. The library's own index of them takes
        # three times the memory.
        bands = MinHashLSH(min(similarity, 0.9), PERMUTATIONS)  # above, there would be too few
        self._shape = bands.b, bands.r
        self._similarity = similarity
        self._kept: list[tuple[NDArray[np.uint32], Hashable]] = []
        self._in_band: dict[int, tuple[int, ...]] = {}

    def has(self, signature: NDArray[np.uint32], group: Hashable = None) -> bool:
        """Whether a kept text nearly says the same; one of the same group, other than None, does not count."""
        near = {number for band in self._bands(signature) for number in self._in_band.get(band, ())}
        return any(
            (group is None or group != other) and float(np.mean(kept == signature)) >= self._similarity
            for kept, other in map(self._kept.__getitem__, near)
        )

    def add(self, signature: NDArray[np.uint32], group: Hashable = None) -> None:
        """Keep a text."""
        for band in self._bands(signature):
            self._in_band[band] = (*self._in_band.get(band, ()), len(self._kept))
        self._kept.append((signature, group))

    def _bands(self, signature: NDArray[np.uint32]) -> list[int]:
        bands, width = self._shape
        return [hash((band, signature[band * width : (band + 1) * width].tobytes())) for band in range(bands)]


@cache
def _empty() -> Any:
    from datasketch import MinHash

    return MinHash(PERMUTATIONS, hashfunc=int)

"""Words and runs of words as numbers, to compare texts by.

In: texts. Out: their words without case and punctuation, as 64-bit hashes; runs of words as polynomials over them.
That two different runs of a million rows and of all benchmarks meet in one hash by chance is expected once in ten
thousand such datasets.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\w+")
# Chinese and Japanese have no space between words, so each of their characters stands for itself: half a word, about.
CHARACTERS = "\u3005\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
CHARACTER = re.compile(f"[{CHARACTERS}]")
APART = re.compile(rf"[{CHARACTERS}]|[^\W{CHARACTERS}]+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # of the polynomials; odd, so that no word's hash is lost

Hashes = NDArray[np.uint64]


def normal(text: str) -> list[str]:
    """List a text's words; compatibility forms, case, punctuation and space make no difference."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return (WORD if plain.isascii() else APART).findall(plain)


def hashes(words: Iterable[str]) -> Hashes:
    """Hash each word to a number."""
    joined = b"".join(hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words)
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64)


def runs(words: Hashes, longest: int) -> Iterator[tuple[int, Hashes]]:
    """Yield each length up to `longest` with a number for each run of that many words.

    Lengths beyond the number of words are left out.
    """
    found = words[:0]
    for length in range(1, min(longest, len(words)) + 1):
        found = words.copy() if length == 1 else found[:-1] * FACTOR + words[length - 1 :]
        yield length, found

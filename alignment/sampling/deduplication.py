"""Near duplicates: whether a text nearly repeats an earlier one.

In: texts. Out: those that share most of their runs of words with an earlier text, found by MinHash.
"""

from collections.abc import Hashable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.sampling.words import Hashes, runs

SHINGLE = 5  # words of the runs by which near duplicates are compared
PERMUTATIONS = 128  # of MinHash: an estimated similarity is within 0.07 of the true one, 19 times of 20, at 0.8


def signature(words: Hashes) -> NDArray[np.uint32]:
    """Compute a text's MinHash (Broder 1997) over its runs of `SHINGLE` words.

    A text of fewer words counts as one run.
    """
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
        """Return whether a kept text is nearly the same; one of the same group does not count, except for None."""
        near = {number for band in self._bands(signature) for number in self._in_band.get(band, ())}
        return any(
            (group is None or group != other) and float(np.mean(kept == signature)) >= self._similarity
            for kept, other in map(self._kept.__getitem__, near)
        )

    def add(self, signature: NDArray[np.uint32], group: Hashable = None) -> None:
        """Keep the signature of a text."""
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

"""A prefix tree of token sequences, cut into rows and batches: what several begin with stands once.

In: requests, as tokens. Out: the rows of each forward pass, planned over all requests before they are dealt to
processes, so that the numbers do not depend on how many there are.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignment.runtime import Refused

if TYPE_CHECKING:
    pass


ROW = 512  # tokens of a subtree that may be one row: attention in a row grows with its square
# What a forward pass costs besides its tokens, in tokens: a GPU reads all weights for however few of them.
OVERHEAD = {"cpu": 64, "cuda": 256}


class Request(NamedTuple):
    """A request: the tokens of a continuation after those of a context, at least one of each."""

    context: Sequence[int]
    continuation: Sequence[int]


class Span(NamedTuple):
    """A row to be laid out: the sequences `low` to `high` of a tree, whose first `depth` tokens are computed before."""

    depth: int
    low: int
    high: int


class PackedRow(NamedTuple):
    """A subtree laid out in one row.

    Attributes:
        tokens: what the model reads.
        positions: where each stands in its sequence.
        branches: for each sequence `(start, end, path)`: its own tokens stand at `start` to `end` (exclusive) of the
            row, and `path` holds the places in the row of the tokens that it begins with.
        paths: for each sequence the places of its tokens in the row.
    """

    tokens: list[int]
    positions: list[int]
    branches: list[tuple[int, int, NDArray[np.intp]]]
    paths: list[NDArray[np.intp]]


class Tree:
    """Sequences in lexicographic order, in which equal beginnings lie side by side.

    Args:
        requests: what is scored.
        longest: tokens that the model can read.

    Attributes:
        sequences: what the model reads, each once.
        scored: the number and the tokens to predict of each request, by sequence.
        shared: how many tokens a sequence begins with that the one before it begins with; 0 for the first.
        unscored: how many tokens at the start of a sequence are scored for no request.

    Raises:
        Refused: a request has an empty side, or more tokens than the model can read and one more, which it predicts.
    """

    def __init__(self, requests: Sequence[Request], longest: int) -> None:
        found: dict[tuple[int, ...], list[tuple[int, Sequence[int]]]] = {}
        for number, (context, continuation) in enumerate(requests):
            whole = (*context, *continuation)
            if not context or not continuation or len(whole) > longest + 1:
                raise Refused(
                    f"request {number} has {len(context)} tokens of context and {len(continuation)} of continuation; "
                    f"wanted at least one of each, and no more than {longest + 1} together: the model can read "
                    f"{longest}"
                )
            found.setdefault(whole[:-1], []).append((number, continuation))
        self.sequences = sorted(found)
        self.scored = [found[sequence] for sequence in self.sequences]
        self.shared = np.array([0, *(_common(*pair) for pair in pairwise(self.sequences))], dtype=np.intp)
        self.lengths = np.array([len(sequence) for sequence in self.sequences], dtype=np.intp)
        predicted = [max(len(continuation) for _, continuation in scored) for scored in self.scored]
        self.unscored = self.lengths - np.array(predicted, dtype=np.intp)
        self._own = np.concatenate([[0], np.cumsum(self.lengths - self.shared)])

    def tokens(self, span: Span) -> int:
        """Count the tokens of a row."""
        rest = self._own[span.high] - self._own[span.low + 1]
        return int(self.lengths[span.low] - span.depth + rest)

    def parts(self, span: Span) -> list[Span]:
        """List the subtrees at a span's first branching."""
        inside = self.shared[span.low + 1 : span.high]
        cuts = [span.low, *(np.flatnonzero(inside == inside.min()) + span.low + 1).tolist(), span.high]
        return [Span(span.depth, low, high) for low, high in pairwise(cuts)]

    def row(self, span: Span) -> PackedRow:
        """Lay out a span's row, sequence after sequence."""
        tokens: list[int] = []
        positions: list[int] = []
        branches, paths = [], []
        path = np.zeros(0, dtype=np.intp)
        for number in range(span.low, span.high):
            kept = int(self.shared[number]) - span.depth if number > span.low else 0
            start, sequence = len(tokens), self.sequences[number]
            tokens += sequence[span.depth + kept :]
            positions += range(span.depth + kept, len(sequence))
            branches.append((start, len(tokens), path[:kept]))
            path = np.concatenate([path[:kept], np.arange(start, len(tokens))])
            paths.append(path)
        return PackedRow(tokens, positions, branches, paths)


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Count the tokens at the start of two sequences that are the same."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


def rows(tree: Tree, width: int, overhead: int) -> list[Span]:
    """Cut a tree into rows.

    A subtree is one row where that costs less than a row for each of its parts, which would repeat what they share.
    What the rows of a larger subtree begin with is computed once where that saves more than it costs.

    Args:
        tree: the tree.
        width: the model's hidden size; attention over 6 times as many tokens costs as much as the rest of a layer.
        overhead: the cost of a prefix of its own besides its tokens, in tokens: its rows share batches with no others.
    """

    def cost(span: Span) -> float:
        tokens = tree.tokens(span)
        return tokens * (1 + tokens / (6 * width))

    cut: list[Span] = []
    left = [Span(0, 0, len(tree.sequences))] if tree.sequences else []
    while left:
        span = left.pop()
        parts = tree.parts(span) if span.high - span.low > 1 else []
        if not parts or (tree.tokens(span) <= ROW and cost(span) <= sum(map(cost, parts))):
            cut.append(span)
            continue
        inside = slice(span.low + 1, span.high)
        depth = int(min(tree.shared[inside].min(), tree.unscored[span.low : span.high].min()))
        saved = (depth - span.depth) * (len(parts) - 1)
        left += [part._replace(depth=depth) for part in parts] if saved > depth + overhead else parts
    return cut


def plan(tree: Tree, spans: Iterable[Span], token_budget: int, overhead: int) -> list[list[Span]]:
    """Group rows into batches: rows of one prefix together, longest first, cut where padding and passes cost least.

    Args:
        tree: the tree.
        spans: its rows.
        token_budget: rows times their longest, at most; a longer row is a batch of its own.
        overhead: the cost of a batch besides its tokens and its padding, in tokens.
    """
    groups: dict[tuple[int, ...], list[Span]] = {}
    for span in spans:
        groups.setdefault(tree.sequences[span.low][: span.depth], []).append(span)
    batches: list[list[Span]] = []
    for prefix in sorted(groups, key=lambda prefix: (-len(groups[prefix]), prefix)):
        group = sorted(groups[prefix], key=lambda span: (-tree.tokens(span), span))
        ends = _cuts(np.array([tree.tokens(span) for span in group]), token_budget, overhead)
        batches += [group[start:end] for start, end in pairwise([0, *ends])]
    return batches


def _cuts(lengths: NDArray[np.intp], token_budget: int, overhead: int) -> list[int]:
    """List where the cheapest batches of rows end, longest first.

    A batch costs its number of rows times its longest row, plus the overhead of a forward pass.
    """
    costs, before = np.zeros(len(lengths) + 1), np.zeros(len(lengths) + 1, dtype=np.intp)
    low = 0
    for end in range(1, len(lengths) + 1):
        while low < end - 1 and (end - low) * lengths[low] > token_budget:
            low += 1
        tried = costs[low:end] + np.arange(end - low, 0, -1) * lengths[low:end]
        before[end] = low + int(tried.argmin())
        costs[end] = tried.min() + overhead
    ends = [len(lengths)]
    while before[ends[-1]]:
        ends.append(int(before[ends[-1]]))
    return ends[::-1]

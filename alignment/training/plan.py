"""Which rows make up each optimiser step of a run, and how a step is dealt to forward passes and processes.

In: how many tokens of each row are trained, and a budget. Out: lists of row numbers. All of a run is decided before its
first step, from the seed alone: a run that was killed goes on with the same rows, and neither the rows of a forward
pass nor the number of processes changes what an optimiser step is made of.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from alignment.runtime import Refused

LARGEST = 10_000  # rows of a step: dealing it to forward passes takes memory by their square, here a gigabyte


class Budget(StrEnum):
    """What says how long training is: passes over the rows, or trained tokens, the same for every dataset."""

    epochs = "epochs"
    tokens = "tokens"


@dataclass(frozen=True)
class Plan:
    """A whole run: the rows of every optimiser step, and what is known of each row.

    Attributes:
        names: the ids of the rows.
        lengths: tokens of each row, of its longer side where it has two.
        trained: trained tokens of each row.
        steps: row numbers, by step.
        per_device_batch: how many of a step's longest rows a forward pass has room for.
    """

    names: Sequence[str]
    lengths: Sequence[int]
    trained: Sequence[int]
    steps: list[list[int]]
    per_device_batch: int

    def tokens(self, first: int = 0) -> int:
        """Count the trained tokens of the steps from number `first` on."""
        return sum(self.trained[row] for step in self.steps[first:] for row in step)

    def amounts(self) -> dict[str, Any]:
        """Return the amount of training as metrics: rows, steps, passes over the rows, trained tokens."""
        taken = sum(map(len, self.steps))
        passes = round(taken / len(self.names), 4)
        return {"rows": len(self.names), "steps": len(self.steps), "passes": passes, "tokens.trained": self.tokens()}


def by_epochs(rows: int, epochs: int, batch: int, seed: int) -> list[list[int]]:
    """Plan steps of `batch` rows; each pass has an order of its own, and its last step takes what is left."""
    orders = passes(rows, seed)
    whole = [next(orders) for _ in range(epochs)]
    return [order[start : start + batch] for order in whole for start in range(0, rows, batch)]


def by_tokens(trained: Sequence[int], tokens: int, steps: int, seed: int) -> list[list[int]]:
    """Plan `steps` steps that train `tokens` tokens in all, about the same number in each, whatever the rows are.

    The rows are repeated, pass after pass, as often as that takes. After each step the tokens trained so far are within
    half a row of their share of the budget, so that the whole run is within half a row of it.

    Args:
        trained: how many tokens of each row are trained, at least one.
        tokens: trained tokens of the whole run.
        steps: optimiser steps.
        seed: the order of rows.

    Raises:
        Refused: a row has more trained tokens than a step.
    """
    if max(trained) > tokens / steps:
        raise Refused(
            f"{tokens} tokens in {steps} steps are {tokens // steps} a step, and one row alone trains {max(trained)}; "
            "raise `tokens` or lower `steps` in params.yaml"
        )
    stream = (row for order in passes(len(trained), seed) for row in order)
    planned: list[list[int]] = []
    row, seen = next(stream), 0
    for number in range(1, steps + 1):
        step = []
        while seen + trained[row] / 2 <= number * tokens / steps:
            step.append(row)
            seen += trained[row]
            row = next(stream)
        planned.append(step)
    return planned


def passes(rows: int, seed: int) -> Iterator[list[int]]:
    """Yield the order of rows in pass after pass."""
    number = 0
    while True:
        yield np.random.default_rng((seed, number)).permutation(rows).tolist()
        number += 1


def rate(step: int, steps: int, warmup: int) -> float:
    """Return a step's share of the peak learning rate: a linear warm-up, then a cosine towards zero.

    The first of `warmup` steps has 1/(warmup + 1), so that no batch is wasted; the step after them has the peak.
    The step after the last one would have 0.

    Args:
        step: from 0.
        steps: of the whole run.
        warmup: steps before the peak.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * done)))


def forward_passes(step: Sequence[int], lengths: Sequence[int], per_device: int, processes: int) -> list[list[int]]:
    """Cut a step's rows, by falling length, into parts for all processes, with the least padding.

    There are as many parts as if each process took `per_device` rows of each. Short rows may go together in larger
    numbers, as long as no pass becomes larger, padding included, than `per_device` of the step's longest rows are.

    Each process takes every `processes`-th row of a part. All have equally many, since some figures are gathered row by
    row; rows that do not go round make a last part, of fewer rows than there are processes.

    Args:
        step: row numbers.
        lengths: the length of every row, in tokens.
        per_device: rows a forward pass has room for, as long as the longest of the step.
        processes: how many processes share the step.
    """
    order = sorted(step, key=lambda row: (-lengths[row], row))
    longest = [lengths[row] for row in order[: len(order) - len(order) % processes : processes]]  # of each round
    edges = [rounds * processes for rounds in _cuts(longest, per_device)]
    parts = [order[start:end] for start, end in itertools.pairwise(edges)]
    return parts + ([order[edges[-1] :]] if edges[-1] < len(order) else [])


def _cuts(lengths: Sequence[int], size: int) -> list[int]:
    """Cut rows of falling length into ceil(len/size) padded rectangles of the least total area.

    None is larger than `size` rows of the longest. The method is dynamic programming over the number of rectangles.

    Returns:
        The edges, from 0 to the number of rows.
    """
    rows = len(lengths)
    if not rows:
        return [0]
    start, end = np.ogrid[:rows, 1 : rows + 1]
    area = np.asarray(lengths, dtype=float)[:, None] * (end - start)
    area[(end <= start) | (area > size * lengths[0])] = np.inf
    least, before = area[0], []  # of the rows up to each, by so many rectangles
    for _ in range(-(-rows // size) - 1):
        total = least[:-1, None] + area[1:]
        before.append(total.argmin(axis=0) + 1)
        least = total.min(axis=0)
    edges = [rows]
    for edge in reversed(before):
        edges.insert(0, int(edge[edges[0] - 1]))
    return [0, *edges]

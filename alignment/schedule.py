"""Which rows make up each optimiser step of a run, and how a step is dealt to forward passes and processes.

In: how many tokens of each row are trained, and a budget. Out: lists of row numbers. All of a run is decided before its
first step, from the seed alone: a run that was killed goes on with the same rows, and neither the rows of a forward
pass nor the number of processes changes what an optimiser step is made of.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from alignment.command import Refused


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
        per_device_batch: rows a forward pass, at most.
    """

    names: Sequence[str]
    lengths: Sequence[int]
    trained: Sequence[int]
    steps: list[list[int]]
    per_device_batch: int

    def tokens(self, first: int = 0) -> int:
        """The trained tokens of the steps from number `first` on."""
        return sum(self.trained[row] for step in self.steps[first:] for row in step)

    def amounts(self) -> dict[str, Any]:
        """How much is trained, as metrics: rows, steps, passes over the rows, trained tokens."""
        taken = sum(map(len, self.steps))
        passes = round(taken / len(self.names), 4)
        return {"rows": len(self.names), "steps": len(self.steps), "passes": passes, "tokens.trained": self.tokens()}


def by_epochs(rows: int, epochs: int, batch: int, seed: int) -> list[list[int]]:
    """Steps of `batch` rows; each pass is in an order of its own, and its last step takes what is left."""
    orders = passes(rows, seed)
    whole = [next(orders) for _ in range(epochs)]
    return [order[start : start + batch] for order in whole for start in range(0, rows, batch)]


def by_tokens(trained: Sequence[int], tokens: int, steps: int, seed: int) -> list[list[int]]:
    """So many steps that train so many tokens, about the same number in each, whatever the rows are.

    Rows are passed over as often as that takes. After each step the tokens trained so far are within half a row of
    their share of the budget, so that the whole run is within half a row of it.

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
    """The orders of pass after pass over so many rows."""
    number = 0
    while True:
        yield np.random.default_rng((seed, number)).permutation(rows).tolist()
        number += 1


def forward_passes(step: Sequence[int], lengths: Sequence[int], per_device: int, processes: int) -> list[list[int]]:
    """A step's rows by falling length, so that rows of a forward pass need little padding, in parts for all processes.

    Each process takes every `processes`-th row of a part. All have equally many, since some figures are gathered row by
    row; rows that do not go round make a last part, of fewer rows than there are processes.

    Args:
        step: row numbers.
        lengths: the length of every row, in tokens.
        per_device: rows a forward pass, at most.
        processes: how many processes share the step.
    """
    order = sorted(step, key=lambda row: (-lengths[row], row))
    round_trip = len(order) - len(order) % processes
    size = per_device * processes
    parts = [order[start : min(start + size, round_trip)] for start in range(0, round_trip, size)]
    return parts + ([order[round_trip:]] if round_trip < len(order) else [])

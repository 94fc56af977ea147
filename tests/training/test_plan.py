"""The plan of a run: what a pass, a step and a forward pass are made of, whatever the rows, the budget and the seed."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Parameter
from torch.optim import SGD
from transformers import get_cosine_schedule_with_warmup

from alignment.runtime import Refused
from alignment.training import plan

SEEDS = st.integers(0, 2**32 - 1)
TRAINED = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@st.composite
def budgets(draw: st.DrawFn, longest: int) -> tuple[int, int]:
    """Tokens and steps of a run whose steps are large enough for the longest row."""
    steps = draw(st.integers(1, 12))
    return draw(st.integers(longest * steps, 4 * longest * steps + 7)), steps


def flat(steps: list[list[int]]) -> list[int]:
    return [row for step in steps for row in step]


def assert_whole_passes(taken: list[int], rows: int) -> None:
    """Each pass has every row once before the next begins; the last may stop early, and repeats none."""
    for start in range(0, len(taken), rows):
        part = taken[start : start + rows]
        assert len(set(part)) == len(part)
        assert set(part) <= set(range(rows))


# By epochs


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 20), SEEDS)
def test_each_epoch_has_every_row_once_in_steps_of_a_batch(rows: int, epochs: int, batch: int, seed: int) -> None:
    steps = plan.by_epochs(rows, epochs, batch, seed)
    taken = flat(steps)
    assert len(taken) == rows * epochs
    assert_whole_passes(taken, rows)
    sizes = [len(step) for step in steps]
    a_pass = [batch] * (rows // batch) + ([rows % batch] if rows % batch else [])
    assert sizes == a_pass * epochs


# From 20 rows on, two random orders are alike once in 10^18.
@given(st.integers(20, 60), st.integers(1, 20), SEEDS, SEEDS)
def test_each_epoch_and_each_seed_has_an_order_of_its_own(rows: int, batch: int, seed: int, other: int) -> None:
    taken = flat(plan.by_epochs(rows, 3, batch, seed))
    orders = [tuple(taken[start : start + rows]) for start in range(0, len(taken), rows)]
    assert len({*orders, tuple(range(rows))}) == 4
    assert plan.by_epochs(rows, 3, batch, seed) == plan.by_epochs(rows, 3, batch, seed)
    if other != seed:
        assert flat(plan.by_epochs(rows, 3, batch, other)) != taken


@given(st.integers(1, 60), st.integers(1, 3), st.integers(1, 20), SEEDS)
def test_more_epochs_begin_as_fewer_do(rows: int, epochs: int, batch: int, seed: int) -> None:
    fewer = plan.by_epochs(rows, epochs, batch, seed)
    assert plan.by_epochs(rows, epochs + 1, batch, seed)[: len(fewer)] == fewer


# By tokens


@given(st.data(), TRAINED, SEEDS)
def test_trained_tokens_keep_to_their_share_after_each_step(data: st.DataObject, trained: list[int], seed: int) -> None:
    tokens, steps = data.draw(budgets(max(trained)))
    planned = plan.by_tokens(trained, tokens, steps, seed)
    assert len(planned) == steps
    assert all(planned)
    seen = 0
    for number, step in enumerate(planned, start=1):
        seen += sum(trained[row] for row in step)
        # |seen - number·tokens/steps| ≤ max/2, in whole numbers
        assert abs(seen * steps - number * tokens) * 2 <= max(trained) * steps
    assert abs(seen - tokens) * 2 <= max(trained)


@given(st.data(), TRAINED, SEEDS)
def test_a_budget_of_tokens_passes_over_all_rows_before_it_repeats_one(
    data: st.DataObject, trained: list[int], seed: int
) -> None:
    tokens, steps = data.draw(budgets(max(trained)))
    taken = flat(plan.by_tokens(trained, tokens, steps, seed))
    assert_whole_passes(taken, len(trained))
    # In the orders of `epochs`: the same rows first, whichever budget says how long training is.
    epochs = -(-len(taken) // len(trained))
    assert flat(plan.by_epochs(len(trained), epochs, 1, seed))[: len(taken)] == taken


@given(st.data(), TRAINED, SEEDS)
def test_a_longer_run_of_equal_steps_begins_as_the_shorter_one(
    data: st.DataObject, trained: list[int], seed: int
) -> None:
    tokens, steps = data.draw(budgets(max(trained)))
    assert plan.by_tokens(trained, 2 * tokens, 2 * steps, seed)[:steps] == plan.by_tokens(trained, tokens, steps, seed)


@given(st.data(), TRAINED, TRAINED, SEEDS)
def test_datasets_of_unlike_rows_get_the_same_steps_and_tokens(
    data: st.DataObject, one: list[int], other: list[int], seed: int
) -> None:
    tokens, steps = data.draw(budgets(max(one + other)))
    plans = [plan.by_tokens(trained, tokens, steps, seed) for trained in (one, other)]
    assert [len(planned) for planned in plans] == [steps, steps]
    totals = [sum(trained[row] for row in flat(planned)) for trained, planned in zip((one, other), plans, strict=True)]
    assert abs(totals[0] - totals[1]) * 2 <= max(one) + max(other)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 12), SEEDS)
def test_a_row_larger_than_a_step_is_refused_and_one_as_large_is_not(
    longest: int, shortest: int, steps: int, seed: int
) -> None:
    trained = [min(shortest, longest), longest]
    assert len(plan.by_tokens(trained, longest * steps, steps, seed)) == steps
    with pytest.raises(Refused) as refusal:
        plan.by_tokens(trained, longest * steps - 1, steps, seed)
    assert str(refusal.value) == (
        f"{longest * steps - 1} tokens in {steps} steps are {(longest * steps - 1) // steps} a step, and one row alone "
        f"trains {longest}; raise `tokens` or lower `steps` in params.yaml"
    )


def test_another_seed_is_another_plan_of_as_many_tokens() -> None:
    trained = list(range(1, 41))
    plans = [plan.by_tokens(trained, 2000, 10, seed) for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


# Learning rates


@given(st.integers(1, 60), st.integers(0, 60))
def test_every_step_has_a_rate_and_the_one_after_warm_up_the_peak(steps: int, warmup: int) -> None:
    rates = [plan.rate(step, steps, min(warmup, steps)) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    up, down = rates[:warmup], rates[warmup:]
    assert up == [number / (len(up) + 1) for number in range(1, len(up) + 1)]
    assert down == sorted(down, reverse=True) and (not down or down[0] == 1)


@given(st.integers(1, 60), st.integers(0, 60))
def test_after_warm_up_rates_are_those_of_transformers_cosine(steps: int, warmup: int) -> None:
    theirs = get_cosine_schedule_with_warmup(SGD([Parameter(torch.zeros(1))]), warmup, steps).lr_lambdas[0]
    for step in range(warmup, steps + 1):
        assert plan.rate(step, steps, warmup) == theirs(step)


# Forward passes


@st.composite
def dealt(draw: st.DrawFn) -> tuple[list[int], list[int], int, int]:
    """A step of some of the rows, their lengths, rows a process and forward pass, processes."""
    lengths = draw(st.lists(st.integers(1, 100), min_size=1, max_size=40))
    step = draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=40))
    return step, lengths, draw(st.integers(1, 9)), draw(st.integers(1, 5))


@given(dealt())
def test_forward_passes_take_every_row_of_a_step_once(case: tuple[list[int], list[int], int, int]) -> None:
    step, lengths, per_device, processes = case
    parts = plan.forward_passes(step, lengths, per_device, processes)
    assert all(parts)
    # A step may hold a row twice, where it is larger than the set.
    assert sorted(flat(parts)) == sorted(step)
    taken = [lengths[row] for row in flat(parts)]
    assert taken == sorted(taken, reverse=True)


@given(dealt())
def test_no_process_has_more_rows_than_another_nor_a_larger_pass_than_there_is_room_for(
    case: tuple[list[int], list[int], int, int],
) -> None:
    step, lengths, per_device, processes = case
    parts = plan.forward_passes(step, lengths, per_device, processes)
    for number, part in enumerate(parts, start=1):
        counts = [len(part[rank::processes]) for rank in range(processes)]
        assert lengths[part[0]] * max(counts) <= lengths[parts[0][0]] * per_device
        assert len(set(counts)) == 1 or (number == len(parts) and max(counts) == 1)
    whole, left = divmod(len(step), processes)
    assert len(parts) == -(-whole // per_device) + bool(left)  # as few as if all rows were as long as the longest


@given(st.lists(st.integers(1, 20), min_size=1, max_size=9), st.integers(1, 5))
def test_no_other_cuts_leave_less_padding(lengths: list[int], per_device: int) -> None:
    parts = plan.forward_passes(range(len(lengths)), lengths, per_device, 1)

    def size(cut: Sequence[list[int]]) -> int:
        return sum(max(lengths[row] for row in part) * len(part) for part in cut)

    order = flat(parts)
    ways = [
        [order[start:end] for start, end in itertools.pairwise((0, *inner, len(order)))]
        for inner in itertools.combinations(range(1, len(order)), len(parts) - 1)
    ]
    assert size(parts) == min(size(way) for way in ways if all(size([p]) <= per_device * max(lengths) for p in way))


@given(dealt())
def test_the_order_of_a_step_does_not_change_its_forward_passes(case: tuple[list[int], list[int], int, int]) -> None:
    step, *rest = case
    assert plan.forward_passes(step, *rest) == plan.forward_passes(step[::-1], *rest)

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.train.order import StepOrder


def lengths(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1, 100, n).tolist()


def steps_of(n: int, batch: int, accumulation: int, processes: int, epoch: int = 0) -> list[list[int]]:
    """The rows of each step, put together again from the micro-batches of all processes."""
    orders = [
        StepOrder(lengths(n), batch_size=batch, accumulation=accumulation, processes=processes, process=process, seed=7)
        for process in range(processes)
    ]
    for order in orders:
        order.set_epoch(epoch)
    dealt = [list(order) for order in orders]
    assert {len(d) for d in dealt} == {len(orders[0])}, "every process has as many micro-batches as it says"
    steps = []
    for start in range(0, len(orders[0]), accumulation):
        steps.append(
            sorted(row for d in dealt for micro_batch in d[start : start + accumulation] for row in micro_batch)
        )
    return steps


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 70), split=st.sampled_from([(8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2)]))
def test_a_step_holds_the_same_rows_however_it_is_split(n: int, split: tuple[int, int, int]) -> None:
    assert steps_of(n, *split) == steps_of(n, 8, 1, 1)


@given(n=st.integers(1, 70), processes=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_every_row_comes_once_in_an_epoch(n: int, processes: int) -> None:
    rows = Counter(row for step in steps_of(n, 3, 2, processes) for row in step)
    assert rows == Counter(range(n))


def test_a_process_without_rows_gets_an_empty_micro_batch_not_somebody_elses_row() -> None:
    order = StepOrder([5, 6, 7], batch_size=4, processes=4, process=3)
    assert list(order) == [[]]


def test_epochs_and_seeds_differ_and_are_reproducible() -> None:
    def first_step(seed: int, epoch: int) -> list[int]:
        order = StepOrder(lengths(64), batch_size=8, seed=seed)
        order.set_epoch(epoch)
        return next(iter(order))

    assert first_step(1, 0) == first_step(1, 0)
    assert first_step(1, 0) != first_step(1, 1)
    assert first_step(1, 0) != first_step(2, 0)


def test_rows_of_like_length_stand_together() -> None:
    sizes = lengths(256)
    padded = sum(max(sizes[i] for i in rows) * len(rows) for rows in StepOrder(sizes, batch_size=8))
    unsorted = StepOrder(sizes, batch_size=8, shuffle=False)
    as_they_come = sum(max(sizes[i] for i in rows) * len(rows) for rows in unsorted)
    assert padded < 1.15 * sum(sizes) < as_they_come


@pytest.mark.parametrize(("drop_last", "steps"), [(False, 3), (True, 2)])
def test_the_last_smaller_step_is_kept_unless_it_is_to_be_dropped(drop_last: bool, steps: int) -> None:
    order = StepOrder(lengths(20), batch_size=4, accumulation=2, drop_last=drop_last)
    assert len(order.steps()) == steps
    assert len(list(order)) == len(order)


def test_sequential_keeps_the_order_of_the_rows() -> None:
    order = StepOrder([3, 3, 3, 3, 3], batch_size=2, shuffle=False)
    assert list(order) == [[0, 1], [2, 3], [4]]

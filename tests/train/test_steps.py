from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.data.tokenize import Tokenized
from potstill.train.steps import FixedRows, MicroBatches


def lengths(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1, 100, n).tolist()


def rows(sizes: list[int]) -> list[Tokenized]:
    """Rows whose first token is their number."""
    return [Tokenized([number] + [0] * (size - 1), []) for number, size in enumerate(sizes)]


def dealt(
    sizes: list[int],
    batch: int,
    accumulation: int = 1,
    processes: int = 1,
    process: int = 0,
    epoch: int = 0,
    seed: int = 7,
    **settings: Any,
) -> tuple[list[list[int]], int]:
    """The row numbers of each micro-batch of a process in an epoch, and how many it says there are."""
    source = FixedRows(rows(sizes), batch * accumulation * processes, seed=seed, **settings)
    batches = MicroBatches(source, batch_size=batch, processes=processes, process=process)
    batches.set_epoch(epoch)
    return [[row.input_ids[0] for row in batch] for batch in batches], len(batches)


def steps_of(n: int, batch: int, accumulation: int, processes: int, epoch: int = 0) -> list[list[int]]:
    """The rows of each step, put together again from the micro-batches of all processes."""
    found = [dealt(lengths(n), batch, accumulation, processes, process, epoch) for process in range(processes)]
    assert {len(batches) for batches, _ in found} == {said for _, said in found} == {found[0][1]}
    steps = []
    for start in range(0, found[0][1], accumulation):
        steps.append(sorted(row for d, _ in found for batch in d[start : start + accumulation] for row in batch))
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
    assert dealt([5, 6, 7], 4, processes=4, process=3) == ([[]], 1)


def test_epochs_and_seeds_differ_and_are_reproducible() -> None:
    def first_step(seed: int, epoch: int) -> list[int]:
        return dealt(lengths(64), 8, epoch=epoch, seed=seed)[0][0]

    assert first_step(1, 0) == first_step(1, 0)
    assert first_step(1, 0) != first_step(1, 1)
    assert first_step(1, 0) != first_step(2, 0)


@given(n=st.integers(1, 70), size=st.integers(1, 9), drop_last=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_step_is_a_function_of_its_number_alone(n: int, size: int, drop_last: bool) -> None:
    def source() -> FixedRows:
        return FixedRows(rows(lengths(n)), size, seed=3, drop_last=drop_last)

    in_order = source()
    numbers = range(3 * in_order.steps_per_epoch)
    steps = [in_order.step(number) for number in numbers]
    assert [len(step) for step in steps] == [in_order.size(number) for number in numbers]
    backwards = source()
    assert [backwards.step(number) for number in reversed(numbers)] == steps[::-1]


def test_rows_of_like_length_stand_together() -> None:
    sizes = lengths(256)

    def padded(shuffle: bool) -> int:
        batches, _ = dealt(sizes, 8, seed=0, shuffle=shuffle)
        return sum(max(sizes[i] for i in batch) * len(batch) for batch in batches)

    assert padded(True) < 1.15 * sum(sizes) < padded(False)


@pytest.mark.parametrize(("drop_last", "steps"), [(False, 3), (True, 2)])
def test_the_last_smaller_step_is_kept_unless_it_is_to_be_dropped(drop_last: bool, steps: int) -> None:
    source = FixedRows(rows(lengths(20)), 8, drop_last=drop_last)
    assert source.steps_per_epoch == len(source.order(0)) == steps
    assert source.tokens_per_epoch == sum(len(row) for n in range(steps) for row in source.step(n))


def test_sequential_keeps_the_order_of_the_rows() -> None:
    assert dealt([3, 3, 3, 3, 3], 2, shuffle=False)[0] == [[0, 1], [2, 3], [4]]


def test_rows_that_change_with_the_epoch_come_with_it() -> None:
    source = FixedRows(rows([3, 4]), 2, visits=True)
    assert [visit.epoch for n in range(3) for visit in source.step(n)] == [0, 0, 1, 1, 2, 2]

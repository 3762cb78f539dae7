"""A chunk has as many rows as memory and products make worth while."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.objectives.sweep.engine import MOST_CHUNK_ROWS, buffer_budget, chunk_rows, rows_per_chunk

MOST = MOST_CHUNK_ROWS


@given(st.integers(0, 5000), st.integers(1, 2**22), st.integers(1, 2**28), st.integers(1, 512))
def test_chunks_fit_their_budget_and_are_balanced(rows: int, bytes_per_row: int, budget: int, most: int) -> None:
    chunk = rows_per_chunk(rows, bytes_per_row, budget, most)
    assert 1 <= chunk <= most
    assert chunk == 1 or chunk * bytes_per_row <= budget
    if rows:
        chunks = -(-rows // chunk)
        assert chunks * chunk - rows < chunks


@pytest.mark.parametrize(
    ("vocab", "mib", "least"), [(1_000, 180, MOST), (151_936, 180, 112), (262_144, 232, 112), (1_000_000, 232, 16)]
)
def test_the_buffers_stay_within_their_budget_which_grows_where_chunks_would_be_short(
    vocab: int, mib: int, least: int
) -> None:
    # Shapes only, in fp32: tiles, and the block that a weight's gradient is summed in, come on top.
    budget, chunk = buffer_budget(2 * vocab * 4), chunk_rows(10**6, 2 * vocab * 4)
    assert chunk * 2 * vocab * 4 <= budget <= mib * 2**20
    assert least <= chunk <= MOST


def test_narrow_products_are_made_of_twice_as_many_rows() -> None:
    assert chunk_rows(4096, 2 * 1_000 * 2, narrow_products=True) == 683
    assert chunk_rows(4096, 2 * 1_000 * 2) == 342


@pytest.mark.parametrize(
    ("rows", "vocab", "saved_mib", "expected"),
    [
        (768, 151_936, 166, 384),  # two chunks for three
        (512, 262_144, 288, 256),  # more bytes than the budget, fewer in all
        (2048, 151_936, 166, 293),  # two would be too large: three and more it is
        (800, 151_936, 37, 267),  # two would take more than is saved
        (512, 262_144, 0, 171),  # nothing is saved
    ],
)
def test_a_sum_that_stays_narrow_gives_its_room_to_the_buffers(
    rows: int, vocab: int, saved_mib: int, expected: int
) -> None:
    # In bf16.
    assert chunk_rows(rows, 2 * vocab * 2, narrow_products=True, saved_bytes=saved_mib * 2**20) == expected


@pytest.mark.parametrize(
    ("gib", "expected"),
    [
        (80, 4096),  # two chunks of 2 GiB together
        (24, 1171),
        (4, 205),
    ],
)
def test_on_a_gpu_chunks_are_as_long_as_a_share_of_its_memory_holds(gib: int, expected: int) -> None:
    bytes_per_row = 2 * 128_256 * 2
    chunk = chunk_rows(8192, bytes_per_row, accelerator_bytes=gib * 2**30, narrow_products=True)
    assert chunk == expected
    assert chunk * bytes_per_row <= gib * 2**30 / 40 + 2**28


@given(st.integers(1, 5000), st.integers(1, 2**22), st.integers(0, 2**30))
def test_the_buffers_take_no_more_than_is_saved_beyond_their_budget(rows: int, bytes_per_row: int, saved: int) -> None:
    without = chunk_rows(rows, bytes_per_row, narrow_products=True)
    chunk = chunk_rows(rows, bytes_per_row, narrow_products=True, saved_bytes=saved)
    assert chunk * bytes_per_row <= buffer_budget(bytes_per_row) + saved
    if chunk != without:
        assert -(-rows // chunk) <= 2 < -(-rows // without)

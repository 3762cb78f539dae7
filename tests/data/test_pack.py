"""Packing: every record in exactly one row, whole, within the limit, by first fit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from potstill.data import Tokenized, pack
from potstill.data.tokenize import IGNORE


def a_row(length: int, index: int = 0, teacher: Tokenized | None = None) -> Tokenized:
    ids = [100 * index + n for n in range(length)]
    return Tokenized(ids, list(ids), f"r{index}", f"g{index}", teacher=teacher)


lengths = st.lists(st.integers(1, 40), max_size=60)


@given(lengths=lengths, max_length=st.integers(1, 50))
def test_every_record_is_packed_once_and_whole(lengths: list[int], max_length: int) -> None:
    rows = [a_row(length, index) for index, length in enumerate(lengths)]
    packed = pack(rows, max_length)
    inside = [row for pack_ in packed for row in pack_.rows]
    assert sorted(inside, key=lambda r: int(r.record_id[1:])) == rows
    assert all(len(p) <= max_length or len(p.rows) == 1 for p in packed)


@given(lengths=lengths)
def test_each_record_goes_where_a_plain_search_by_first_fit_would_put_it(lengths: list[int]) -> None:
    bins: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        place = next((b for b in bins if sum(b) + length <= 40), None)
        if place is None:
            bins.append([length])
        else:
            place.append(length)
    assert [[len(row) for row in p.rows] for p in pack([a_row(length) for length in lengths], 40)] == bins


def test_segments_and_positions_restart_and_no_record_learns_its_first_token_from_another() -> None:
    (packed,) = pack([a_row(3, 1), a_row(2, 2)], 8)
    assert packed.input_ids == [100, 101, 102, 200, 201]
    assert packed.labels == [IGNORE, 101, 102, IGNORE, 201]
    assert packed.position_ids == [0, 1, 2, 0, 1]
    assert packed.segment_ids == [1, 1, 1, 2, 2]


def test_the_longer_view_decides_whether_there_is_room() -> None:
    rows = [a_row(3, n, teacher=a_row(6, n)) for n in range(2)]
    assert [len(p.rows) for p in pack(rows, 11)] == [1, 1]
    (both,) = pack(rows, 12)
    assert both.teacher is not None and len(both) == 6 and len(both.teacher) == 12

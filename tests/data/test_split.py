"""The split is by group and by hash: exact where groups are few, and what holds as data grow is what is promised."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.data import Split, read_records, read_sides, split_of
from potstill.data.split import FEW_GROUPS, exact_count, side_by_hash
from potstill.errors import DataError
from potstill.recipe.data import DigitsData, FileData
from potstill.types import Record, exact_group_of, group_of

shares = st.floats(0, 0.99)


def of(held_out: float, seed: int = 0) -> FileData:
    return FileData(kind="jsonl", path=Path("x"), held_out=held_out, split_seed=seed)


def held_out_of(groups: Sequence[str], share: float, seed: int = 0) -> set[str]:
    split = Split.of(of(share, seed), groups)
    return {group for group in groups if split.side(group) == "held_out"}


@pytest.mark.parametrize(
    ("groups", "share", "held_out"),
    [
        *(
            (5, 0.1, 2),
            (5, 0.2, 2),
            (5, 0.5, 3),
            (10, 0.1, 2),
            (10, 0.3, 3),
            (60, 0.1, 6),
            (99, 0.1, 10),
            (99, 0.9, 89),
        ),
        *((4, 0.99, 3), (3, 0.1, 1), (2, 0.1, 1), (1, 0.5, 0), (0, 0.5, 0), (40, 0.0, 0)),
    ],
)
def test_few_groups_are_split_exactly(groups: int, share: float, held_out: int) -> None:
    for seed in range(5):
        assert len(held_out_of([f"g{n}" for n in range(groups)], share, seed)) == held_out


@given(st.integers(0, FEW_GROUPS - 1), st.integers(0, FEW_GROUPS), shares, st.integers(0, 3))
def test_below_the_limit_a_group_that_is_added_moves_one_other_at_most(
    groups: int, order: int, share: float, seed: int
) -> None:
    names = [f"g{n}" for n in range(groups)]
    before = held_out_of(names, share, seed)
    assert held_out_of(names[order:] + names[:order], share, seed) == before, "the order of rows does not matter"
    if groups + 1 < FEW_GROUPS:
        after = held_out_of([*names, "another"], share, seed)
        assert len((before ^ after) - {"another"}) <= 1


@given(more=st.integers(0, 200), share=shares, seed=st.integers(0, 3))
def test_from_the_limit_on_no_group_changes_side(more: int, share: float, seed: int) -> None:
    names = [f"g{n}" for n in range(FEW_GROUPS)]
    after = held_out_of([*(f"h{n}" for n in range(more)), *names], share, seed)
    assert after & set(names) == held_out_of(names, share, seed)


@given(st.integers(0, 2 * FEW_GROUPS), shares, shares, st.integers(0, 3))
def test_a_larger_share_holds_out_all_that_a_smaller_one_does(
    groups: int, smaller: float, larger: float, seed: int
) -> None:
    smaller, larger = sorted((smaller, larger))
    names = [f"g{n}" for n in range(groups)]
    assert held_out_of(names, smaller, seed) <= held_out_of(names, larger, seed)


@given(st.integers(0, 500), shares)
def test_an_exact_count_leaves_something_on_both_sides(groups: int, share: float) -> None:
    held_out = exact_count(share, groups)
    assert 0 <= held_out <= max(groups - 1, 0)
    if share and groups >= 4:
        assert held_out >= 2, "an interval needs two"


def test_a_group_that_is_not_of_the_data_is_split_by_hash() -> None:
    split = Split.of(of(0.3), ["a", "b", "c"])
    made = [f"made {n}" for n in range(1000)]
    assert [split.side(group) for group in made] == [side_by_hash(group, 0.3, 0) for group in made]


@pytest.mark.parametrize("held_out", [0.0, 0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_share_is_near_what_was_asked(held_out: float, seed: int) -> None:
    groups = [group_of(f"prompt {n}") for n in range(10_000)]
    share = len(held_out_of(groups, held_out, seed)) / len(groups)
    # Four standard deviations of a binomial share.
    assert abs(share - held_out) <= 4 * (held_out * (1 - held_out) / len(groups)) ** 0.5


def test_another_seed_is_another_split() -> None:
    groups = [group_of(f"prompt {n}") for n in range(1_000)]
    one, other = (held_out_of(groups, 0.5, seed) for seed in (0, 1))
    assert 400 < len(one ^ other) < 600


def test_the_sides_of_the_source_are_taken_where_they_are_asked_for() -> None:
    own = Split("own", 0)
    for side in ("train", "held_out"):
        assert own.side_of(Record(text="t", side=side, group="g")) == side  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no sides of its own"):
        own.side_of(Record(text="t", group="g"))
    # Without being asked for they decide nothing.
    assert Split(0.0, 0).side_of(Record(text="t", side="held_out", group="g")) == "train"


def test_every_way_of_reading_a_small_file_gives_one_split(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{n}"}) + "\n" for n in range(20)))
    settings = FileData(kind="jsonl", path=path, held_out=0.25)
    sides, split = read_sides(settings), split_of(settings)
    assert len(sides.held_out) == 5
    assert list(sides.held_out) == [r for r in read_records(settings).records if split.side_of(r) == "held_out"]


# ---- what a group is -------------------------------------------------------------------------------------------


def question(text: str, system: str | None = None) -> dict[str, Any]:
    told = [{"role": "system", "content": system}] if system is not None else []
    return {"messages": [*told, {"role": "user", "content": text}, {"role": "assistant", "content": "4"}]}


def crossing(tmp_path: Path, **settings: Any) -> int:
    """How many of sixty questions are on both sides, each asked plainly, with a trailing space and with a system
    prompt."""
    rows = [row for n in range(60) for row in (question(f"q{n}"), question(f"q{n} "), question(f"q{n}", "Be brief."))]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sides = read_sides(FileData(kind="jsonl", path=path, held_out=0.5, **settings))
    asked = [
        {str(r.messages[-2]["content"]).strip() for r in side if isinstance(r, Record) and r.messages}
        for side in (sides.train, sides.held_out)
    ]
    assert asked[0] and asked[1]
    return len(asked[0] & asked[1])


def test_a_question_is_on_one_side_under_any_system_prompt_and_with_stray_space(tmp_path: Path) -> None:
    assert crossing(tmp_path) == 0
    assert crossing(tmp_path, group_by="prompt") > 30, "as it stands, each is a prompt of its own"


SYSTEM, USER, MORE, ANSWER = (
    {"role": role, "content": text}
    for role, text in [("system", "s"), ("user", "a  b \r\nc"), ("user", "d"), ("assistant", "x")]
)


def test_a_group_is_the_users_opening_turns() -> None:
    plain = group_of("a b\nc")
    assert group_of([USER]) == group_of([SYSTEM, USER, ANSWER, MORE]) == group_of(" a b\nc\n") == plain
    assert group_of([USER, MORE]) == group_of("a b\nc\n\nd") != plain
    assert group_of("a bc") != plain and group_of("A b\nc") != plain
    assert group_of([SYSTEM]) != group_of([SYSTEM | {"content": "t"}]), "without a question all of it counts"
    assert len({exact_group_of(p) for p in ("a", "a ", [SYSTEM, {"role": "user", "content": "a"}])}) == 3
    assert exact_group_of([{"role": "user", "content": "a"}, ANSWER]) == exact_group_of("a")


def test_rows_may_be_grouped_by_a_column(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": f"p{n}", "document": n // 3} for n in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = FileData(kind="jsonl", path=path, group_by="column:document")
    result = read_records(settings)
    assert [result.records.index(r) // 3 for r in result.records] == [
        sorted({r.group for r in result.records}, key=[r.group for r in result.records].index).index(r.group)
        for r in result.records
    ]
    assert result.unused_columns == ()
    path.write_text('{"prompt": "a", "document": ""}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: nothing in column 'document'"):
        read_records(settings)


def test_groupings_that_are_not_there_are_refused() -> None:
    for group_by in ("users", "column:", ""):
        with pytest.raises(ValueError, match=r"user_turns, by prompt or by column:NAME"):
            FileData(kind="jsonl", path=Path("x"), group_by=group_by)
    with pytest.raises(ValueError, match="grouped by their pixels"):
        DigitsData(kind="digits", group_by="prompt")

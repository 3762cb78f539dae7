"""The split is by group and by hash: no record ever changes side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.data import read_records, side_of
from potstill.data.split import side_of_group
from potstill.errors import DataError
from potstill.recipe.data import FileData
from potstill.types import Record, group_of

shares = st.floats(0, 0.99)


@given(
    prompts=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=20, unique=True),
    more=st.lists(st.text("xyz", min_size=1, max_size=4), max_size=20, unique=True),
    held_out=shares,
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_a_record_never_changes_side_when_others_come_or_the_order_changes(
    tmp_path_factory: pytest.TempPathFactory,
    prompts: list[str],
    more: list[str],
    held_out: float,
    seed: int,
    data: st.DataObject,
) -> None:
    def sides(rows: list[str]) -> dict[str | None, str]:
        path = tmp_path_factory.mktemp("data") / "a.jsonl"
        path.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
        settings = FileData(kind="jsonl", path=path, held_out=held_out, split_seed=seed)
        return {r.prompt: side_of(r, settings) for r in read_records(settings).records}

    before = sides(prompts)
    after = sides(data.draw(st.permutations(prompts + more)))
    assert {prompt: after[prompt] for prompt in before} == before


@given(group=st.text(max_size=20), smaller=shares, larger=shares, seed=st.integers())
def test_a_larger_share_holds_out_all_that_a_smaller_one_does(
    group: str, smaller: float, larger: float, seed: int
) -> None:
    smaller, larger = sorted((smaller, larger))
    if side_of_group(group, smaller, seed) == "held_out":
        assert side_of_group(group, larger, seed) == "held_out"


@pytest.mark.parametrize("held_out", [0.0, 0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_share_is_near_what_was_asked(held_out: float, seed: int) -> None:
    groups = [group_of(f"prompt {n}") for n in range(10_000)]
    share = sum(side_of_group(group, held_out, seed) == "held_out" for group in groups) / len(groups)
    # Four standard deviations of a binomial share.
    assert abs(share - held_out) <= 4 * (held_out * (1 - held_out) / len(groups)) ** 0.5


def test_another_seed_is_another_split() -> None:
    groups = [group_of(f"prompt {n}") for n in range(1_000)]
    one, other = ([side_of_group(group, 0.5, seed) for group in groups] for seed in (0, 1))
    assert 400 < sum(a == b for a, b in zip(one, other, strict=True)) < 600


def test_the_sides_of_the_source_are_taken_where_they_are_asked_for() -> None:
    own = FileData(kind="jsonl", path=Path("x"), held_out="own")
    for side in ("train", "held_out"):
        assert side_of(Record(text="t", side=side, group="g"), own) == side  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no sides of its own"):
        side_of(Record(text="t", group="g"), own)
    # Without being asked for they decide nothing.
    share = own.model_copy(update={"held_out": 0.0})
    assert side_of(Record(text="t", side="held_out", group="g"), share) == "train"

"""Claims about embeddings: who is nearest, by hand; the same in blocks; pairs that do not depend on each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from potstill.evaluate import neighbours
from potstill.evaluate.neighbours import Embedded, nearest, pairs_of, pooled, score_neighbours
from potstill.signals import View

# On the circle, by degrees: 0 and 10 are near, 90 and 100 are, 215 stands alone and is nearest to 100.
DEGREES = (0.0, 10.0, 90.0, 100.0, 215.0)
GROUPS = ("a", "b", "c", "d", "e")


def on_circle(degrees: tuple[float, ...]) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def test_the_nearest_is_found_by_hand() -> None:
    assert nearest(on_circle(DEGREES), GROUPS).tolist() == [1, 0, 3, 2, 3]


def test_an_example_of_the_same_group_is_no_neighbour() -> None:
    assert nearest(on_circle(DEGREES), ("a", "a", "c", "d", "e")).tolist() == [2, 2, 3, 2, 3]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    groups = [f"g{i // 2}" for i in range(50)]
    whole = nearest(vectors, groups)
    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", 7)
    assert nearest(vectors, groups).tolist() == whole.tolist()


def test_recall_agreement_and_regret_by_hand() -> None:
    teacher = Embedded(on_circle(DEGREES), nearest(on_circle(DEGREES), GROUPS))
    moved = on_circle((0.0, 80.0, 90.0, 100.0, 215.0))  # the second has gone over to the third
    mine = Embedded(moved, nearest(moved, GROUPS))
    assert mine.nearest.tolist() == [1, 2, 1, 2, 3]
    labels, pairs = np.array([0, 0, 1, 1, 1]), np.array([[0, 1], [2, 4]])
    found = score_neighbours(mine, teacher, labels, pairs)
    assert found.correct is not None and found.agree is not None and found.regret is not None
    assert found.correct.tolist() == [True, False, False, True, True]
    assert found.agree.tolist() == [True, False, False, True, True]
    # To the teacher, the second is 10° from the first and 80° from the third.
    lost = np.cos(np.deg2rad(10)) - np.cos(np.deg2rad(80))
    assert found.regret == pytest.approx([0, lost, lost, 0, 0], abs=1e-6)
    assert found.pairs == pytest.approx(np.cos(np.deg2rad([80, 125])), abs=1e-6)


def test_the_teacher_agrees_with_itself() -> None:
    teacher = Embedded(on_circle(DEGREES), nearest(on_circle(DEGREES), GROUPS))
    found = score_neighbours(teacher, teacher, np.full(5, -1), np.array([[0, 1]]))
    assert found.agree is not None and found.agree.all()
    assert found.regret is not None and np.abs(found.regret).max() == 0
    assert found.correct is None, "there are no labels"


def test_no_group_is_in_two_pairs() -> None:
    groups = [f"g{i % 11}" for i in range(40)]
    pairs = pairs_of(groups, seed=0)
    used = [groups[i] for i in pairs.flatten()]
    assert len(used) == len(set(used)) == 10
    assert pairs.tolist() == pairs_of(groups, seed=0).tolist() != pairs_of(groups, seed=1).tolist()


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", [2.0, 5.0]), ("max", [3.0, 5.0]), ("first", [1.0, 5.0]), ("last", [3.0, 5.0])]
)
def test_padding_is_in_no_vector(how: str, expected: list[float]) -> None:
    segments = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    states = torch.tensor([[1.0, 2.0, 3.0, 99.0], [5.0, 99.0, 99.0, 99.0]])[..., None]
    found = pooled(states, View(segments, segments, segments), how)  # type: ignore[arg-type]
    assert found.squeeze(-1).tolist() == expected

"""One vector per example: of texts, packed or not, and of what modules give."""

from __future__ import annotations

import pytest
import torch
from objectives.tables import LENGTHS, packed_batch, tables, text_batch

from potstill.errors import ModelError
from potstill.objectives import pool
from potstill.objectives.pooling import one_vector_each
from potstill.recipe.relations import Pooling
from potstill.signals import ImageView

STATES = torch.tensor([[[1.0, 8.0], [3.0, 4.0], [5.0, 6.0]], [[7.0, 0.0], [9.0, 9.0], [9.0, 9.0]]])
IDS = torch.tensor([[0, 0, 0], [1, -1, -1]])


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("mean", [[3.0, 6.0], [7.0, 0.0]]),
        ("first", [[1.0, 8.0], [7.0, 0.0]]),
        ("last", [[5.0, 6.0], [7.0, 0.0]]),
        ("max", [[5.0, 8.0], [7.0, 0.0]]),
    ],
)
def test_by_hand(pooling: Pooling, expected: list[list[float]]) -> None:
    assert pool(STATES, IDS, pooling).tolist() == expected
    # And in one row, with the padding in between.
    assert pool(STATES.view(1, 6, 2), IDS.view(1, 6), pooling).tolist() == expected


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "max"])
def test_packed_texts_and_texts_alone_are_pooled_alike(pooling: Pooling) -> None:
    states = tables(0)["hidden.1"]
    batch, packed = text_batch(), packed_batch()
    together = torch.cat([row[:n] for row, n in zip(states, LENGTHS, strict=True)])[None]
    expected = torch.stack([pool(states[i : i + 1, :n], torch.zeros(1, n).long(), pooling)[0]
                            for i, n in enumerate(LENGTHS)])  # fmt: skip
    torch.testing.assert_close(one_vector_each(states, batch.student, pooling), expected)
    torch.testing.assert_close(one_vector_each(together, packed.student, pooling), expected)


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "max"])
def test_gradients_equal_finite_differences_and_maxima_below_zero_are_found(pooling: Pooling) -> None:
    torch.manual_seed(0)
    states = (-torch.rand(2, 3, 2, dtype=torch.float64) - 1).requires_grad_()
    ids = torch.tensor([[0, 0, 1], [2, 2, -1]])
    assert pool(states, ids, pooling).max() < -1
    assert torch.autograd.gradcheck(lambda s: pool(s, ids, pooling), (states,))


def test_bf16_states_are_pooled_in_fp32() -> None:
    # 300 tokens of 1 in bf16 would stop adding up at 256.
    states, ids = torch.ones(1, 300, 1).bfloat16(), torch.zeros(1, 300).long()
    assert pool(states, ids, "mean").item() == 1.0
    assert pool(states, ids, "mean").dtype == torch.float32


def test_outputs_of_modules_are_taken_flat() -> None:
    maps, vectors = torch.randn(5, 3, 2, 2), torch.randn(5, 7)
    images = ImageView(torch.zeros(5, 1, 8, 8))
    assert torch.equal(one_vector_each(maps, images, "mean"), maps.flatten(1))
    assert torch.equal(one_vector_each(vectors, text_batch().student, "mean"), vectors)
    tokens = torch.randn(5, 4, 3)  # of a vision transformer: not the tokens of a text
    assert torch.equal(one_vector_each(tokens, images, "mean"), tokens.flatten(1))


def test_rows_that_are_no_examples_are_refused() -> None:
    with pytest.raises(ModelError, match=r"shape \[1, 7\] for 5 examples.*\n.*packing: false"):
        one_vector_each(torch.zeros(1, 7), packed_batch().student, "mean")

"""Claims about the rule of acceptance where chance hardly ever goes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from potstill.decoding.acceptance import residual, stands, verify_greedy, verify_sampled


def test_a_token_that_the_target_never_writes_does_not_stand_even_if_r_is_zero() -> None:
    r, p, q = torch.tensor([0.0, 0.0, 0.5]), torch.tensor([0.0, 0.1, 0.2]), torch.tensor([0.5, 0.5, 0.4])
    assert stands(r, p, q).tolist() == [False, True, False]


def test_where_nothing_is_left_of_a_residual_it_is_p_and_other_rows_keep_theirs() -> None:
    """Rounding may reject a token although p = q. The guard is each row's own."""
    p = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    q = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]])
    assert torch.equal(residual(p, q), torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.0, 0.0]]))


class Certain:
    """Accepts whatever it is asked about, and shows what the next token is drawn from."""

    weights = torch.zeros(0)

    def accepts(self, p: Tensor, q: Tensor) -> Tensor:
        return torch.ones(p.shape, dtype=torch.bool)

    def draw(self, weights_BV: Tensor) -> Tensor:
        self.weights = weights_BV
        return weights_BV.argmax(-1)


P = torch.tensor([[[0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]]]).repeat(3, 1, 1)
"""Of three rows that have 2, 1 and no drafted tokens in a block that has room for two."""
COUNTS = torch.tensor([2, 1, 0])


@pytest.mark.parametrize("certain", [True, False], ids=["certain", "drawn"])
def test_of_a_row_with_fewer_drafted_tokens_no_more_stand_and_the_bonus_token_is_from_p(certain: bool) -> None:
    """What is behind a row's own tokens in the block is nothing, and was not rejected."""
    drafted, source = torch.tensor([[0, 2], [0, 2], [0, 2]]), Certain()
    q = None if certain else torch.full((3, 2, 3), 1 / 3)
    found = verify_sampled(P, q, drafted, COUNTS, source)
    assert found.accepted_B.tolist() == [2, 1, 0]
    assert torch.equal(source.weights, torch.stack([P[0, 2], P[1, 1], P[2, 0]]))


def test_greedily_no_more_tokens_stand_than_a_row_has() -> None:
    best, drafted = P.argmax(-1), torch.tensor([[0, 2], [0, 2], [0, 2]])
    found = verify_greedy(best, drafted, COUNTS)
    assert found.accepted_B.tolist() == [2, 1, 0] and found.next_B.tolist() == [1, 2, 0]

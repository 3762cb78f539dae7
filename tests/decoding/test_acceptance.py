"""Claims about the rule of acceptance where chance hardly ever goes."""

from __future__ import annotations

import torch

from potstill.decoding.acceptance import residual, stands


def test_a_token_that_the_target_never_writes_does_not_stand_even_if_r_is_zero() -> None:
    r, p, q = torch.tensor([0.0, 0.0, 0.5]), torch.tensor([0.0, 0.1, 0.2]), torch.tensor([0.5, 0.5, 0.4])
    assert stands(r, p, q).tolist() == [False, True, False]


def test_where_nothing_is_left_of_a_residual_it_is_p_and_other_rows_keep_theirs() -> None:
    """Rounding may reject a token although p = q. The guard is each row's own."""
    p = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    q = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]])
    assert torch.equal(residual(p, q), torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.0, 0.0]]))

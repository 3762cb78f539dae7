"""Estimators are unbiased, in the gradient too, and have the variance that is stated; top-k says what it leaves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from potstill.objectives import ForwardKLRule, fused_sweep
from potstill.signals import Dense, Sparse
from potstill.store.codec import Entries, Grid, decode, encode
from potstill.store.estimators import (
    joined,
    sampled,
    squared_error_of_sampled,
    squared_error_of_threshold,
    tau_for_budget,
    threshold,
    topk,
)


def log_probabilities(rows: int, vocab: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab, generator=generator, dtype=torch.float64).mul(spread).log_softmax(1)


def dense(sparse: Sparse, vocab: int) -> torch.Tensor:
    """The weights [N,V] of a signal."""
    rows = torch.repeat_interleave(torch.arange(sparse.offsets.shape[0] - 1), sparse.offsets.diff())
    made = torch.zeros(sparse.offsets.shape[0] - 1, vocab, dtype=sparse.weights.dtype)
    return made.index_put_((rows, sparse.ids.long()), sparse.weights, accumulate=True)


def starts(count: int) -> torch.Tensor:
    """The middles of equal parts of [0, 1): the mean over them is the mean over all random starts."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("tau", [0.02, 0.1, 0.4, 1.0])
def test_threshold_has_the_distribution_as_its_mean_over_all_starts(tau: float) -> None:
    log_p = log_probabilities(1, 7, seed=3)
    many = starts(20_000)
    mean = dense(threshold(log_p.expand(len(many), -1), tau, many), 7).mean(0)
    # The mean over n middles is off by at most 1 / n per token, times its weight.
    assert (mean - log_p.exp()[0]).abs().max() <= tau / len(many) * 1.001 + 1e-15


def test_sampled_has_the_distribution_as_its_mean_over_all_draws() -> None:
    log_p, one = log_probabilities(1, 5, seed=4), starts(300)
    pairs = torch.cartesian_prod(one, one)
    mean = dense(sampled(log_p.expand(len(pairs), -1), pairs), 5).mean(0)
    assert (mean - log_p.exp()[0]).abs().max() <= 1 / 300


def test_the_squared_errors_are_those_that_are_stated() -> None:
    log_p, many = log_probabilities(1, 50, seed=5), starts(20_000)
    rows = log_p.expand(len(many), -1)
    found = (dense(threshold(rows, 0.05, many), 50) - rows.exp()).square().sum(1).mean()
    assert found == pytest.approx(float(squared_error_of_threshold(log_p, 0.05)), rel=1e-3)
    draws = torch.rand(20_000, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = (dense(sampled(rows, draws), 50) - rows.exp()).square().sum(1).mean()
    assert found == pytest.approx(float(squared_error_of_sampled(log_p, 10)), rel=0.03)


def test_the_gradient_of_forward_kl_is_unbiased_too() -> None:
    log_p, many = log_probabilities(1, 12, seed=6), starts(4_000)
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(1, 12, generator=generator, dtype=torch.float64)
    expected = student.softmax(1) - log_p.exp()
    leaf = student.expand(len(many), -1).clone().requires_grad_()
    signal = threshold(log_p.expand(len(many), -1), 0.1, many)
    swept = fused_sweep(Dense(leaf), signal, torch.zeros(len(many), dtype=torch.long), [(ForwardKLRule(), 1.0)])
    swept.loss.backward()
    assert leaf.grad is not None
    assert (leaf.grad.sum(0) / len(many) - expected[0]).abs().max() < 1e-4
    biased = dense(topk(log_p, 3)[0], 12)
    assert (student.softmax(1) - biased / biased.sum() - expected).abs().max() > 1e-3  # what is not done here


def test_the_gradient_from_the_bytes_is_unbiased_for_every_draw_of_tokens_and_of_weights() -> None:
    """All starts of the sample by all roundings of the weights, through the codec: the mean is the gradient of the full
    distribution."""
    log_p, tau = log_probabilities(1, 12, seed=6), 0.1
    many = starts(400)
    signal = threshold(log_p.expand(len(many), -1), tau, many)
    entries = Entries(
        signal.offsets.numpy(),
        signal.ids.numpy(),
        signal.weights.float().numpy(),
        *(np.zeros(len(many), np.float32) for _ in range(2)),
        np.zeros(0, np.float32),
    )
    grid, student = Grid.threshold(12, tau), torch.randn(1, 12, generator=torch.Generator().manual_seed(1)).double()
    total, roundings = torch.zeros(12, dtype=torch.float64), 200
    for rounding in starts(roundings).tolist():
        data = encode(entries, grid, np.full(entries.ids.size, rounding))
        found = decode(data, len(many), grid)
        weights = dense(replace(signal, ids=torch.from_numpy(found.ids), weights=torch.from_numpy(found.weights)), 12)
        total += weights.double().mean(0)
    gradient = student.softmax(1)[0] - total / roundings
    # τ / 400 from the middles of the starts, a step of the grid / 200 from those of the roundings.
    bound = tau / len(many) + grid.step * 1.05 / roundings
    assert (gradient - (student.softmax(1) - log_p.exp())[0]).abs().max() <= bound


def test_each_token_is_kept_at_most_once_and_those_above_are_all_kept() -> None:
    log_p = log_probabilities(200, 300, seed=7)
    found = threshold(log_p, 0.01, torch.rand(200, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    for row in range(200):
        ids = found.ids[found.offsets[row] : found.offsets[row + 1]].tolist()
        assert len(set(ids)) == len(ids)
        assert set((log_p[row].exp() >= 0.01).nonzero().flatten().tolist()) <= set(ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocab", [1, 2, 3, 50, 63, 64, 65, 127, 1000])
@pytest.mark.parametrize("shift", [-1e-3, -1e-5, -1e-6, -1e-7, -6e-8, 0.0, 6e-8, 1e-6, 1e-4])
def test_ties_at_the_threshold_are_kept_once_each(vocab: int, shift: float, dtype: torch.dtype) -> None:
    """Equal probabilities of 1 / V, and τ a rounding beside: no token has two points of the sample."""
    tau = min(1.0, (1 + shift) / vocab)
    log_p = torch.zeros(64, vocab, dtype=dtype).log_softmax(1)
    found = threshold(log_p, tau, torch.rand(64, generator=torch.Generator().manual_seed(4)).to(dtype))
    rows = torch.repeat_interleave(torch.arange(64), found.offsets.diff())
    keys = rows * vocab + found.ids
    assert keys.unique().numel() == keys.numel()
    assert dense(found, vocab).sum(1).sub(1).abs().max() <= tau + 1e-5


@pytest.mark.parametrize("budget", [12.0, 20.0, 60.0])
def test_the_tau_for_a_budget_takes_that_many_bytes(budget: float) -> None:
    log_p = log_probabilities(200, 1000, seed=8, spread=2.0)
    random = torch.rand(200, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def bytes_at(tau: float) -> float:
        signal = threshold(log_p, tau, random)
        numbers, nothing = np.zeros(200, np.float32), np.zeros(0, np.float32)
        ids, weights = signal.ids.numpy(), signal.weights.float().numpy()
        entries = Entries(signal.offsets.numpy(), ids, weights, numbers, numbers, nothing)
        return len(encode(entries, Grid.threshold(1000, tau), np.zeros(ids.size))) / 200

    assert bytes_at(tau_for_budget(bytes_at, budget)) == pytest.approx(budget, rel=0.006)
    assert tau_for_budget(bytes_at, 1.0) == pytest.approx(1.0)


def test_top_k_states_the_mass_that_it_leaves_where_one_minus_the_sum_is_zero_in_fp32() -> None:
    logits = torch.tensor([[30.0, 0.0, -1.0, -2.0]])
    log_p = logits.log_softmax(1)
    signal, rest = topk(log_p, 2)
    assert signal.ids.tolist() == [0, 1]
    assert float(1 - signal.weights.sum()) == 0.0
    expected = math.log(math.exp(-31) + math.exp(-32)) - math.log1p(math.exp(-30))
    assert float(rest) == pytest.approx(expected, rel=1e-5)


def test_top_p_keeps_as_few_as_hold_the_mass() -> None:
    log_p = torch.tensor([[0.5, 0.25, 0.15, 0.1]], dtype=torch.float64).log()
    assert topk(log_p, 4, top_p=0.74)[0].ids.tolist() == [0, 1]
    assert topk(log_p, 4, top_p=0.76)[0].ids.tolist() == [0, 1, 2]


def test_rows_in_pieces_are_kept_as_the_whole() -> None:
    log_p, starts_ = log_probabilities(11, 200, seed=9), starts(11)
    whole = threshold(log_p, 0.02, starts_)
    found = joined([threshold(log_p[at : at + 4], 0.02, starts_[at : at + 4]) for at in range(0, 11, 4)])
    for name in ("offsets", "ids", "weights", "entropy"):
        assert torch.equal(getattr(found, name), getattr(whole, name)), name


def test_a_threshold_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1, not 0"):
        threshold(log_probabilities(1, 3), 0, torch.zeros(1))

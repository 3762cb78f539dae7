"""What is kept of a teacher's distribution p over V tokens, as a `Sparse` signal.

- `threshold` keeps every p ≥ τ with its weight, and a systematic sample of the others at weight τ. No bias. Entries a
  token: #{p ≥ τ} + Σ_{p < τ} p / τ in expectation.
- `sampled` keeps the distinct ones of N draws from p, with weight count / N (RS-KD, arXiv 2503.16870). No bias. Some 12
  entries at N = 50.
- `topk` keeps the k largest, or those that hold `top_p`, and the mass of all others as one: the tail's shape is lost.

A `threshold` weight has variance τ·p·(1 − p/τ) where p < τ, and none above: the squared error of a token's distribution
is Σ_{p < τ} p (τ − p). Of `sampled` it is Σ p (1 − p) / N.

Uniform numbers come from outside, one (or N) a row, so that the same record has the same draws in any batch.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.signals import Sparse


def threshold(log_p: Float[Tensor, "N V"], tau: float, uniforms: Float[Tensor, " N"]) -> Sparse:
    """Exact above τ, sampled below it.

    Of the tokens below τ, in the order of their ids, one is taken wherever the cumulative p / τ passes an integer,
    after a random start: each at most once, with probability p / τ. Their weight is τ, so only their id need be stored.

    Args:
        log_p: normalised log-probabilities, in fp32 or more.
        tau: in (0, 1].
        uniforms: in [0, 1), one a row.

    Raises:
        ValueError: τ is out of range.
    """
    if not 0 < tau <= 1:
        raise ValueError(f"the threshold should be above 0 and at most 1, not {tau}")
    p = log_p.exp()
    exact = p >= tau
    # Of double precision: V small terms are summed, and a draw hangs on where the sum passes an integer.
    passed = torch.where(exact, 0.0, p.double() / tau).cumsum(1)
    before = torch.cat([torch.zeros_like(passed[:, :1]), passed[:, :-1]], 1)
    start = uniforms.double()[:, None]
    drawn = (torch.floor(passed - start) > torch.floor(before - start)) & ~exact
    kept = exact | drawn
    weights = torch.where(exact, p, torch.full_like(p, tau))[kept]
    return _sparse(kept, weights, log_p, "unbiased")


def sampled(log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
    """D draws from p with replacement: weights count / D.

    Args:
        log_p: normalised log-probabilities.
        uniforms: in [0, 1), D a row.
    """
    cumulative = log_p.double().exp().cumsum(1)
    places = torch.searchsorted(cumulative, uniforms.double() * cumulative[:, -1:], right=True)
    counts = torch.zeros_like(log_p).scatter_add_(
        1, places.clamp(max=log_p.shape[1] - 1), torch.ones_like(uniforms, dtype=log_p.dtype)
    )
    kept = counts > 0
    return _sparse(kept, counts[kept] / uniforms.shape[1], log_p, "unbiased")


def topk(log_p: Float[Tensor, "N V"], k: int, top_p: float = 1.0) -> tuple[Sparse, Float[Tensor, " N"]]:
    """The k largest, or fewer: as many as hold at least `top_p` of the mass. Never renormalised.

    Returns:
        The signal, and the logarithm of the remaining mass [N] (−∞ where nothing remains), by log-sum-exp of the rest:
        1 − Σ p cancels in fp32.
    """
    values, ids = log_p.topk(min(k, log_p.shape[1]), dim=1)
    mass = values.exp().cumsum(1)
    before = torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], 1)
    enough = (before < top_p) | (top_p >= 1)  # a sum of all may round to 1 too early
    kept = torch.zeros_like(log_p, dtype=torch.bool).scatter_(1, ids, enough)
    rest = torch.where(kept, -torch.inf, log_p).logsumexp(1)
    return _sparse(kept, log_p.exp()[kept], log_p, "top_k"), rest


def threshold_for(log_p: Float[Tensor, "N V"], entries: float) -> float:
    """The τ at which `threshold` keeps this many entries a token on average, over these rows, by bisection."""
    p = log_p.exp()

    def kept(tau: float) -> float:
        return float(torch.where(p >= tau, 1.0, p / tau).sum(1).mean())

    low, high = 1e-9, 1.0  # `kept` falls as τ rises
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if kept(middle) > entries else (low, middle)
    return high


def squared_error_of_threshold(log_p: Float[Tensor, "N V"], tau: float) -> Float[Tensor, " N"]:
    """Expected Σ (weight − p)² a token, exactly."""
    p = log_p.exp()
    return torch.where(p < tau, p * (tau - p), 0.0).sum(1)


def squared_error_of_sampled(log_p: Float[Tensor, "N V"], draws: int) -> Float[Tensor, " N"]:
    """Expected Σ (weight − p)² a token, exactly."""
    p = log_p.exp()
    return (p * (1 - p)).sum(1) / draws


def _sparse(kept: Tensor, weights: Tensor, log_p: Tensor, estimator: str) -> Sparse:
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), kept.sum(1).cpu()]).cumsum(0)
    entropy = -torch.special.xlogy(p := log_p.exp(), p).sum(1)
    ids = kept.nonzero()[:, 1].to(torch.int32)
    return Sparse(offsets, ids, weights, entropy, estimator, vocab=log_p.shape[1])  # type: ignore[arg-type]

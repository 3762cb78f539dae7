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

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

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
    rows, ids = exact.nonzero().unbind(1)
    drawn_rows, drawn_ids = _systematic(torch.where(exact, 0.0, p), tau, uniforms)
    all_rows, all_ids = torch.cat([rows, drawn_rows]), torch.cat([ids, drawn_ids])
    weights = torch.cat([p[rows, ids], torch.full_like(drawn_ids, 0, dtype=p.dtype) + tau])
    order = (all_rows * p.shape[1] + all_ids).argsort()
    return _sparse(all_rows[order], all_ids[order], weights[order], _entropy(log_p, p), "unbiased", p.shape[1])


_BLOCK = 64


def _systematic(tail: Float[Tensor, "N V"], tau: float, uniforms: Float[Tensor, " N"]) -> tuple[Tensor, Tensor]:
    """(rows, ids) of the tokens in which the cumulative mass passes (start + k) · τ, k = 0, 1, …

    By blocks of tokens: of V terms only their sums are accumulated, in double precision (a small p added to a sum near
    1 would be lost in single), and single terms only in the blocks that a draw falls into.
    """
    rows, vocab = tail.shape
    padded = torch.nn.functional.pad(tail, (0, -vocab % _BLOCK)).view(rows, -1, _BLOCK)
    passed = padded.sum(2).double().cumsum(1)
    mass = passed[:, -1]
    most = int(torch.ceil(mass.max() / tau)) if rows else 0
    points = (uniforms.double()[:, None] + torch.arange(most, dtype=torch.float64)) * tau
    row, point = (points < mass[:, None]).nonzero().unbind(1)
    at = points[row, point]
    block = torch.searchsorted(passed, points, right=True)[row, point]
    before = torch.where(block > 0, passed[row, (block - 1).clamp_min(0)], 0.0)
    inside = padded[row, block].double()
    place = torch.searchsorted(inside.cumsum(1), (at - before)[:, None], right=True).squeeze(1)
    # Rounding may put a draw behind the last token of its block: it is of the last one with any mass.
    last = _BLOCK - 1 - (inside > 0).flip(1).to(torch.uint8).argmax(1)
    return row, block * _BLOCK + torch.minimum(place, last)


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
    rows, ids = (counts > 0).nonzero().unbind(1)
    weights = counts[rows, ids] / uniforms.shape[1]
    return _sparse(rows, ids, weights, _entropy(log_p, log_p.exp()), "unbiased", log_p.shape[1])


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
    p = log_p.exp()
    rows, ids = kept.nonzero().unbind(1)
    return _sparse(rows, ids, p[rows, ids], _entropy(log_p, p), "top_k", p.shape[1]), rest


def joined(parts: Sequence[Sparse]) -> Sparse:
    """The signals of consecutive rows as one: a vocabulary's rows are kept some at a time, while they are in the
    processor's cache."""
    first, starts = parts[0], [0, *itertools.accumulate(int(part.offsets[-1]) for part in parts)]
    offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
    return replace(
        first,
        offsets=torch.cat([first.offsets[:1], *offsets]),
        ids=torch.cat([part.ids for part in parts]),
        weights=torch.cat([part.weights for part in parts]),
        entropy=torch.cat([part.entropy for part in parts]),
        rest=torch.cat([part.rest for part in parts if part.rest is not None]) if first.rest is not None else None,
    )


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


def _entropy(log_p: Tensor, p: Tensor) -> Tensor:
    """−Σ p log p a row; 0 · (−∞) counts as 0."""
    return -torch.nan_to_num(p * log_p).sum(1)


def _sparse(
    rows: Tensor, ids: Tensor, weights: Tensor, entropy: Tensor, estimator: Literal["unbiased", "top_k"], vocab: int
) -> Sparse:
    """The signal of entries that are sorted by row."""
    counts = torch.bincount(rows, minlength=entropy.shape[0])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    return Sparse(offsets, ids.to(torch.int32), weights, entropy, estimator, vocab=vocab)

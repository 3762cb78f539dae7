"""What is kept of a teacher's distribution p over V tokens, as a `Sparse` signal.

- `threshold` keeps every p ≥ τ with its weight, and a systematic sample of the others at weight τ. No bias. Entries a
  token: #{p ≥ τ} + Σ_{p < τ} p / τ in expectation.
- `sampled` keeps the distinct ones of N draws from p, with weight count / N (RS-KD, arXiv 2503.16870). No bias. Some 12
  entries at N = 50.
- `topk` keeps the k largest, or those that hold `top_p`, and the mass of all others as one: the tail's shape is lost.

A `threshold` weight has variance τ·p·(1 − p/τ) where p < τ, and none above: the squared error of a token's distribution
is Σ_{p < τ} p (τ − p). Of `sampled` it is Σ p (1 − p) / N.

The caller gives the uniform numbers, one (or N) per row, so that a record has the same draws in any batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from potstill.signals import Sparse
from potstill.store.codec import Entries


def threshold(log_p: Float[Tensor, "N V"], tau: float, uniforms: Float[Tensor, " N"]) -> Sparse:
    """Exact above τ, sampled below it.

    Of the tokens below τ, in the order of their ids, one is taken wherever the cumulative p / τ passes an integer,
    after a random start: each at most once, with probability p / τ. Their weight is τ, so only their id need be stored.
    What is within 0.01 % below τ is kept exactly too: rounding could give it two of the sample's points.

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
    blocks, sums = _blocks(p)
    exact = tau * (1 - _NEAR)
    # A token above τ is in a block whose sum is: few are looked into.
    row, block = (sums >= exact * (1 - _NEAR)).nonzero().unbind(1)
    inside = blocks[row, block]
    entry, place = (inside >= exact).nonzero().unbind(1)
    sums[row, block] = torch.where(inside >= exact, 0.0, inside).sum(1)
    rows, ids = row[entry], block[entry] * _BLOCK + place
    drawn_rows, drawn_ids = _systematic(blocks, sums, tau, exact, uniforms)
    all_rows, all_ids = torch.cat([rows, drawn_rows]), torch.cat([ids, drawn_ids])
    weights = torch.cat([p[rows, ids], torch.full_like(drawn_ids, 0, dtype=p.dtype) + tau])
    order = (all_rows * p.shape[1] + all_ids).argsort()
    return _sparse(all_rows[order], all_ids[order], weights[order], _entropy(log_p, p), "unbiased", p.shape[1])


_BLOCK, _NEAR = 64, 1e-4


def _blocks(p: Float[Tensor, "N V"]) -> tuple[Float[Tensor, "N B 64"], Float[Tensor, "N B"]]:
    """The tokens in blocks of 64, and the sum of each block: a search goes through V / 64 sums, then one block."""
    padded = torch.nn.functional.pad(p, (0, -p.shape[1] % _BLOCK)) if p.shape[1] % _BLOCK else p
    blocks = padded.view(p.shape[0], -1, _BLOCK)
    return blocks, blocks.sum(2)


def _systematic(
    blocks: Float[Tensor, "N B 64"],
    sums: Float[Tensor, "N B"],
    tau: float,
    below: float,
    uniforms: Float[Tensor, " N"],
) -> tuple[Tensor, Tensor]:
    """(rows, ids) of the tokens with p < `below` in which their cumulative mass passes (start + k) · τ, k = 0, 1, …

    Args:
        blocks: all probabilities.
        sums: of those with p < `below` in each block.
    """
    # In double precision: a small p added to a sum near 1 would be lost in single.
    passed = sums.double().cumsum(1)
    mass = passed[:, -1]
    most = int(torch.ceil(mass.max() / tau)) if mass.numel() else 0
    points = (uniforms.double()[:, None] + torch.arange(most, dtype=torch.float64, device=mass.device)) * tau
    row, point = (points < mass[:, None]).nonzero().unbind(1)
    return row, _at(blocks, passed, points, row, point, below)


def _at(
    blocks: Tensor, passed: Tensor, points: Float[Tensor, "N D"], row: Tensor, point: Tensor, below: float = math.inf
) -> Tensor:
    """The ids at which the cumulative mass of the tokens with p < `below` passes some of the points."""
    at = points[row, point]
    block = torch.searchsorted(passed, points, right=True)[row, point]
    before = torch.where(block > 0, passed[row, (block - 1).clamp_min(0)], 0.0)
    inside = blocks[row, block]
    inside = torch.where(inside < below, inside, 0.0).double()  # compared as `threshold` compares it
    place = torch.searchsorted(inside.cumsum(1), (at - before)[:, None], right=True).squeeze(1)
    # Rounding may put a point past the last token of its block: it belongs to the last token with any mass.
    last = _BLOCK - 1 - (inside > 0).flip(1).to(torch.uint8).argmax(1)
    return block * _BLOCK + torch.minimum(place, last)


def sampled(log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
    """D draws from p with replacement: weights count / D.

    Args:
        log_p: normalised log-probabilities.
        uniforms: in [0, 1), D a row.
    """
    p = log_p.exp()
    blocks, sums = _blocks(p)
    passed = sums.double().cumsum(1)
    # A product may round to the whole mass, which no token passes.
    points = (uniforms.double() * passed[:, -1:]).minimum(passed[:, -1:] * (1 - 1e-15))
    row = torch.arange(p.shape[0], device=p.device).repeat_interleave(uniforms.shape[1])
    point = torch.arange(uniforms.shape[1], device=p.device).repeat(p.shape[0])
    keys, counts = (row * p.shape[1] + _at(blocks, passed, points, row, point)).unique(return_counts=True)
    weights = counts.to(p.dtype) / uniforms.shape[1]
    return _sparse(keys // p.shape[1], keys % p.shape[1], weights, _entropy(log_p, p), "unbiased", p.shape[1])


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
    rest = log_p.scatter(1, ids, torch.where(enough, -torch.inf, values)).logsumexp(1)
    p = log_p.exp()
    rows, places = enough.nonzero().unbind(1)
    ids, weights = ids[rows, places], values[rows, places].exp()
    return _sparse(rows, ids, weights, _entropy(log_p, p), "top_k", p.shape[1]), rest


def joined(parts: Sequence[Sparse]) -> Sparse:
    """The signals of consecutive rows as one. Rows are reduced a few at a time, while they are in the processor's
    cache."""
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


def entries_of(
    sparse: Sparse, target_log_prob: Float[Tensor, " N"], tensors: Mapping[str, NDArray[np.float32]] | None = None
) -> Entries:
    """The signal of N targets as the codec takes it.

    Args:
        sparse: a row for each target; on any device.
        target_log_prob: of each target.
        tensors: what is stored beside, by name.
    """
    arrays = (sparse.offsets, sparse.ids, sparse.weights, sparse.entropy, target_log_prob)
    offsets, ids, weights, entropy, target = (t.cpu().numpy() for t in arrays)
    rest = sparse.rest.cpu().numpy() if sparse.rest is not None else np.zeros(0, np.float32)
    return Entries(offsets, ids, weights.astype(np.float32), entropy, target, rest, tensors or {})


def tau_for_budget(bytes_at: Callable[[float], float], budget: float) -> float:
    """The τ at which a sample takes `budget` bytes a token on average, to 0.5 %.

    Each trial encodes the whole sample, so few are made: secant steps on log bytes over log τ, which is nearly a line,
    and a bisection where a step leaves the bracket.

    Args:
        bytes_at: bytes per token of the sample, encoded at a τ; falls as τ rises.
        budget: at least `bytes_at(1)`; below, the result is 1.
    """
    low, high, at = math.log(1e-6), 0.0, min(0.0, -math.log(budget))
    before: tuple[float, float] | None = None
    for _ in range(30):
        excess = math.log(bytes_at(math.exp(at)) / budget)
        if abs(excess) < math.log1p(0.005) or (excess > 0 and at == 0):  # not even τ = 1 is few enough
            break
        low, high = (at, high) if excess > 0 else (low, at)
        slope = -1.0 if before is None else (excess - before[1]) / (at - before[0])
        before = at, excess
        guess = at - excess / slope if slope < 0 else low
        at = guess if low < guess < high else (low + high) / 2
    return math.exp(at)


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
    entropy = -torch.linalg.vecdot(p, log_p)
    return entropy if not entropy.isnan().any() else -torch.nan_to_num(p * log_p).sum(1)


def _sparse(
    rows: Tensor, ids: Tensor, weights: Tensor, entropy: Tensor, estimator: Literal["unbiased", "top_k"], vocab: int
) -> Sparse:
    """The signal of some entries, which are sorted by row."""
    counts = torch.bincount(rows, minlength=entropy.shape[0])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Sparse(offsets, ids.to(torch.int32), weights, entropy, estimator, vocab=vocab)

"""The rule of speculative sampling: which drafted tokens stand, and what comes after them.

A drafted token x ~ q is accepted with probability min(1, p(x)/q(x)). At the first rejection the next token is drawn
from max(p − q, 0), normalised; if all are accepted, from p: the bonus token. Then every token has the distribution p.
Leviathan et al. 2022 (arXiv 2211.17192), algorithm 1; Chen et al. 2023 (arXiv 2302.01318), theorem 1.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from potstill.decoding.generator import draw


class Verdict(NamedTuple):
    """Per row: the number of drafted tokens that stand, and the token behind them."""

    accepted_B: Int[Tensor, " B"]
    next_B: Int[Tensor, " B"]


class Source(Protocol):
    """A source of random choices."""

    def draw(self, weights_BV: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
        """One token of each row, by its weight."""
        ...

    def accepts(self, p: Float[Tensor, "B g"], q: Float[Tensor, "B g"]) -> Bool[Tensor, "B g"]:
        """True with probability min(1, p/q), each independently."""
        ...


class Chance:
    """Seeded chance: the same calls give the same tokens.

    Args:
        seed: of the draws.
        device: of the tensors.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)

    def draw(self, weights_BV: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
        return draw(weights_BV, self._generator)

    def accepts(self, p: Float[Tensor, "B g"], q: Float[Tensor, "B g"]) -> Bool[Tensor, "B g"]:
        r = torch.rand(p.shape, dtype=p.dtype, device=p.device, generator=self._generator)
        return stands(r, p, q)


def stands(r: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """r < p/q, r uniform on [0, 1). Strictly less: r may be 0, and a token that the target never writes has p = 0."""
    return r < p / q


def residual(p_BV: Float[Tensor, "B V"], q_BV: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """max(p − q, 0), not normalised; p itself where rounding leaves nothing of it (a rejection although p = q)."""
    rest = (p_BV - q_BV).clamp_min_(0)
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest, p_BV)


def verify_sampled(
    p_BnV: Float[Tensor, "B n V"],
    q_BgV: Float[Tensor, "B g V"] | None,
    drafted_Bg: Int[Tensor, "B g"],
    counts_B: Int[Tensor, " B"],
    source: Source,
) -> Verdict:
    """Accept or reject, then draw one token more.

    Args:
        p_BnV: the target's distributions, as they are sampled from (n = g + 1).
        q_BgV: the distributions that the drafted tokens were drawn from; None where each was certain (q(x) = 1).
        drafted_Bg: the drafted tokens.
        counts_B: the number that each row has; further ones are never accepted.
        source: of chance.
    """
    rows, most = drafted_Bg.shape
    drafted = drafted_Bg[..., None]
    p_drafted = p_BnV[:, :most].gather(-1, drafted).squeeze(-1)
    q_drafted = torch.ones_like(p_drafted) if q_BgV is None else q_BgV.gather(-1, drafted).squeeze(-1)
    real = torch.arange(most, device=p_BnV.device) < counts_B[:, None]
    stand = source.accepts(p_drafted, q_drafted) & real
    accepted = stand.long().cumprod(-1).sum(-1)
    row = torch.arange(rows, device=p_BnV.device)
    p = p_BnV[row, accepted]
    if most == 0:
        return Verdict(accepted, source.draw(p))
    place = accepted.clamp_max(most - 1)
    if q_BgV is None:
        q = torch.zeros_like(p).scatter_(-1, drafted_Bg[row, place, None], 1.0)
    else:
        q = q_BgV[row, place]
    q = q * (accepted < counts_B)[:, None]  # nothing was rejected where all were accepted: the bonus token is from p
    return Verdict(accepted, source.draw(residual(p, q)))


def verify_greedy(best_Bn: Int[Tensor, "B n"], drafted_Bg: Int[Tensor, "B g"], counts_B: Int[Tensor, " B"]) -> Verdict:
    """Accept what the target would have written, up to the first difference; the next token is the target's."""
    most = drafted_Bg.shape[1]
    real = torch.arange(most, device=best_Bn.device) < counts_B[:, None]
    accepted = ((best_Bn[:, :most] == drafted_Bg) & real).long().cumprod(-1).sum(-1)
    return Verdict(accepted, best_Bn.gather(-1, accepted[:, None]).squeeze(-1))

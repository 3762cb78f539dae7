"""The vocabulary-sized objectives in plain form, on whole logits.

These are the references: tests hold every row rule of the fused sweep equal to its function here, in value and
gradient. They allocate several arrays of [N,V]; training uses the sweep.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from potstill.signals import Sparse


def temperature_gain(temperature: float, scale_by_temperature_squared: bool) -> float:
    """The factor on a soft term: T² where the method says so, else 1. Hinton et al. 2015, §2.1.

    It multiplies the *value*, and so the gradient: without it ∂/∂z of a term at temperature T shrinks with 1/T², and
    the balance against a hard term would depend on T. This is the only place where the factor is chosen.
    """
    return temperature**2 if scale_by_temperature_squared else 1.0


def shared_tokens(student_vocab: int, teacher_vocab: int) -> int:
    """The number of leading rows that both heads have. Heads of different lengths are sliced to it, never padded: any
    pad value would change the softmax (0) or give NaN (−∞)."""
    return min(student_vocab, teacher_vocab)


def softened(
    student_logits_NV: Float[Tensor, "N V"], teacher_logits_NV: Float[Tensor, "N W"], temperature: float
) -> tuple[Float[Tensor, "N shared"], Float[Tensor, "N shared"]]:
    """(log p, log q): the log-softmax of teacher and student at a temperature, over the shared tokens. The teacher's is
    detached."""
    shared = shared_tokens(student_logits_NV.shape[-1], teacher_logits_NV.shape[-1])
    log_p = torch.log_softmax(teacher_logits_NV[:, :shared].detach() / temperature, dim=-1)
    return log_p, torch.log_softmax(student_logits_NV[:, :shared] / temperature, dim=-1)


def log_mixture(log_p_NV: Float[Tensor, "N V"], log_q_NV: Float[Tensor, "N V"], share: float) -> Float[Tensor, "N V"]:
    """log(share · p + (1 − share) · q)."""
    return torch.logaddexp(log_p_NV + math.log(share), log_q_NV + math.log1p(-share))


def kl(log_p_NV: Float[Tensor, "N V"], log_q_NV: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """KL(p ‖ q) = Σ_v p_v (log p_v − log q_v) in nats, of two distributions given as logarithms."""
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)


def forward_kl(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N W"],
    temperature: float = 1.0,
    *,
    scale_by_temperature_squared: bool = False,
) -> Float[Tensor, " N"]:
    """KL(teacher ‖ student) = Σ_v p_v (log p_v − log q_v) in nats, per row, with p and q the softmax of teacher and
    student at the temperature, over the shared tokens.

    Hinton et al. 2015, §2. The gradient flows to the student only:
    ∂/∂z = gain · (q − p) / T, with gain = T² or 1.
    """
    log_p, log_q = softened(student_logits_NV, teacher_logits_NV, temperature)
    return temperature_gain(temperature, scale_by_temperature_squared) * kl(log_p, log_q)


def soft_ce(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N W"],
    temperature: float = 1.0,
    *,
    scale_by_temperature_squared: bool = False,
) -> Float[Tensor, " N"]:
    """−Σ_v p_v log q_v: `forward_kl` plus the teacher's entropy, with the same gradient. Hinton et al. 2015, §2."""
    log_p, log_q = softened(student_logits_NV, teacher_logits_NV, temperature)
    return -temperature_gain(temperature, scale_by_temperature_squared) * (log_p.exp() * log_q).sum(-1)


def reverse_kl(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N W"],
    temperature: float = 1.0,
    *,
    scale_by_temperature_squared: bool = False,
) -> Float[Tensor, " N"]:
    """KL(student ‖ teacher) = Σ_v q_v (log q_v − log p_v). Agarwal et al. 2023 (GKD), §2.

    ∂/∂z = gain · q (log q − log p − value) / T.
    """
    log_p, log_q = softened(student_logits_NV, teacher_logits_NV, temperature)
    return temperature_gain(temperature, scale_by_temperature_squared) * kl(log_q, log_p)


def jsd(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N W"],
    beta: float = 0.5,
    temperature: float = 1.0,
    *,
    scale_by_temperature_squared: bool = False,
) -> Float[Tensor, " N"]:
    """β · KL(p ‖ m) + (1−β) · KL(q ‖ m) with m = β·p + (1−β)·q, 0 < β < 1; at most the entropy of (β, 1−β), ln 2 for
    β = ½. Agarwal et al. 2023 (GKD), eq. 1.

    ∂/∂z = gain · (1−β) · q (log(q/m) − KL(q ‖ m)) / T.
    """
    log_p, log_q = softened(student_logits_NV, teacher_logits_NV, temperature)
    log_m = log_mixture(log_p, log_q, beta)
    value = beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)
    return temperature_gain(temperature, scale_by_temperature_squared) * value


def skewed_kl(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N W"],
    alpha: float = 0.1,
    temperature: float = 1.0,
    *,
    scale_by_temperature_squared: bool = False,
) -> Float[Tensor, " N"]:
    """KL(p ‖ m) with m = α·p + (1−α)·q, 0 < α < 1; at most −ln α. Ko et al. 2024 (DistiLLM), eq. 4.

    ∂/∂z = gain · (1−α)² · q (Σ q r − r) / T with r = (p − q)/m.
    """
    log_p, log_q = softened(student_logits_NV, teacher_logits_NV, temperature)
    value = kl(log_p, log_mixture(log_p, log_q, alpha))
    return temperature_gain(temperature, scale_by_temperature_squared) * value


def skewed_reverse_kl(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N W"],
    alpha: float = 0.1,
    temperature: float = 1.0,
    *,
    scale_by_temperature_squared: bool = False,
) -> Float[Tensor, " N"]:
    """KL(q ‖ m) with m = α·q + (1−α)·p, 0 < α < 1; at most −ln α. Ko et al. 2024 (DistiLLM), §3.1.

    The gradient also flows through m: ∂/∂z = gain · q (h − Σ q h) / T with h = log(q/m) − α(1−α)(q − p)/m.
    """
    log_p, log_q = softened(student_logits_NV, teacher_logits_NV, temperature)
    value = kl(log_q, log_mixture(log_q, log_p, alpha))
    return temperature_gain(temperature, scale_by_temperature_squared) * value


def total_variation(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N W"],
    temperature: float = 1.0,
    *,
    scale_by_temperature_squared: bool = False,
) -> Float[Tensor, " N"]:
    """½ Σ_v |p_v − q_v|, in [0, 1]. Wen et al. 2023 (f-distill), §3.

    ∂/∂z = gain · ½ q (s − Σ q s) / T with s = sign(q − p), which is 0 at 0: there the value has a kink.
    """
    log_p, log_q = softened(student_logits_NV, teacher_logits_NV, temperature)
    return temperature_gain(temperature, scale_by_temperature_squared) * 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def acceptance(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N W"],
    temperature: float = 1.0,
    *,
    scale_by_temperature_squared: bool = False,
) -> Float[Tensor, " N"]:
    """−log α, α = Σ_v min(p_v, q_v) the probability that a token drafted from q is accepted, and 1 − total variation.
    Leviathan et al. 2022, theorem 3.5.

    ∂/∂z = gain · ½ q (s − Σ q s) / (α T) with s = sign(q − p): the gradient of total variation divided by α.
    """
    log_p, log_q = softened(student_logits_NV, teacher_logits_NV, temperature)
    value = -torch.minimum(log_p, log_q).logsumexp(-1)
    return temperature_gain(temperature, scale_by_temperature_squared) * value


def logit_mse(student_logits_NV: Float[Tensor, "N V"], teacher_logits_NV: Float[Tensor, "N W"]) -> Float[Tensor, " N"]:
    """Mean over the shared tokens of (z_student − z_teacher)². Ba & Caruana 2014, eq. 1; Kim et al. 2021.

    ∂/∂z = 2 (z_student − z_teacher) / shared tokens. Unlike the others it depends on the level of the logits.
    """
    shared = shared_tokens(student_logits_NV.shape[-1], teacher_logits_NV.shape[-1])
    return (student_logits_NV[:, :shared] - teacher_logits_NV[:, :shared].detach()).square().mean(-1)


def dkd(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N W"],
    target_ids_N: Int[Tensor, " N"],
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 1.0,
    *,
    scale_by_temperature_squared: bool = False,
) -> Float[Tensor, " N"]:
    """α · KL(b_p ‖ b_q) + β · KL(p̂ ‖ q̂): b is (target, all other tokens), p̂ and q̂ are over the other tokens alone.
    Zhao et al. 2022 (DKD), eq. 7. With α = 1 and β = 1 − p_target it is `forward_kl` (their eq. 5).

    If a target is not among the shared tokens, all of these are others: the first term is 0, the second KL(p ‖ q).

    ∂/∂z = gain · [β (q̂ − p̂) + α (b_q − b_p) (δ_target − q̂)] / T, b the probability of the target.
    """
    log_p, log_q = softened(student_logits_NV, teacher_logits_NV, temperature)
    is_target = target_ids_N[:, None] == torch.arange(log_p.shape[-1], device=log_p.device)
    inside = is_target.any(-1)

    def apart(log_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p of the target, log of the others' mass, and log p̂ (undefined at the target itself)."""
        log_others = log_NV.masked_fill(is_target, -math.inf).logsumexp(-1)
        return torch.where(is_target, log_NV, 0).sum(-1), log_others, log_NV - log_others[:, None]

    target_p, others_p, hat_p = apart(log_p)
    target_q, others_q, hat_q = apart(log_q)
    pair = target_p.exp() * (target_p - target_q) + others_p.exp() * (others_p - others_q)
    rest = torch.where(is_target, 0, hat_p.exp() * (hat_p - hat_q)).sum(-1)
    value = alpha * torch.where(inside, pair, 0) + beta * rest
    return temperature_gain(temperature, scale_by_temperature_squared) * value


def sparse_soft_ce(
    student_logits_NV: Float[Tensor, "N V"], sparse: Sparse, *, scale_by_temperature_squared: bool = False
) -> Float[Tensor, " N"]:
    """Σ over stored entries of w (−log q), at the temperature of the store, with weights not renormalised.

    `unbiased`: the expectation over the store's sampling is `soft_ce`, for value and gradient. `top_k` adds the
    remaining mass r = 1 − Σ w against all tokens that are not stored, as one: r · (−log Σ q_not stored); never above
    `soft_ce`.
    """
    temperature, (rows, vocab) = sparse.temperature, student_logits_NV.shape
    log_q = torch.log_softmax(student_logits_NV[:, : shared_tokens(vocab, sparse.vocab or vocab)] / temperature, -1)
    row_of = torch.repeat_interleave(torch.arange(rows, device=log_q.device), sparse.offsets.diff())
    weights = torch.zeros_like(log_q).index_put((row_of, sparse.ids), sparse.weights.to(log_q.dtype), accumulate=True)
    value = -(weights * log_q).sum(-1)
    if sparse.estimator == "top_k":
        kept = torch.zeros_like(log_q, dtype=torch.bool)
        kept[row_of, sparse.ids] = True
        left = (1 - weights.sum(-1)).clamp(min=0) if sparse.rest is None else sparse.rest.to(log_q.dtype).exp()
        value = value - torch.where(kept.all(-1), 0, left * log_q.masked_fill(kept, -1e30).logsumexp(-1))
    return temperature_gain(temperature, scale_by_temperature_squared) * value


def sparse_forward_kl(
    student_logits_NV: Float[Tensor, "N V"], sparse: Sparse, *, scale_by_temperature_squared: bool = False
) -> Float[Tensor, " N"]:
    """`sparse_soft_ce` minus the teacher's entropy: the stored one, or for a `top_k` store that of its entries with
    the remaining mass as one more. The latter is KL(p ‖ q) − r · KL of the tails, each normalised: in [0, KL(p ‖ q)].
    """
    rows, vocab = sparse.entropy.shape[0], student_logits_NV.shape[-1]
    entropy = sparse.entropy.to(student_logits_NV.dtype)
    if sparse.estimator == "top_k":
        kept = sparse.offsets.diff()
        row_of = torch.repeat_interleave(torch.arange(rows, device=kept.device), kept)
        w = sparse.weights.to(student_logits_NV.dtype)
        left = (1 - torch.zeros_like(entropy).index_add(0, row_of, w)).clamp(min=0)
        left = left if sparse.rest is None else sparse.rest.to(left.dtype).exp()
        left = torch.where(kept >= shared_tokens(vocab, sparse.vocab or vocab), 0, left)
        entropy = -torch.special.xlogy(left, left).index_add(0, row_of, torch.special.xlogy(w, w))
    gain = temperature_gain(sparse.temperature, scale_by_temperature_squared)
    ce = sparse_soft_ce(student_logits_NV, sparse, scale_by_temperature_squared=scale_by_temperature_squared)
    return ce - gain * entropy


def hard_ce(student_logits_NV: Float[Tensor, "N V"], target_ids_N: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Cross-entropy −log q[target] in nats, per row, over **all** rows of the student's head (rule 5)."""
    log_q = torch.log_softmax(student_logits_NV, dim=-1)
    return -log_q.gather(-1, target_ids_N[:, None]).squeeze(-1)


def mass_on_cut_rows(logits_NV: Float[Tensor, "N V"], shared: int) -> Float[Tensor, " N"]:
    """The probability of tokens beyond the first `shared`, per row, in [0, 1]."""
    return torch.softmax(logits_NV, dim=-1)[:, shared:].sum(-1)

"""What the vocabulary-sized objectives compute, written plainly on whole logits.

These are the references: every row rule of the fused sweep is held equal to its function here, in value and in
gradient. They allocate several arrays of [N,V]; training uses the sweep.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def temperature_gain(temperature: float, scale_by_temperature_squared: bool) -> float:
    """The factor on a soft term: T² where the method says so, else 1. Hinton et al. 2015, §2.1.

    It multiplies the *value*, and so the gradient: ∂/∂z of a term at temperature T shrinks with 1/T², and the
    balance against a hard term would move with T. This is the one place where it is decided.
    """
    return temperature**2 if scale_by_temperature_squared else 1.0


def shared_tokens(student_vocab: int, teacher_vocab: int) -> int:
    """The number of leading rows that both heads have. Heads padded to different lengths are sliced to it, never
    filled: any pad value would change the softmax (0) or make NaN (−∞)."""
    return min(student_vocab, teacher_vocab)


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
    shared = shared_tokens(student_logits_NV.shape[-1], teacher_logits_NV.shape[-1])
    log_q = torch.log_softmax(student_logits_NV[:, :shared] / temperature, dim=-1)
    log_p = torch.log_softmax(teacher_logits_NV[:, :shared].detach() / temperature, dim=-1)
    gain = temperature_gain(temperature, scale_by_temperature_squared)
    return gain * (log_p.exp() * (log_p - log_q)).sum(-1)


def hard_ce(student_logits_NV: Float[Tensor, "N V"], target_ids_N: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Cross-entropy −log q[target] in nats, per row, over **all** rows of the student's head (rule 5)."""
    log_q = torch.log_softmax(student_logits_NV, dim=-1)
    return -log_q.gather(-1, target_ids_N[:, None]).squeeze(-1)


def mass_on_cut_rows(logits_NV: Float[Tensor, "N V"], shared: int) -> Float[Tensor, " N"]:
    """The probability that a model gives to tokens beyond the first `shared`, per row, in [0, 1]."""
    return torch.softmax(logits_NV, dim=-1)[:, shared:].sum(-1)

"""Settings of objectives on the response: the distribution over the next token, or over the classes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from potstill.recipe.base import PartIfSet
from potstill.recipe.objectives import Needs, ObjectiveSettings
from potstill.recipe.schedules import PositiveSchedule

_WHOLE = Needs(teacher=(frozenset({"head", "dense"}),))
"""Teacher signals with every probability: terms that are not linear in them are biased on sampled or truncated
distributions."""

_LINEAR = Needs(teacher=(frozenset({"head", "dense", "top_logprobs"}),))
"""Teacher signals for terms that are linear in its probabilities: exact in expectation on any unbiased sample; on a
truncated distribution up to its tail's stated mass."""


class SoftSettings(ObjectiveSettings):
    """Base of terms between two softened distributions, p the teacher's and q the student's softmax(z / T).

    `scale_by_temperature_squared` multiplies value and gradient by T², so that T does not change the balance with a
    hard term. Hinton et al. 2015, §2.1.
    """

    temperature: PositiveSchedule = 1.0
    scale_by_temperature_squared: bool = True

    def needs(self) -> Needs:
        return _WHOLE


class ForwardKL(SoftSettings):
    """KL(teacher ‖ student) over the vocabulary at a temperature. Hinton et al. 2015, §2."""

    kind: Literal["forward_kl"] = "forward_kl"

    def needs(self) -> Needs:
        return _LINEAR


class SoftCE(SoftSettings):
    """Cross-entropy −Σ p log q against soft targets: forward KL plus the teacher's entropy, so the same gradient.

    TinyBERT's code also divides it by the number of classes (a mean over all entries instead of a sum over classes and
    a mean over rows); for that balance divide the weight by the number of classes.
    """

    kind: Literal["soft_ce"] = "soft_ce"

    def needs(self) -> Needs:
        return _LINEAR


class ReverseKL(SoftSettings):
    """KL(student ‖ teacher): mode-seeking. On text written by the student it is GKD's objective with β = 1 (Agarwal et
    al. 2023); it is not MiniLLM, which is a policy gradient."""

    kind: Literal["reverse_kl"] = "reverse_kl"


class JSD(SoftSettings):
    """Generalised Jensen-Shannon divergence, β·KL(p ‖ m) + (1−β)·KL(q ‖ m) with m = β·p + (1−β)·q. Agarwal et al. 2023
    (GKD), eq. 1.

    β is strictly between 0 and 1: at both ends the value is 0 for any student, although divided by β (or by 1−β) it
    tends to forward (or reverse) KL. Libraries that accept `beta` 0 and 1 mean forward_kl and reverse_kl.
    """

    kind: Literal["jsd"] = "jsd"
    beta: float = Field(0.5, gt=0, lt=1)


class SkewedKL(SoftSettings):
    """KL(p ‖ α·p + (1−α)·q). Ko et al. 2024 (DistiLLM), eq. 4, with α = 0.1."""

    kind: Literal["skewed_kl"] = "skewed_kl"
    alpha: float = Field(0.1, gt=0, lt=1)


class SkewedReverseKL(SoftSettings):
    """KL(q ‖ α·q + (1−α)·p). Ko et al. 2024 (DistiLLM), §3.1, with α = 0.1."""

    kind: Literal["skewed_reverse_kl"] = "skewed_reverse_kl"
    alpha: float = Field(0.1, gt=0, lt=1)


class TotalVariation(SoftSettings):
    """½ Σ |p − q|, in [0, 1]. Wen et al. 2023 (f-distill)."""

    kind: Literal["total_variation"] = "total_variation"


class Acceptance(SoftSettings):
    """−log Σ min(p, q): minus the logarithm of the probability that a draft's token is accepted (Leviathan et al. 2022,
    theorem 3.5: α = Σ min(p, q) = 1 − total variation). Its gradient is that of total variation divided by α."""

    kind: Literal["acceptance"] = "acceptance"


class Medusa(ObjectiveSettings):
    """Σ λ^k · cross-entropy of Medusa head k with the token k places behind the next one, λ = `decay`: heads on the
    student's last hidden state, trained along and kept. Cai et al. 2024, §2.2 (Medusa; λ = 0.8).

    `heads` is their number; with `frequent` they know only the K most frequent tokens of the training records. With
    `states: stored` the states come from a signal store (`capture: {kind: hidden}`) of the target, which does not run.
    """

    kind: Literal["medusa"] = "medusa"
    trains_alone: ClassVar[bool] = True
    heads: int = Field(4, ge=1, le=16)
    frequent: Annotated[int, Field(ge=1)] | None = None
    decay: float = Field(0.8, gt=0, le=1)
    states: Annotated[Literal["stored"] | None, PartIfSet()] = None

    def needs(self) -> Needs:
        if self.states is None:
            return super().needs()
        return Needs(teacher=(frozenset({"head"}),), student=frozenset())


class LogitMSE(ObjectiveSettings):
    """Mean over the shared tokens of (z_student − z_teacher)². Ba & Caruana 2014, eq. 1; Kim et al. 2021."""

    kind: Literal["logit_mse"] = "logit_mse"

    def needs(self) -> Needs:
        return _WHOLE


class DecoupledKD(SoftSettings):
    """α·KL(b_teacher ‖ b_student) + β·KL(p̂ ‖ q̂): b is the pair (target, all others), p̂ and q̂ are over the others
    alone. Zhao et al. 2022 (DKD), eq. 7; α = 1 and β = 8 at T = 4 for one pair of their networks."""

    kind: Literal["dkd"] = "dkd"
    alpha: NonNegativeFloat = 1.0
    beta: NonNegativeFloat = 8.0


class HardCE(ObjectiveSettings):
    """Cross-entropy against the tokens of the text, or against the classes of the data."""

    kind: Literal["hard_ce"] = "hard_ce"

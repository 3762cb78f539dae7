"""Settings of objectives on features: hidden states, attention, and outputs of modules."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PositiveFloat

from potstill.recipe.base import Settings
from potstill.recipe.objectives import TAPPED, Needs, ObjectiveSettings, Scope

_NAMED = ("last", "uniform", "every_other", "embeddings")


def _one_map(value: Any) -> Any:
    if isinstance(value, str) and value not in _NAMED:
        raise ValueError(f"{value!r} is no map of layers: give {', '.join(_NAMED)}, or pairs [[student, teacher], …]")
    return value


Pairs = Annotated[tuple[tuple[int, int], ...], Field(min_length=1)]

LayerMap = Annotated[Literal["last", "uniform", "every_other", "embeddings"] | Pairs, BeforeValidator(_one_map)]
"""Pairs of student and teacher states; state 0 is the embeddings, L the last state, after the final norm. `last` is
one pair; `uniform` is i → round(i·L_teacher/L_student) for i = 0 … L_student (as in TinyBERT); `every_other` is i →
2·i, for a student with every other layer; `embeddings` is 0 → 0; or explicit pairs."""

AttentionMap = Annotated[Literal["last", "uniform", "every_other"] | Pairs, BeforeValidator(_one_map)]
"""Pairs of attention layers, counted from 0: `uniform` is i → round((i+1)·L_teacher/L_student) − 1 (as in TinyBERT),
`every_other` is i → 2·i + 1."""


class Modules(Settings):
    """A module of each model, by path (`layer1.0.conv2`) as in `named_modules()`; its output is compared."""

    student: str
    teacher: str


_STATES = Needs(teacher=TAPPED, student=frozenset({"states"}))
_ATTENTION = Needs(teacher=TAPPED, student=frozenset({"attention"}))
_MODULES = Needs(teacher=TAPPED, student=frozenset({"modules"}))


class HiddenSettings(ObjectiveSettings):
    """Base of objectives that compare hidden states; the value is the mean over the pairs of layers.

    If widths differ, a learned linear projection without bias maps student width to teacher width; it is trained along
    and removed at export. `project: always` uses one for equal widths too, as TinyBERT's code does. It is initialised
    randomly, or, with `projection_init: pca`, with the teacher's principal components on the first batch.
    `share_projection` uses one for all pairs (as TinyBERT's code does); otherwise each pair has its own. DistilBERT's
    recipe uses `over: tokens`.
    """

    layers: LayerMap = "last"
    over: Literal["targets", "tokens"] = Field("targets")
    project: Literal["where_needed", "always"] = "where_needed"
    projection_init: Literal["random", "pca"] = "random"
    share_projection: bool = False

    def needs(self) -> Needs:
        return _STATES


class HiddenCosine(HiddenSettings):
    """1 − cos(student, teacher) of hidden states. Sanh et al. 2019, §3."""

    kind: Literal["hidden_cosine"] = "hidden_cosine"


class HiddenMSE(HiddenSettings):
    """Mean over the width of (student − teacher)² of hidden states. Jiao et al. 2020 (TinyBERT), eq. 8.

    TinyBERT's code averages over all positions, padding included, so its value depends on how a batch is padded; here
    padding is excluded from the sum and the divisor.
    """

    kind: Literal["hidden_mse"] = "hidden_mse"


class HiddenSmoothL1(HiddenSettings):
    """Mean over the width of the smooth L1 distance of hidden states: ½d²/δ where |d| < δ, else |d| − ½δ."""

    kind: Literal["hidden_smooth_l1"] = "hidden_smooth_l1"
    delta: PositiveFloat = 1.0


class AttentionScores(ObjectiveSettings):
    """Mean squared difference of attention scores before the softmax, over heads and unmasked pairs of tokens. Jiao et
    al. 2020 (TinyBERT), eq. 7. Needs equal numbers of heads."""

    scope: ClassVar[Scope] = "example"
    kind: Literal["attention_scores"] = "attention_scores"
    layers: AttentionMap = "uniform"

    def needs(self) -> Needs:
        return _ATTENTION


class AttentionKL(ObjectiveSettings):
    """KL(teacher ‖ student) of attention distributions, the mean over heads and tokens. Wang et al. 2020 (MiniLM),
    §3.1. Needs equal numbers of heads."""

    scope: ClassVar[Scope] = "example"
    kind: Literal["attention_kl"] = "attention_kl"
    layers: AttentionMap = "last"

    def needs(self) -> Needs:
        return _ATTENTION


class AttentionTransfer(ObjectiveSettings):
    """Mean squared difference of normalised activation maps of convolutional nets, Q = Σ_channels |F|^p flattened and
    divided by its norm, the mean over pairs of modules. Zagoruyko & Komodakis 2017, eq. 2 (p = 2), with the mean of
    their code. The maps must have the same size. For p < 1 the gradient at a zero activation (after a ReLU) is
    infinite."""

    scope: ClassVar[Scope] = "example"
    kind: Literal["attention_transfer"] = "attention_transfer"
    modules: Annotated[tuple[Modules, ...], Field(min_length=1)]
    power: float = Field(2.0, ge=1)

    def needs(self) -> Needs:
        return _MODULES


class Hint(ObjectiveSettings):
    """Mean squared difference of a guided and a hint module's output, through a learned 1×1 convolution (a linear map
    for outputs without space) if the channels differ. Romero et al. 2015 (FitNets), eq. 3. The maps must have the same
    size."""

    scope: ClassVar[Scope] = "example"
    kind: Literal["hint"] = "hint"
    modules: Modules

    def needs(self) -> Needs:
        return _MODULES

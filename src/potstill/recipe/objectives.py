"""Settings of objectives: what the student is asked to match, and what each needs from the models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from potstill.recipe.base import KindSettings
from potstill.types import Capability

LayerMap = Literal["last"] | tuple[tuple[int, int], ...]
"""`last`, or pairs (student state, teacher state); 0 is the embeddings, L the last state after the final norm."""


@dataclass(frozen=True)
class Needs:
    """What an objective takes. `teacher` lists requirements, each a set of alternatives of which one suffices;
    empty means that it needs no teacher. `hidden` are the pairs of hidden states it reads (`last`: of either)."""

    teacher: tuple[frozenset[Capability], ...] = ()
    hidden: LayerMap | None = None


class ObjectiveSettings(KindSettings):
    """Base of every objective. The loss is Σ weight · (Σ values ÷ count), each with its own count."""

    room: ClassVar[str] = "objectives"
    weight: NonNegativeFloat = 1.0

    def needs(self) -> Needs:
        """What it takes from student and teacher, given its settings."""
        return Needs()


class ForwardKL(ObjectiveSettings):
    """KL(teacher ‖ student) over the vocabulary at a temperature. Hinton et al. 2015, §2.

    `scale_by_temperature_squared` multiplies value and gradient by T², so that the balance against a hard
    term does not move with T.
    """

    kind: Literal["forward_kl"] = "forward_kl"
    temperature: PositiveFloat = 1.0
    scale_by_temperature_squared: bool = True

    def needs(self) -> Needs:
        return Needs(teacher=(frozenset({"head", "dense"}),))


class HardCE(ObjectiveSettings):
    """Cross-entropy against the tokens of the text."""

    kind: Literal["hard_ce"] = "hard_ce"


class HiddenCosine(ObjectiveSettings):
    """1 − cos(student, teacher) of hidden states. Sanh et al. 2019, §3. Where widths differ, a learned linear
    projection from student to teacher width is trained along and stripped at export. DistilBERT's recipe takes
    it over all tokens."""

    kind: Literal["hidden_cosine"] = "hidden_cosine"
    layers: LayerMap = "last"
    over: Literal["targets", "tokens"] = Field("targets")

    def needs(self) -> Needs:
        return Needs(teacher=(frozenset({"taps"}),), hidden=self.layers)

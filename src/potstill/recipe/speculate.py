"""Settings of speculative decoding: the draft, what is measured, and whether a draft is trained first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from potstill.recipe.base import Cosmetic, Count, KindSettings, PathText, Settings, one_of
from potstill.recipe.students import First, FromTeacher
from potstill.recipe.train import TrainSettings

Threshold = Annotated[float, Field(ge=0, lt=1)] | Literal["fit"]
"""A draft stops before a token of which it is less sure; `fit` chooses the value with the best forecast."""

LARGEST_GAMMA = 32


class DraftSettings(KindSettings):
    """Base of every draft."""

    room: ClassVar[str] = "drafts"


class ModelDraftSettings(DraftSettings):
    """What drafts that are models share. With `frequent`, the output layer has only the K most frequent tokens of the
    data: still exact, since other tokens are never drafted."""

    frequent: Count | None = None
    threshold: Threshold = 0.0


class StudentDraft(ModelDraftSettings):
    """The student that this recipe trains."""

    kind: Literal["student"] = "student"


class OtherModelDraft(ModelDraftSettings):
    """Another model with the target's tokenizer: a directory, a hub id, `run:<folder>`, or a name that potstill
    knows."""

    kind: Literal["model"] = "model"
    model: PathText
    revision: str | None = None


class LayersDraft(ModelDraftSettings):
    """The target's first `layers` layers, with its last norm and head. Untrained they share the target's keys and
    values (an early exit); with `speculate.train` they become a model of their own."""

    kind: Literal["layers"] = "layers"
    layers: Count


class LookupDraftSettings(DraftSettings):
    """What followed the last earlier occurrence of the text's last tokens (n-grams of `shortest` to `longest`): no
    model."""

    kind: Literal["lookup"] = "lookup"
    longest: int = Field(3, ge=1, le=16)
    shortest: int = Field(1, ge=1, le=16)

    @model_validator(mode="after")
    def _sizes(self) -> LookupDraftSettings:
        if self.shortest > self.longest:
            raise ValueError(f"shortest is {self.shortest}, above longest ({self.longest}): swap them")
        return self


class ChainedDraftSettings(DraftSettings):
    """In each round a lookup if it finds something, else a model."""

    kind: Literal["chained"] = "chained"
    lookup: LookupDraftSettings = LookupDraftSettings()
    then: one_of(DraftSettings)  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _a_model_second(self) -> ChainedDraftSettings:
        if not isinstance(self.then, ModelDraftSettings):
            raise ValueError(f"then is a model draft (student, model, layers), not {self.then.kind!r}")
        return self


class SpeculateSettings(Settings):
    """How the teacher's own decoding is made faster by a draft: measure, advise, train the draft if `train` is there,
    measure again, export.

    `target` names the teacher. Costs and acceptance are measured in `dtype` on `prompts` prompts (held-out ones if
    there are any) of `max_new_tokens` new tokens, at each of `temperatures` (0 is greedy), with `top_p`. Forecasts are
    for drafts of 1 to `most` tokens a round, and for each of `batch_sizes`. `gamma` is the number that is measured and
    exported; None takes the best. If no draft of this cost could gain anything, however well it is trained, `train`
    is refused, unless `train_anyway`.
    """

    target: str = "main"
    draft: one_of(DraftSettings) = LayersDraft(layers=2, frequent=8192)  # type: ignore[valid-type]
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    prompts: int = Field(16, ge=2, le=100_000)
    max_new_tokens: int = Field(64, ge=2, le=65_536)
    temperatures: tuple[Annotated[float, Field(ge=0, le=10)], ...] = Field((0.0, 0.7), min_length=1)
    top_p: float = Field(1.0, gt=0, le=1)
    most: int = Field(8, ge=1, le=LARGEST_GAMMA)
    gamma: Annotated[int, Field(ge=1, le=LARGEST_GAMMA)] | None = None
    batch_sizes: tuple[Count, ...] = Field((1, 4), min_length=1)
    train: TrainSettings | None = None
    train_anyway: Annotated[bool, Cosmetic()] = False
    export: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> SpeculateSettings:
        if self.gamma is not None and self.gamma > self.most:
            raise ValueError(f"gamma is {self.gamma}, above most ({self.most}): raise most, or lower gamma")
        if len(set(self.temperatures)) < len(self.temperatures) or len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise ValueError("temperatures and batch_sizes each have a value once")
        if self.train is not None:
            if self.trained_layers is None:
                raise ValueError(
                    f"train makes a draft of the target's first layers, and draft is {self.draft.kind!r}: use "
                    "{kind: layers, layers: 2}, or a train section of the recipe and {kind: student}"
                )
            if self.train.teacher not in ("main", self.target):
                raise ValueError(f"a draft learns from its target ({self.target}): drop teacher from speculate.train")
            if self.train.controls or self.train.seeds > 1:
                raise ValueError("a draft has no controls and one seed: drop controls and seeds from speculate.train")
        return self

    @property
    def models(self) -> Iterator[DraftSettings]:
        """The draft, or the parts of a chained one."""
        if isinstance(self.draft, ChainedDraftSettings):
            yield self.draft.lookup
            yield self.draft.then
        else:
            yield self.draft

    @property
    def model_draft(self) -> ModelDraftSettings | None:
        """The draft that is a model, if one is."""
        return next((draft for draft in self.models if isinstance(draft, ModelDraftSettings)), None)

    @property
    def trained_layers(self) -> int | None:
        """How many of the target's layers a draft to be trained has."""
        return self.model_draft.layers if isinstance(self.model_draft, LayersDraft) else None

    @property
    def student(self) -> FromTeacher:
        """The draft to be trained, as a student."""
        return FromTeacher(layers=First(first=self.trained_layers or 1))

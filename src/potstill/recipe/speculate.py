"""Settings of speculative decoding: the draft, what is measured, and whether a draft is trained first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from potstill.recipe.base import Content, Cosmetic, Count, KindSettings, NamesModel, PartIfSet, Settings, one_of
from potstill.recipe.response import Medusa
from potstill.recipe.students import Existing, First, FromTeacher, StudentSettings
from potstill.recipe.teachers import LocalTeacher
from potstill.recipe.train import TrainSettings, TrainStage

Threshold = Annotated[float, Field(ge=0, lt=1)] | Literal["fit"]
"""A draft stops before a token of which it is less sure; `fit` chooses the value with the best forecast."""

LARGEST_GAMMA = 32


class DraftSettings(KindSettings):
    """Base of every draft."""

    room: ClassVar[str] = "drafts"


class ModelDraftSettings(DraftSettings):
    """What drafts that are models share. With `frequent`, the output layer has only the K most frequent tokens of the
    data: still exact, since other tokens are never drafted. With `ranks` above 1 the draft may be a tree: the chain of
    its best tokens, and at each place its next-best ones, that many choices in all; its shape is chosen by what is
    measured, and a chain stays if it is better."""

    frequent: Count | None = None
    threshold: Threshold = 0.0
    ranks: int = Field(1, ge=1, le=64)

    @model_validator(mode="after")
    def _a_tree_or_a_threshold(self) -> ModelDraftSettings:
        if self.ranks > 1 and self.threshold != 0:
            raise ValueError(f"a threshold stops a chain, and ranks: {self.ranks} asks for a tree: drop one of them")
        if self.frequent is not None and self.frequent < self.ranks:
            raise ValueError(f"{self.frequent} frequent tokens cannot be {self.ranks} choices: lower ranks")
        return self


class StudentDraft(ModelDraftSettings):
    """The student that this recipe trains."""

    kind: Literal["student"] = "student"


class OtherModelDraft(ModelDraftSettings, NamesModel):
    """Another model with the target's tokenizer: a directory, a hub id, `run:<folder>`, or a name that potstill
    knows."""

    kind: Literal["model"] = "model"
    revision: str | None = None


class LayersDraft(ModelDraftSettings):
    """The target's first `layers` layers, with its last norm and head. Untrained they share the target's keys and
    values (an early exit); with `speculate.train` they become a model of their own."""

    kind: Literal["layers"] = "layers"
    layers: Count


class LookupDraftSettings(DraftSettings):
    """What followed the last earlier occurrence of the text's last tokens (n-grams of `shortest` to `longest`): no
    model. Short n-grams find more, and what they find stands less often; `fit` takes the size with the best
    forecast."""

    kind: Literal["lookup"] = "lookup"
    longest: int = Field(3, ge=1, le=16)
    shortest: Annotated[int, Field(ge=1, le=16)] | Literal["fit"] = "fit"

    @model_validator(mode="after")
    def _sizes(self) -> LookupDraftSettings:
        if self.shortest != "fit" and self.shortest > self.longest:
            raise ValueError(f"shortest is {self.shortest}, above longest ({self.longest}): swap them")
        return self


class TypicalAcceptance(Settings):
    """Accept a drafted token whose probability is above min(epsilon, delta · e^−entropy). Lossy: what is sampled is not
    distributed as the target's text. Cai et al. 2024, §3.3."""

    epsilon: float = Field(0.09, gt=0, lt=1)
    delta: float = Field(0.3, gt=0)


class MedusaDraftSettings(DraftSettings):
    """Heads on the target's last hidden state, which draft a tree of their `ranks` best choices each. They are trained
    by `speculate.train` with the objective `medusa`, or read from `weights`, a folder that speculate exported.

    With `medusa` as the only objective the target is frozen (Medusa-1); with others beside it, the target is trained
    too (Medusa-2) and is another model afterwards. `typical` accepts more, and is lossy; None is exact.
    """

    kind: Literal["medusa"] = "medusa"
    ranks: int = Field(8, ge=1, le=64)
    typical: Annotated[TypicalAcceptance | None, PartIfSet()] = None
    weights: Annotated[Path | None, Content()] = None


class ChainedDraftSettings(DraftSettings):
    """In each round a lookup if it finds something, else a model or Medusa heads."""

    kind: Literal["chained"] = "chained"
    lookup: LookupDraftSettings = LookupDraftSettings()
    then: one_of(DraftSettings)  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _a_model_second(self) -> ChainedDraftSettings:
        if not isinstance(self.then, (ModelDraftSettings, MedusaDraftSettings)):
            raise ValueError(f"then is a model draft (student, model, layers) or medusa, not {self.then.kind!r}")
        return self


class SpeculateSettings(Settings):
    """How the teacher's own decoding is made faster by a draft: measure, advise, train the draft if `train` is there,
    measure again, export.

    `target` names the teacher. Costs and acceptance are measured in `dtype` on `prompts` prompts (held-out ones if
    there are any) of `max_new_tokens` new tokens, at each of `temperatures` (0 is greedy), with `top_p`. Forecasts are
    for drafts of 1 to `most` tokens a round, and for each of `batch_sizes`. `gamma` is the number that is measured and
    exported; None takes the best. With `texts: stored` acceptance is measured on what the target wrote in `generate`,
    by the signal store of `capture`: the target is timed, and runs besides for trials alone. If no draft of this cost
    could gain anything, however well it is trained, `train` is refused, unless `train_anyway`.
    """

    target: str = "main"
    draft: one_of(DraftSettings) = LayersDraft(layers=2, frequent=8192)  # type: ignore[valid-type]
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    texts: Annotated[Literal["stored"] | None, PartIfSet()] = None
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
        if self.heads_draft is not None:
            self._has_heads(self.heads_draft)
        if self.train is not None:
            if self.heads_draft is None and any(isinstance(o, Medusa) for o in self.train.all_objectives):
                raise ValueError(
                    f"train.objectives: medusa trains heads, and draft is {self.draft.kind!r}: set draft: {{kind: "
                    "medusa}, or learn by forward_kl"
                )
            if self.trained_layers is None and not self.trains_heads:
                raise ValueError(
                    f"train makes a draft of the target's first layers, and draft is {self.draft.kind!r}: use "
                    "{kind: layers, layers: 2}, {kind: medusa}, or a train section of the recipe and {kind: student}"
                )
            if self.train.teacher not in ("main", self.target):
                raise ValueError(f"a draft learns from its target ({self.target}): drop teacher from speculate.train")
            if self.trains_heads and self.train.keeps_best:
                raise ValueError("keep: best goes by the target's own loss, which heads do not change: use keep: last")
            if self.train.frequent is not None:
                raise ValueError("train learns the tokens that are drafted: use draft.frequent, not train.frequent")
            if self.train.controls or self.train.seeds > 1:
                raise ValueError("a draft has no controls and one seed: drop controls and seeds from speculate.train")
        return self

    def _has_heads(self, draft: MedusaDraftSettings) -> None:
        if (self.train is None) == (draft.weights is None):
            raise ValueError(
                "Medusa heads are either trained or read: add train: {objectives: [{kind: medusa}]} to speculate, or "
                "weights: FOLDER to its draft"
            )
        objectives = self.train.all_objectives if self.train is not None else ()
        if self.train is not None and len({(o.heads, o.frequent) for o in objectives if isinstance(o, Medusa)}) != 1:
            raise ValueError(
                "train.objectives say which heads are trained: add {kind: medusa, heads: 4}, the same in all stages"
            )

        if (
            self.train is not None
            and self.trains_target
            and any(isinstance(o, Medusa) and o.states for o in objectives)
        ):
            raise ValueError("states: stored is of a target that stays as it is: train heads alone, or drop it")

    @property
    def trains_heads(self) -> bool:
        """Whether `train` trains Medusa heads."""
        return self.heads_draft is not None and self.train is not None

    @property
    def heads(self) -> Medusa | None:
        """The objective that trains Medusa heads, if they are trained."""
        if not self.trains_heads or self.train is None:
            return None
        return next(o for o in self.train.all_objectives if isinstance(o, Medusa))

    @property
    def trains_target(self) -> bool:
        """Whether training changes the target (Medusa-2)."""
        return (
            self.trains_heads
            and self.train is not None
            and not all(isinstance(objective, Medusa) for objective in self.train.all_objectives)
        )

    @property
    def training(self) -> TrainSettings:
        """The training of the draft. Where heads alone learn, all else is frozen.

        Raises:
            ValueError: there is none.
        """
        if self.train is None:
            raise ValueError("speculate has no train")
        if not self.trains_heads or (self.trains_target and not self.train.stages):
            return self.train
        stages = tuple(
            stage.model_copy(update={"freeze": ("*",)})
            if all(isinstance(objective, Medusa) for objective in stage.objectives)
            else stage
            for stage in (self.train.stages or [TrainStage(name="heads", objectives=self.train.objectives)])
        )
        return self.train.model_copy(update={"stages": stages})

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
    def heads_draft(self) -> MedusaDraftSettings | None:
        """The draft that is Medusa heads, if one is."""
        return next((draft for draft in self.models if isinstance(draft, MedusaDraftSettings)), None)

    @property
    def trained_layers(self) -> int | None:
        """How many of the target's layers a draft to be trained has."""
        return self.model_draft.layers if isinstance(self.model_draft, LayersDraft) else None

    def student(self, target: LocalTeacher) -> StudentSettings:
        """The draft to be trained, as a student: the target's first layers, or the target with heads on it."""
        if self.trained_layers is not None:
            return FromTeacher(layers=First(first=self.trained_layers))
        return Existing(
            model=target.model,
            revision=target.revision,
            trust_remote_code=target.trust_remote_code,
            licence=target.licence,
        )

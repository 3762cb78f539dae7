"""Settings of evaluation and of the report."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from potstill.recipe.base import COUNT_AT_MOST, Count, PartIfSet, Settings, Tokens, one_of
from potstill.recipe.measures import MeasureSettings, default_measures
from potstill.recipe.verify import VerifierSettings, judges_of
from potstill.tasks import TaskSpec


class SolveSettings(MeasureSettings):
    """The share of held-out problems that each model solves: it answers the data's prompts greedily, and `verify`
    judges. A problem's reference answer is in `record.metadata[reference]`, or else the record's own answer. `limit`
    takes that many of the problems, the same ones in every run.
    """

    finds: ClassVar[str] = "the share of problems solved"
    where: ClassVar[str] = "evaluate.solve"
    kind: Literal["solved"] = "solved"
    verify: one_of(VerifierSettings)  # type: ignore[valid-type]
    max_new_tokens: Tokens = 256
    reference: str = "reference"
    limit: Count | None = None
    batch_size: Count = 32

    def why_not(self, task: TaskSpec) -> str | None:
        """Models that write have it."""
        return None if task.writes else "problems are put to models that write: remove evaluate.solve"

    @model_validator(mode="after")
    def _decides_alone(self) -> SolveSettings:
        if any(True for _ in judges_of(self.verify)):
            raise ValueError(
                "a judge puts its questions to a teacher, and an evaluation asks none: verify by what decides alone "
                "(numeric, exact, choice, math …)"
            )
        return self


class EvaluateSettings(Settings):
    """The measurements on held-out records, and their intervals.

    Intervals are paired bootstraps over groups: `resamples` of them at `confidence`. `speed` measures prefill and
    decode rates and peak memory of both models side by side. `solve` measures the share of held-out problems that
    models solve. `teacher` says where the teacher's side comes from: `stored`, by default where a section `capture`
    keeps it, opens no weights of it (and so measures no rates or answers of it); `live` opens it.
    """

    resamples: Count = 2000
    confidence: float = Field(0.95, gt=0.5, lt=1)
    tokens_per_batch: Tokens = 4096
    speed: bool = True
    teacher: Annotated[Literal["stored", "live"] | None, PartIfSet()] = None
    samples_shown: int = Field(8, ge=0, le=COUNT_AT_MOST)
    sample_tokens: Tokens = 64
    controls: tuple[Literal["untrained"], ...] = ("untrained",)
    solve: Annotated[SolveSettings | None, PartIfSet()] = None
    measures: Annotated[tuple[one_of(MeasureSettings), ...] | None, PartIfSet()] = None  # type: ignore[valid-type]

    def measures_for(self, task: TaskSpec) -> tuple[MeasureSettings, ...]:
        """The measures: those of the recipe, else all that fit the task and cost no further pass."""
        chosen = default_measures(task) if self.measures is None else self.measures
        return chosen if self.solve is None else (*chosen, self.solve)

    @property
    def asked(self) -> tuple[str, ...]:
        """The names of the teachers that measures put questions to."""
        return tuple(dict.fromkeys(name for measure in self.measures or () for name in measure.asked))

    @model_validator(mode="after")
    def _each_measure_once(self) -> EvaluateSettings:
        kinds = [measure.kind for measure in self.measures or ()]
        if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            raise ValueError(f"measures: {twice[0]} stands there twice: drop one")
        names = [name for measure in self.measures or () for name in measure.task_names]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"measures: two tasks have the name {twice[0]!r}: their figures would be mixed up")
        if "solved" in kinds:
            raise ValueError("measures: problems that models solve are set in evaluate.solve: move solved there")
        return self


class ReportSettings(Settings):
    """The report page."""

    title: str | None = None
    worst_documents: int = Field(6, ge=0, le=COUNT_AT_MOST)

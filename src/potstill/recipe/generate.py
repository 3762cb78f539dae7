"""Settings of generation programs."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from potstill.recipe.base import KindSettings, PartIfSet
from potstill.recipe.budget import BudgetSettings
from potstill.recipe.teachers import TeacherSettings
from potstill.recipe.verify import Decontamination


class GenerateSettings(KindSettings):
    """Base of every program that has a teacher write.

    `budget` caps what an endpoint is used for. `jsonl` writes the records as JSON lines too, beside the Parquet file.
    `decontaminate` keeps evaluation sets out of the records to train on.
    """

    room: ClassVar[str] = "generate"
    asks: ClassVar[bool] = True
    """Whether a teacher is asked at all."""
    teacher: str = "main"
    budget: BudgetSettings = BudgetSettings()
    jsonl: bool = False
    decontaminate: Annotated[Decontamination | None, PartIfSet()] = None

    @field_validator("decontaminate")
    @classmethod
    def _names_sets(cls, decontaminate: Decontamination | None) -> Decontamination | None:
        if decontaminate is not None and not decontaminate.against:
            raise ValueError("against names no evaluation set: name one, or drop decontaminate")
        return decontaminate

    def check_teacher(self, teacher: TeacherSettings) -> None:
        """Refuse what this kind of teacher cannot do.

        Raises:
            ValueError: with the mend.
        """
        if not teacher.remote and self.budget.stated:
            stated = ", ".join(f"budget.{name}" for name in self.budget.stated)
            raise ValueError(f"{stated}: a cap for endpoints; a {teacher.kind!r} teacher takes token_budget")


class SequenceProgram(GenerateSettings):
    """Sequence-level distillation: the teacher answers each prompt. Kim & Rush 2016 (beam 5 in the paper).

    `temperature` 0 is greedy; `beams` > 1 is beam search. `token_budget` is a hard cap on generated tokens:
    what is asked is only asked if its worst case still fits, and prompts that no longer fit are counted. `batch_size`
    is for teachers on this machine; it affects results in bfloat16 and is therefore part of the key.
    """

    kind: Literal["sequence"] = "sequence"
    samples: PositiveInt = 1
    max_new_tokens: PositiveInt = 256
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    beams: PositiveInt = 1
    batch_size: PositiveInt = 32
    token_budget: PositiveInt | None = None
    keep_unfinished: bool = True

    @model_validator(mode="after")
    def _possible(self) -> SequenceProgram:
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("beam search is deterministic: set temperature: 0, or beams: 1 to sample")
        if self.samples > 1 and self.temperature == 0 and self.beams == 1:
            raise ValueError("greedy answers are all the same: set temperature above 0, or samples: 1")
        if self.samples > self.beams > 1:
            raise ValueError(f"{self.beams} beams give at most {self.beams} samples: raise beams or lower samples")
        return self

    def check_teacher(self, teacher: TeacherSettings) -> None:
        """Beams are for teachers on this machine."""
        super().check_teacher(teacher)
        if teacher.remote and self.beams > 1:
            raise ValueError("servers give no beam search: set beams: 1, or use a teacher that runs here (kind: local)")

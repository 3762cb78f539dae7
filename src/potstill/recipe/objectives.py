"""The settings that every objective has. The kinds are in `response.py`, `features.py` and `relations.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from potstill.recipe.base import KindSettings
from potstill.recipe.schedules import Schedule
from potstill.tasks import SPECS, Task
from potstill.types import Capability

Scope = Literal["token", "example", "batch"]
"""What one value of an objective belongs to. Splitting a batch changes nothing for `token` and `example`; `batch` is
defined on the micro-batch."""


@dataclass(frozen=True)
class Needs:
    """What an objective needs, as far as it is known before a model is opened. `teacher` lists requirements, each a
    set of alternatives of which one suffices; empty if it needs no teacher. `student` lists what it reads of the
    student: a `response` (logits), `states` of layers, `attention` (queries, keys, values), `modules` by path."""

    teacher: tuple[frozenset[Capability], ...] = ()
    student: frozenset[str] = frozenset({"response"})


TAPPED = (frozenset[Capability]({"taps"}),)
"""The requirement of inner tensors."""


class ObjectiveSettings(KindSettings):
    """Base of every objective. The loss is Σ weight · (Σ values ÷ count), each with its own count."""

    room: ClassVar[str] = "objectives"
    scope: ClassVar[Scope] = "token"
    least_examples: ClassVar[int] = 1
    """Examples in a micro-batch from which on there is something to learn."""
    trains_alone: ClassVar[bool] = False
    """Whether the module that is trained along is a result, so that everything else may be frozen."""
    weight: Schedule = 1.0

    def needs(self) -> Needs:
        """What it needs of student and teacher, given its settings."""
        return Needs()


def why_not(task: Task, objective: ObjectiveSettings, *, packing: bool = False) -> str | None:
    """Why an objective is impossible for a task, or over packed rows, and what to use instead; None if it is possible.
    For recipes and for `DistillTrainer`."""
    spec, asked = SPECS[task], objective.needs().student
    if packing and objective.scope == "batch":
        return (
            f"{objective.kind} compares the records of a micro-batch with one another, and packed rows hold as many as "
            "happen to fit: set train.packing: false"
        )
    if "response" in asked and not spec.has_response:
        return (
            f"{objective.kind} needs logits, and the {spec.title} of task {task} has none: use rkd_distance, "
            "minilm_v2, hidden_mse or another objective on states"
        )
    if asked & {"states", "attention"} and not spec.reads_text:
        return (
            f"{objective.kind} compares layers of tokens, and the {spec.title} of task {task} has none: use one on the "
            "output of a module (hint, attention_transfer, or at: {student: path, teacher: path})"
        )
    if getattr(objective, "over", None) == "targets" and not spec.has_vocabulary and spec.reads_text:
        return f"{objective.kind}: the targets of {task} are no tokens: set over: tokens"
    return None

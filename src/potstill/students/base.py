"""The inputs for building a student, and the contract of a kind of student."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from potstill.console import Console
from potstill.errors import RecipeError
from potstill.models.folder import ModelSource
from potstill.signals import Batch
from potstill.tasks import Task


@dataclass(frozen=True)
class Materials:
    """The inputs of a student builder. The teacher's weights are read from its folder, not from a live teacher, which
    may have been rounded to bf16.

    `tokenizer_source` is the folder of the student's tokenizer, None if it reads no text. `influence_batches` yields
    batches of the training data, for kinds that need them. `pruned` is the artifact of the stage `train.pruned`, for a
    student of that kind. `task` is the student's task, and `labels` are its classes,
    if any.
    """

    teacher: ModelSource | None
    tokenizer_source: Path | None
    console: Console
    influence_batches: Callable[[], Iterable[Batch]] | None = None
    trust_remote_code: bool = False
    task: Task = "causal_lm"
    labels: Sequence[str] | None = None
    pruned: Path | None = None

    @property
    def tokenizer_folder(self) -> Path:
        """`tokenizer_source`, for tasks of texts.

        Raises:
            RecipeError: there is none.
        """
        if self.tokenizer_source is None:
            raise RecipeError("the student reads text, and has no tokenizer", where="student.tokenizer")
        return self.tokenizer_source


@dataclass(frozen=True)
class Plain:
    """A student before adapters, in fp32 on the processor, and facts about how it was made.

    `facts` hold `layers` (the teacher's, by index, or None) and, if a head was newly drawn for a model with trained
    weights, the names of its weights as `new_weights`.
    """

    model: nn.Module
    facts: dict[str, Any]


class StudentBuilder(Protocol):
    """A kind of student; bound to its settings by `@implements`, built by `registry.build(settings)`.

    It draws random numbers only from torch's CPU generator, which the caller has seeded.
    """

    def build(self, materials: Materials) -> Plain: ...

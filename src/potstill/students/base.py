"""What a student is built from, and what a kind of student does."""

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
    """What a student may be made of. The teacher's weights are read from its folder, never from a live teacher,
    which may have been rounded to bf16.

    `tokenizer_source` is the folder of the tokenizer that the student will have, None where it reads no text.
    `influence_batches` gives batches of the training data, for those kinds that look at it. `task` is what the student
    is for, and `labels` its classes, if it has any.
    """

    teacher: ModelSource | None
    tokenizer_source: Path | None
    console: Console
    influence_batches: Callable[[], Iterable[Batch]] | None = None
    trust_remote_code: bool = False
    task: Task = "causal_lm"
    labels: Sequence[str] | None = None

    @property
    def tokenizer_folder(self) -> Path:
        """`tokenizer_source`, of a task of texts.

        Raises:
            RecipeError: there is none.
        """
        if self.tokenizer_source is None:
            raise RecipeError("the student reads text, and has no tokenizer", where="student.tokenizer")
        return self.tokenizer_source


@dataclass(frozen=True)
class Plain:
    """A student before adapters, in fp32 on the processor, and the facts of how it was made.

    `facts` name `layers` (the teacher's, by index, or None) and, where a head was drawn anew for a model that is
    otherwise trained, the names of its weights as `new_weights`.
    """

    model: nn.Module
    facts: dict[str, Any]


class StudentBuilder(Protocol):
    """A kind of student; bound to its settings by `@implements`, built by `registry.build(settings)`.

    It draws random numbers from torch's generator on the processor only, which the caller has seeded.
    """

    def build(self, materials: Materials) -> Plain: ...

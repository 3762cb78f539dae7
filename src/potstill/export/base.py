"""The input and the interface of an exporter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from potstill.artifacts import Work
from potstill.console import Console
from potstill.tasks import Task


@dataclass(frozen=True)
class Student:
    """A trained student to export.

    Args:
        model: folder with configuration, safetensors and (for text) tokenizer, adapters merged; or a plain module with
            its Python file.
        card: its model card, if there is one.
        licences: licence texts that must accompany its weights.
        trust_remote_code: whether the recipe trusts Python code in the folder.
        task: the recipe's task.
    """

    model: Path
    card: Path | None
    licences: Sequence[Path]
    trust_remote_code: bool
    task: Task = "causal_lm"


class Exporter(Protocol):
    """Built by `registry.build(settings)`."""

    def export(self, student: Student, work: Work, console: Console) -> None:
        """Write the student into `work.path`; counts and warnings go into `work`."""
        ...

"""What an exporter is given, and what it does."""

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
    """A trained student, ready to be written in another form.

    `model` is a folder with configuration, safetensors and (where it reads text) tokenizer, adapters merged; or a plain
    module with its file. `card` is its model card, if there is one, and `licences` the licence texts that must go with
    its weights. `trust_remote_code` says whether the recipe trusts code that lies in the folder, and `task` what the
    model is for.
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

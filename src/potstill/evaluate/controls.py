"""The control `untrained`: the student as it was before its first step, built again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.console import Console
from potstill.errors import RunError
from potstill.models import ModelSource
from potstill.models.quiet import quiet_loading
from potstill.models.saving import save_model
from potstill.recipe import ByInfluence, FromTeacher, StudentSettings
from potstill.students import build_student
from potstill.tasks import Task

_MUST_AGREE = ("layers", "parameters")


def build_untrained(
    settings: StudentSettings,
    *,
    teacher: ModelSource | None,
    tokenizer_source: Path | None,
    seed: int,
    facts: Mapping[str, Any],
    folder: Path,
    console: Console,
    trust_remote_code: bool = False,
    task: Task = "causal_lm",
    labels: Sequence[str] | None = None,
) -> Path:
    """Build the student again, from the same settings and seed, and save it as a folder without tokenizer.

    Adapters are left out: before the first step they add nothing. Layers that were chosen by their influence are taken
    from what training noted, not measured again.

    Args:
        facts: `student.json` of the training stage.
        folder: where it is saved.
        task: what it is for.
        labels: names of its classes, of a classification.

    Returns:
        The folder.

    Raises:
        RunError: what is built is not what was trained.
    """
    plain = settings.model_copy(update={"lora": None})
    if isinstance(plain, FromTeacher) and isinstance(plain.layers, ByInfluence):
        plain = plain.model_copy(update={"layers": tuple(facts["layers"])})
    with console.task("building the untrained student", 1, "models") as progress:
        built = build_student(
            plain,
            teacher=teacher,
            tokenizer_source=tokenizer_source,
            seed=seed,
            # It would say of it what it said of the student.
            console=Console("quiet"),
            trust_remote_code=trust_remote_code,
            task=task,
            labels=labels,
        )
        progress.advance(1)
    for fact in _MUST_AGREE:
        if built.facts[fact] != facts[fact]:
            raise RunError(
                f"the untrained student was built with {fact} {built.facts[fact]}, the trained one with {facts[fact]}",
                where="train/student.json",
                fix="train it again: potstill train --force",
            )
    with quiet_loading():
        save_model(built.model, folder)
    return folder

"""Open a model of this machine to be measured: in a given precision, for a given task, from one side's view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from potstill.errors import CapabilityError
from potstill.recipe import EnsembleTeacher, LocalTeacher, TeacherSettings
from potstill.signals import Side
from potstill.tasks import Task
from potstill.teachers.ensemble import Ensemble
from potstill.teachers.local import LocalModel

Dtype = Literal["float32", "bfloat16"]


def open_model(
    settings: TeacherSettings, *, dtype: Dtype, task: Task, classes: Sequence[str] = (), side: Side = "teacher"
) -> LocalModel | Ensemble:
    """A local model or an ensemble of them.

    Args:
        settings: of a teacher, or of a student as a local model.
        dtype: the precision of all weights. Flash attention, which has no fp32, is used in bf16 only.
        task: what it is opened for.
        classes: names of the classes, of a classifier.
        side: whose view of a batch it reads.

    Raises:
        CapabilityError: its weights are not on this machine.
    """
    if isinstance(settings, EnsembleTeacher):
        members = [open_model(m, dtype=dtype, task=task, classes=classes, side=side) for m in settings.members]
        return Ensemble(settings, members)
    if not isinstance(settings, LocalTeacher):
        raise CapabilityError(f"a teacher of kind {settings.kind!r} cannot be opened here", fix="use kind: local")
    changes: dict[str, object] = {"dtype": dtype}
    if dtype == "float32" and str(settings.attn_implementation).startswith("flash"):
        changes["attn_implementation"] = None
    return LocalModel(settings.model_copy(update=changes), opened_for=task, classes=classes, side=side)

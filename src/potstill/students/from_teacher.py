"""A student made of some of the teacher's layers.

The steps are: choose layers, write the smaller configuration, construct, copy. Reducing another dimension (width,
feed-forward, heads) would need other configuration and copying steps between the same two ends.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from potstill.errors import ModelError, RecipeError
from potstill.models.anatomy import model_layers
from potstill.models.load import new_head, open_model
from potstill.models.tasks import is_plain, opener_of
from potstill.recipe.layers import choose_layers
from potstill.recipe.students import ByInfluence, FromTeacher
from potstill.registry import implements
from potstill.students.base import Materials, Plain
from potstill.students.depth import copy_layers, lost_kinds, shallower_config
from potstill.students.influence import layer_influence
from potstill.tasks import SPECS


@implements(FromTeacher)
class TeacherLayers:
    """Some of the teacher's layers, with its embeddings, norms and head; tied weights stay tied. Sanh et al. 2019, §3.

    If the teacher has no head for the task, the student gets a new one.
    """

    def __init__(self, settings: FromTeacher) -> None:
        self.settings = settings

    def build(self, materials: Materials) -> Plain:
        """Raises RecipeError for impossible layers, ModelError for a teacher that cannot be cut."""
        if materials.teacher is None:
            raise RecipeError("a student from_teacher needs a teacher whose weights are here", where="student.kind")
        teacher, new = open_model(
            materials.teacher,
            task=materials.task,
            labels=materials.labels,
            dtype="float32",
            device="cpu",
            trust_remote_code=materials.trust_remote_code,
        )
        if is_plain(teacher):
            raise RecipeError(
                f"the teacher is a module of your own ({type(teacher).__name__}), whose layers are not known",
                where="student.kind",
                fix="make the student of a module too (kind: module), or from a config",
            )
        assert isinstance(teacher, PreTrainedModel)
        if getattr(teacher.config, "quantization_config", None) is not None:
            raise ModelError(
                "the teacher's weights are quantised, and a student cannot be made of packed weights",
                where=str(materials.teacher.path),
                fix="name the unquantised model as teacher, or make the student from a config",
            )
        influence = self._influence(teacher, materials)
        layers = choose_layers(self.settings.layers, len(model_layers(teacher)), influence or ())
        for kind in lost_kinds(teacher.config, layers):
            materials.console.warn(f"the student keeps none of the teacher's {kind} layers (student.layers: {layers})")
        student = self._construct(teacher, layers, materials)
        facts: dict[str, Any] = {"layers": layers, "teacher_layers": len(model_layers(teacher))}
        if new:
            materials.console.say(f"{materials.teacher.name}: {new_head(new)}")
            facts["new_weights"] = list(new)
        return Plain(student, facts if influence is None else {**facts, "influence": influence})

    def _influence(self, teacher: PreTrainedModel, materials: Materials) -> list[float] | None:
        if not isinstance(self.settings.layers, ByInfluence):
            return None
        if materials.influence_batches is None:
            raise RecipeError("by_influence looks at the training data, and there are none", where="student.layers")
        records = self.settings.layers.records
        return layer_influence(teacher, materials.influence_batches(), records=records, console=materials.console)

    def _construct(self, teacher: PreTrainedModel, layers: list[int], materials: Materials) -> PreTrainedModel:
        config = shallower_config(teacher.config, layers)
        student: PreTrainedModel = opener_of(materials.task).from_config(
            config, dtype=torch.float32, trust_remote_code=materials.trust_remote_code
        )
        copy_layers(teacher, student, layers)
        if SPECS[materials.task].writes:
            student.generation_config = copy.deepcopy(teacher.generation_config)
        return student

"""A module of the user's own as the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.errors import RecipeError
from potstill.models.labels import name_classes
from potstill.models.plain import build_module, load_weights, origin_of_module
from potstill.recipe.students import ModuleStudent
from potstill.registry import implements
from potstill.students.base import Materials, Plain
from potstill.tasks import SPECS


@implements(ModuleStudent)
class OwnModule:
    """The result of a class or function in a Python file, with random weights or those of a safetensors file, in
    fp32."""

    def __init__(self, settings: ModuleStudent) -> None:
        self.settings = settings

    def build(self, materials: Materials) -> Plain:
        """Raises ModelError where the file cannot be run or its weights do not fit, RecipeError for a task of texts."""
        if not SPECS[materials.task].reads_images:
            raise RecipeError(
                f"a module of your own takes arrays and gives classes, and the task is {materials.task}",
                where="student.kind",
                fix="use a model of transformers (from_teacher, from_config, existing), or task: image_classification",
            )
        module = build_module(self.settings.source, self.settings.arguments).float()
        if self.settings.weights is not None:
            load_weights(module, self.settings.weights)
        if materials.labels is not None:
            name_classes(module, materials.labels)
        facts: dict[str, Any] = {"layers": None}
        if (origin := origin_of_module(module)) is not None:
            facts |= {
                "source": f"{Path(origin.file).name}:{origin.name}",
                "arguments": dict(origin.arguments),
                "digest": origin.sha256,
            }
        return Plain(module, facts)

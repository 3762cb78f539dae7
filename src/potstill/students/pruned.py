"""A student pruned from its teacher: the candidates of its size, how each is cut, and the one that was chosen.

The stage `train.pruned` measures and chooses once, for the student, its controls and all seeds
(`potstill.train.pruning`); the builder here opens what it wrote.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from potstill.errors import RecipeError
from potstill.models.facts import ModelFacts
from potstill.models.shapes import Shape, Widths, candidate_shapes, depth_of_size, widths_of
from potstill.models.tasks import opener_of
from potstill.quantities import counted
from potstill.recipe.layers import choose_layers
from potstill.recipe.students import ByInfluence, Pruned, Uniform
from potstill.registry import implements
from potstill.students.base import Materials, Plain
from potstill.students.depth import copy_layers, shallower_config
from potstill.students.importance import Importance
from potstill.students.width import choose, prune
from potstill.tasks import Task

PRUNING = "pruning.json"
"""The file of the stage's artifact that says what was measured and chosen."""


@dataclass(frozen=True)
class Candidate:
    """One way to prune a teacher: the layers that are kept, how they were chosen, and the shape (None: layers are as in
    the teacher)."""

    layers: tuple[int, ...]
    by: Literal["influence", "even", "all"]
    shape: Shape | None

    def __str__(self) -> str:
        shape = counted(len(self.layers), "layer") if self.shape is None else str(self.shape)
        how = {"influence": " of largest influence", "even": " evenly spaced", "all": ""}[self.by]
        return shape.replace(" layers", f" layers{how}", 1)


def shapes_of(settings: Pruned, facts: ModelFacts) -> tuple[Widths | None, list[Shape] | list[int]]:
    """The teacher's widths and the candidate shapes; without width None and the candidate numbers of layers.

    Raises:
        ModelError: the family cannot be pruned by width.
        RecipeError: the teacher has no shape of this size.
    """
    if settings.width:
        widths = widths_of(facts)
        return widths, candidate_shapes(widths, settings.parameters, settings.candidates)
    depth = depth_of_size(facts, settings.parameters)
    return None, [depth] if depth is not None else []


def candidates_of(shapes: Sequence[Shape] | Sequence[int], depth: int, influence: Sequence[float]) -> list[Candidate]:
    """The candidates: each shape with its layers chosen by influence and evenly spaced, where these differ.

    Args:
        shapes: candidate shapes, or numbers of layers.
        depth: the number of the teacher's layers.
        influence: of each layer of the teacher.
    """
    found: list[Candidate] = []
    for entry in shapes:
        count, shape = (entry.layers, entry) if isinstance(entry, Shape) else (entry, None)
        even = tuple(choose_layers(Uniform(uniform=count), depth))
        best = tuple(choose_layers(ByInfluence(by_influence=count), depth, influence))
        found.append(Candidate(best, "influence" if count < depth else "all", shape))
        if even != best:
            found.append(Candidate(even, "even", shape))
    return found


def cut(
    teacher: PreTrainedModel, candidate: Candidate, widths: Widths | None, importance: Importance | None, task: Task
) -> PreTrainedModel:
    """The student of a candidate, in fp32 on the processor, in evaluation mode; the teacher is unchanged.

    Raises:
        ModelError: the teacher's weights have no place in it.
    """
    if candidate.shape is not None and widths is not None and importance is not None:
        kept = choose(importance, candidate.shape, candidate.layers)
        return prune(teacher, widths, candidate.shape, kept, task)
    config = shallower_config(teacher.config, candidate.layers)
    student: PreTrainedModel = opener_of(task).from_config(config, dtype=torch.float32)
    copy_layers(teacher, student, candidate.layers)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    student.eval()
    return student


@implements(Pruned)
class PrunedTeacher:
    """The student that the stage `train.pruned` has cut and chosen."""

    def __init__(self, settings: Pruned) -> None:
        self.settings = settings

    def build(self, materials: Materials) -> Plain:
        """Raises RecipeError where the stage has not run."""
        if materials.pruned is None:
            raise RecipeError(
                "a pruned student is cut by the stage train.pruned, which has not run",
                where="student.kind",
                fix="potstill train RECIPE",
            )
        model = AutoModelForCausalLM.from_pretrained(materials.pruned / "model", dtype=torch.float32).eval()
        return Plain(model, pruning_facts(materials.pruned))


def pruning_facts(folder: Path) -> dict[str, Any]:
    """What the stage measured and chose."""
    facts: dict[str, Any] = json.loads((folder / PRUNING).read_text(encoding="utf-8"))
    return facts

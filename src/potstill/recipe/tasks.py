"""What a task cannot do, with what can: for recipes and for `DistillTrainer` alike."""

from __future__ import annotations

from potstill.recipe.objectives import ObjectiveSettings
from potstill.tasks import Task


def why_not(task: Task, objective: ObjectiveSettings) -> str | None:
    """Why an objective is impossible for a task, and what to use instead; None where it is possible."""
    asked = objective.needs().student
    if task == "sentence_embedding" and "response" in asked:
        return (
            f"{objective.kind} needs logits, and a sentence embedding has none: use rkd_distance, minilm_v2, "
            "hidden_mse or another objective on states"
        )
    if task == "image_classification" and asked & {"states", "attention"}:
        return (
            f"{objective.kind} reads layers of tokens, and images have none: use one on a module's output (hint, "
            "attention_transfer, or at: {student: path, teacher: path})"
        )
    if task in ("sequence_classification", "sentence_embedding") and getattr(objective, "over", None) == "targets":
        return f"{objective.kind}: the targets of {task} are no tokens: set over: tokens"
    return None

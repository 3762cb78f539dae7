"""Which of a recipe's teachers the student is held against. No torch."""

from __future__ import annotations

from potstill.recipe import Recipe


def teacher_name(recipe: Recipe) -> str | None:
    """The one it was trained with; else the one that wrote its text; else the only one there is. None without any."""
    for section in (recipe.train, recipe.generate):
        if section is not None and section.teacher in recipe.teachers:
            return str(section.teacher)
    return next(iter(recipe.teachers)) if len(recipe.teachers) == 1 else None

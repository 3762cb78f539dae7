"""What a recipe says of the measuring: which teacher a student is held against, how embeddings are made. No torch."""

from __future__ import annotations

from potstill.recipe import PooledSettings, Pooling, Recipe


def teacher_name(recipe: Recipe) -> str | None:
    """The one it was trained with; else the one that wrote its text; else the only one there is. None without any."""
    for section in (recipe.train, recipe.generate):
        if section is not None and section.teacher in recipe.teachers:
            return str(section.teacher)
    return next(iter(recipe.teachers)) if len(recipe.teachers) == 1 else None


def pooling_of(recipe: Recipe) -> Pooling:
    """How one vector is made of an example's states: as the first objective that pools does it, else by their mean."""
    objectives = recipe.train.all_objectives if recipe.train is not None else ()
    return next((o.pooling for o in objectives if isinstance(o, PooledSettings)), "mean")

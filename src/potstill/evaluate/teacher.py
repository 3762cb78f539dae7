"""What a recipe says of the measuring: which teacher a student is held against, how embeddings are made. No torch."""

from __future__ import annotations

from potstill.recipe import PooledSettings, Pooling, Recipe
from potstill.teachers.origin import teacher_name as teacher_name


def pooling_of(recipe: Recipe) -> Pooling:
    """How one vector is made of an example's states: as the first objective that pools does it, else by their mean."""
    objectives = recipe.train.all_objectives if recipe.train is not None else ()
    return next((o.pooling for o in objectives if isinstance(o, PooledSettings)), "mean")

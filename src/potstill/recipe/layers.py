"""Layers by number: those of the teacher that a student keeps, and the pairs of layers that objectives compare. Opens
no model, so that `potstill check` can use it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from potstill.errors import ModelError, RecipeError
from potstill.recipe.features import AttentionMap, LayerMap
from potstill.recipe.students import ByInfluence, First, Last, LayerChoice, Uniform

_WHERE = "student.layers"


def choose_layers(choice: LayerChoice, count: int, influence: Sequence[float] = ()) -> list[int]:
    """The kept layers of a teacher with `count` layers, 0-based, first to last.

    - `every_other`: 0, 2, 4, …
    - `uniform: n`: round(linspace(0, count − 1, n)), in exact arithmetic, halves to the even number as Python and
      numpy round. 6 of 12 are DistilBERT's 0, 2, 4, 7, 9, 11.
    - `first: n`, `last: n`.
    - `by_influence: n`: the n layers of largest influence, in the teacher's order; ties go to the earlier layer.
    - a list: as given. The order is free, but a layer cannot appear twice: that is more often a typing error than
      intended, and two copies of one layer start out equal.

    Args:
        choice: the recipe's `student.layers`.
        count: the number of the teacher's layers.
        influence: of each layer; used by `by_influence` only.

    Raises:
        RecipeError: more layers than the teacher has, an index out of range, or one that appears twice.
    """
    match choice:
        case "every_other":
            return list(range(0, count, 2))
        case Uniform(uniform=n):
            _check_enough(n, count, "uniform")
            step = Fraction(count - 1, n - 1) if n > 1 else Fraction(0)
            return [round(i * step) for i in range(n)]
        case First(first=n):
            _check_enough(n, count, "first")
            return list(range(n))
        case Last(last=n):
            _check_enough(n, count, "last")
            return list(range(count - n, count))
        case ByInfluence(by_influence=n):
            _check_enough(n, count, "by_influence")
            if len(influence) != count:
                raise ValueError(f"{len(influence)} influences of {count} layers")
            return sorted(sorted(range(count), key=lambda layer: (-influence[layer], layer))[:n])
        case _:
            return _check_list(list(choice), count)


def _check_enough(asked: int, count: int, key: str) -> None:
    if asked > count:
        raise RecipeError(
            f"{asked} layers are asked of a teacher with {count}",
            where=f"{_WHERE}.{key}",
            fix=f"ask for {count} or fewer",
        )


def _check_list(layers: list[int], count: int) -> list[int]:
    if outside := [layer for layer in layers if not 0 <= layer < count]:
        raise RecipeError(
            f"there is no layer {outside[0]} in a teacher with {count}",
            where=_WHERE,
            fix=f"layers are counted from 0 to {count - 1}",
        )
    if twice := sorted({layer for layer in layers if layers.count(layer) > 1}):
        raise RecipeError(f"layer {twice[0]} is there twice", where=_WHERE, fix="name each layer once")
    return layers


# ---- maps from the student's layers to the teacher's -------------------------------------------------------------


def pairs_of_states(layers: LayerMap, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
    """Pairs (student state, teacher state) of a layer map; 0 is the embeddings, L the last state, after the final
    norm.

    Args:
        layers: the map.
        student: the number of the student's layers.
        teacher: the number of the teacher's layers.

    Raises:
        ModelError: a state that a model does not have, or a map that does not fit the depths.
    """
    if layers == "last":
        pairs: Sequence[tuple[int, int]] = ((student, teacher),)
    elif layers == "embeddings":
        pairs = ((0, 0),)
    elif layers == "uniform":
        pairs = tuple((i, round(i * teacher / student)) for i in range(student + 1))
    elif layers == "every_other":
        _check_twice(student, teacher)
        pairs = tuple((i, min(2 * i, teacher)) for i in range(student + 1))
    else:
        pairs = layers
    _check_pairs(pairs, student, teacher, "state")
    return tuple(pairs)


def pairs_of_attention(layers: AttentionMap, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
    """Pairs (student layer, teacher layer) of attention, counted from 0. Arguments and errors as `pairs_of_states`."""
    if layers == "last":
        pairs: Sequence[tuple[int, int]] = ((student - 1, teacher - 1),)
    elif layers == "uniform":
        pairs = tuple((i, round((i + 1) * teacher / student) - 1) for i in range(student))
    elif layers == "every_other":
        _check_twice(student, teacher)
        pairs = tuple((i, min(2 * i + 1, teacher - 1)) for i in range(student))
    else:
        pairs = layers
    _check_pairs(pairs, student - 1, teacher - 1, "attention layer")
    return tuple(pairs)


def _check_pairs(pairs: Sequence[tuple[int, int]], student: int, teacher: int, what: str) -> None:
    for student_layer, teacher_layer in pairs:
        for side, number, most in (("student", student_layer, student), ("teacher", teacher_layer, teacher)):
            if not 0 <= number <= most:
                raise ModelError(
                    f"{what} {number} of the {side}, which has 0 to {most}",
                    where="layers",
                    fix="give pairs that both models have, or a map by name: last, uniform, every_other",
                )


def _check_twice(student: int, teacher: int) -> None:
    if not 2 * student - 1 <= teacher <= 2 * student:
        raise ModelError(
            f"every_other is for a teacher with twice the student's layers; these have {teacher} and {student}",
            where="layers",
            fix="use uniform, or pairs [[student, teacher], …]",
        )

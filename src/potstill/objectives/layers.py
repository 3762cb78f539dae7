"""Which of the student's layers is held against which of the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.errors import ModelError
from potstill.recipe.features import AttentionMap, LayerMap
from potstill.signals import Dims


def state_pairs(layers: LayerMap, dims: Dims) -> tuple[tuple[int, int], ...]:
    """Pairs (student state, teacher state) of a map; 0 is the embeddings, L the last state, after the final norm.

    Raises:
        ModelError: a state that a model does not have, or a map that does not fit the depths.
    """
    student, teacher = _depths(dims)
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
    _check(pairs, student, teacher, "state")
    return tuple(pairs)


def attention_pairs(layers: AttentionMap, dims: Dims) -> tuple[tuple[int, int], ...]:
    """Pairs (student layer, teacher layer) of attention, counted from 0.

    Raises:
        ModelError: a layer that a model does not have, or a map that does not fit the depths.
    """
    student, teacher = _depths(dims)
    if layers == "last":
        pairs: Sequence[tuple[int, int]] = ((student - 1, teacher - 1),)
    elif layers == "uniform":
        pairs = tuple((i, round((i + 1) * teacher / student) - 1) for i in range(student))
    elif layers == "every_other":
        _check_twice(student, teacher)
        pairs = tuple((i, min(2 * i + 1, teacher - 1)) for i in range(student))
    else:
        pairs = layers
    _check(pairs, student - 1, teacher - 1, "attention layer")
    return tuple(pairs)


def _depths(dims: Dims) -> tuple[int, int]:
    for side, sizes in (("student", dims.student), ("teacher", dims.teacher)):
        if not sizes.layers:
            raise ModelError(
                f"the {side} is a plain module: it has no layers that are counted",
                where="layers",
                fix="use an objective on the outputs of modules by path: hint, attention_transfer, or a relation "
                "with at: {student: …, teacher: …}",
            )
    return dims.student.layers, dims.teacher.layers


def _check(pairs: Sequence[tuple[int, int]], student: int, teacher: int, what: str) -> None:
    for ours, theirs in pairs:
        for side, number, most in (("student", ours, student), ("teacher", theirs, teacher)):
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

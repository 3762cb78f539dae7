"""Pairs of student and teacher layers that objectives compare."""

from __future__ import annotations

from potstill.errors import ModelError
from potstill.recipe.features import AttentionMap, LayerMap
from potstill.recipe.layers import pairs_of_attention, pairs_of_states
from potstill.signals import Dims


def state_pairs(layers: LayerMap, dims: Dims) -> tuple[tuple[int, int], ...]:
    """`pairs_of_states` of two models. Raises ModelError, also for a model without counted layers."""
    return pairs_of_states(layers, *_depths(dims))


def attention_pairs(layers: AttentionMap, dims: Dims) -> tuple[tuple[int, int], ...]:
    """`pairs_of_attention` of two models. Raises ModelError, also for a model without counted layers."""
    return pairs_of_attention(layers, *_depths(dims))


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

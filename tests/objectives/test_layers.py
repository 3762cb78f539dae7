"""Maps of layers, as the papers have them, and the mistakes that are refused."""

from __future__ import annotations

import pytest

from potstill.errors import ModelError
from potstill.objectives.layers import attention_pairs, state_pairs
from potstill.signals import Dims, ModelDims


def depths(student: int, teacher: int) -> Dims:
    return Dims(*(ModelDims(vocab=11, hidden=4, layers=n, heads=1, kv_heads=1) for n in (student, teacher)))


def test_uniform_is_tinyberts() -> None:
    # g(m) = 3·m for 4 layers of 12: hidden i → 3·i, attention i (from 0) → 3·i + 2.
    assert state_pairs("uniform", depths(4, 12)) == ((0, 0), (1, 3), (2, 6), (3, 9), (4, 12))
    assert attention_pairs("uniform", depths(4, 12)) == ((0, 2), (1, 5), (2, 8), (3, 11))
    assert state_pairs("uniform", depths(3, 4)) == ((0, 0), (1, 1), (2, 3), (3, 4))


def test_last_embeddings_and_pairs() -> None:
    assert state_pairs("last", depths(4, 12)) == ((4, 12),)
    assert attention_pairs("last", depths(4, 12)) == ((3, 11),)
    assert state_pairs("embeddings", depths(4, 12)) == ((0, 0),)
    assert state_pairs(((2, 5), (4, 11)), depths(4, 12)) == ((2, 5), (4, 11))


def test_every_other_is_for_half_the_layers() -> None:
    assert state_pairs("every_other", depths(2, 4)) == ((0, 0), (1, 2), (2, 4))
    assert attention_pairs("every_other", depths(2, 4)) == ((0, 1), (1, 3))
    assert state_pairs("every_other", depths(2, 3)) == ((0, 0), (1, 2), (2, 3))
    with pytest.raises(ModelError, match="twice the student's layers; these have 6 and 2"):
        state_pairs("every_other", depths(2, 6))


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="state 5 of the student, which has 0 to 4"):
        state_pairs(((5, 1),), depths(4, 12))
    with pytest.raises(ModelError, match="attention layer 12 of the teacher, which has 0 to 11"):
        attention_pairs(((0, 12),), depths(4, 12))
    with pytest.raises(ModelError, match="attention layer -1 of the student"):
        attention_pairs(((-1, 0),), depths(4, 12))


def test_a_plain_module_has_no_layers_to_count() -> None:
    for pairs in (lambda d: state_pairs("last", d), lambda d: attention_pairs("last", d)):
        with pytest.raises(ModelError, match=r"the teacher is a plain module.*\n.*hint"):
            pairs(depths(4, 0))

"""The layers that each choice keeps, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import RecipeError
from potstill.recipe.layers import choose_layers
from potstill.recipe.students import ByInfluence, First, Last, Uniform


def test_every_other_starts_at_the_first() -> None:
    assert choose_layers("every_other", 7) == [0, 2, 4, 6]
    assert choose_layers("every_other", 30) == list(range(0, 30, 2))
    assert choose_layers("every_other", 1) == [0]


def test_uniform_six_of_twelve_are_distilberts() -> None:
    assert choose_layers(Uniform(uniform=6), 12) == [0, 2, 4, 7, 9, 11]


def test_uniform_rounds_halves_to_the_even_number() -> None:
    assert choose_layers(Uniform(uniform=3), 6) == [0, 2, 5]  # 2.5
    assert choose_layers(Uniform(uniform=3), 8) == [0, 4, 7]  # 3.5


def test_uniform_of_one_is_the_first_layer() -> None:
    assert choose_layers(Uniform(uniform=1), 5) == [0]


@given(st.integers(1, 200).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, count))))
def test_uniform_never_repeats_a_layer_and_spans_the_teacher(shape: tuple[int, int]) -> None:
    count, n = shape
    layers = choose_layers(Uniform(uniform=n), count)
    assert len(set(layers)) == n and layers == sorted(layers)
    assert layers[0] == 0 and (n == 1 or layers[-1] == count - 1)


def test_first_and_last() -> None:
    assert choose_layers(First(first=2), 5) == [0, 1]
    assert choose_layers(Last(last=2), 5) == [3, 4]


def test_by_influence_keeps_the_most_influential_in_the_teachers_order() -> None:
    assert choose_layers(ByInfluence(by_influence=3), 5, [0.1, 0.5, 0.2, 0.9, 0.3]) == [1, 3, 4]


def test_of_equally_influential_layers_the_earlier_is_kept() -> None:
    assert choose_layers(ByInfluence(by_influence=2), 4, [0.5, 0.5, 0.5, 0.5]) == [0, 1]


def test_a_list_is_taken_as_given() -> None:
    assert choose_layers((0, 2, 4, 7, 9, 11), 12) == [0, 2, 4, 7, 9, 11]
    assert choose_layers((3, 0), 4) == [3, 0]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ((0, 4), r"there is no layer 4 in a teacher with 4.*counted from 0 to 3"),
        ((-1,), r"there is no layer -1"),
        ((0, 2, 2), r"layer 2 is there twice"),
        (Uniform(uniform=5), r"student\.layers\.uniform: 5 layers are asked of a teacher with 4"),
        (First(first=5), r"student\.layers\.first: 5 layers"),
        (Last(last=5), r"student\.layers\.last: 5 layers"),
        (ByInfluence(by_influence=5), r"student\.layers\.by_influence: 5 layers"),
    ],
)
def test_impossible_choices_are_refused_with_the_fix(choice: object, words: str) -> None:
    with pytest.raises(RecipeError, match=rf"(?s){words}"):
        choose_layers(choice, 4, [0.0] * 4)  # type: ignore[arg-type]

"""One name, one class."""

from __future__ import annotations

from typing import Literal

import pytest

from potstill import registry
from potstill.errors import RecipeError
from potstill.recipe import ObjectiveSettings


class Lonely(ObjectiveSettings):
    kind: Literal["lonely_for_this_test"] = "lonely_for_this_test"


def test_a_second_class_of_the_same_name_is_refused() -> None:
    with pytest.raises(RecipeError, match="registered twice"):

        class Other(ObjectiveSettings):
            kind: Literal["lonely_for_this_test"] = "lonely_for_this_test"


def test_an_unknown_kind_suggests_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'forward_kl'"):
        registry.settings_class("objectives", "forwrad_kl")


def test_settings_that_nothing_implements_are_refused_and_then_bound_once() -> None:
    with pytest.raises(RecipeError, match="nothing implements kind 'lonely_for_this_test'"):
        registry.build(Lonely())

    @registry.implements(Lonely)
    class First:
        def __init__(self, settings: Lonely) -> None:
            self.settings = settings

    assert registry.build(Lonely(weight=2)).settings.weight == 2
    with pytest.raises(RecipeError, match="implemented twice"):

        @registry.implements(Lonely)
        class Second:
            pass

"""One name, one class."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import pytest

from potstill import registry
from potstill.errors import RecipeError
from potstill.recipe import LocalTeacher, ObjectiveSettings, Recipe, load_recipe, parse_recipe
from potstill.stage import Stage


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


PLUGIN = """
from typing import Literal
from potstill.recipe import ObjectiveSettings
from potstill.registry import implements

class Edited(ObjectiveSettings):
    kind: Literal["edited_for_this_test"] = "edited_for_this_test"

@implements(Edited)
class Loss:
    number = {number}
    def __init__(self, settings: Edited) -> None: ...
"""


def test_an_edited_plugin_file_is_loaded_again_and_so_is_the_first_text(tmp_path: Path) -> None:
    for number in (1, 2, 1):
        (tmp_path / "edited.py").write_text(PLUGIN.format(number=number))
        cls = registry.settings_class("objectives", "edited.py:Edited", tmp_path)
        assert registry.build(cls()).number == number


# ---- entry points --------------------------------------------------------------------------------------------

SETTINGS = """
from typing import Literal
from potstill.recipe import ObjectiveSettings
class Settings(ObjectiveSettings):
    kind: Literal["{kind}"] = "{kind}"
    sharpness: float = 1.0
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages, first on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def install(site: Path, name: str, points: str, source: str = "", room: str = "objectives") -> None:
    """A distribution of one module, as an installer leaves it."""
    info = site / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[potstill.{room}]\n{points}\n")
    (site / f"{name}.py").write_text(source)


def test_an_installed_package_gives_a_kind_by_its_entry_point(site: Path) -> None:
    install(site, "gives_one", "given_one = gives_one:Settings", SETTINGS.format(kind="given_one"))
    assert "gives_one" not in sys.modules
    found = registry.settings_class("objectives", "given_one")
    assert found.__module__ == "gives_one"
    assert registry.settings_class("objectives", "given_one") is found
    assert str(site / "gives_one.py") in registry.plugin_digests


def test_the_entry_point_may_name_what_implements_it(site: Path) -> None:
    bound = "from potstill.registry import implements\n@implements(Settings)\nclass Loss:\n    pass\n"
    install(site, "gives_loss", "given_loss = gives_loss:Loss", SETTINGS.format(kind="given_loss") + bound)
    assert registry.settings_class("objectives", "given_loss").__name__ == "Settings"


def test_the_objectives_of_a_trainer_find_entry_points(site: Path) -> None:
    from potstill.train.coerce import given_objectives

    install(site, "gives_two", "given_two = gives_two:Settings", SETTINGS.format(kind="given_two"))
    (objective,) = given_objectives([{"kind": "given_two", "sharpness": 3}])
    assert objective.kind == "given_two"
    with pytest.raises(RecipeError, match="unknown key 'sharpnes'; did you mean 'sharpness'"):
        given_objectives([{"kind": "given_two", "sharpnes": 3}])


def test_a_near_miss_of_an_entry_point_suggests_it_and_imports_nothing(site: Path) -> None:
    install(site, "never_loaded", "peculiar_signal = never_loaded:Settings", "raise SystemExit('was imported')")
    with pytest.raises(RecipeError, match="did you mean 'peculiar_signal'"):
        registry.settings_class("objectives", "peculair_signal")
    assert registry.settings_class("objectives", "forward_kl").__name__ == "ForwardKL"
    assert "never_loaded" not in sys.modules


def test_a_package_that_cannot_be_loaded_is_named_and_leaves_nothing_behind(site: Path) -> None:
    source = SETTINGS.format(kind="given_three") + "import a_package_that_is_not_there\n"
    install(site, "breaks", "given_three = breaks:Settings", source)
    for _ in range(2):
        with pytest.raises(RecipeError, match=r"breaks 1\.2, entry point") as error:
            registry.settings_class("objectives", "given_three")
        assert "No module named 'a_package_that_is_not_there'" in str(error.value)
    install(site, "lacks", "given_four = lacks:Nothing")
    with pytest.raises(RecipeError, match=r"lacks 1\.2.*AttributeError"):
        registry.settings_class("objectives", "given_four")


@pytest.mark.parametrize("by", ["the entry point", "the class"])
def test_a_name_of_potstills_own_is_refused_naming_both(site: Path, by: str) -> None:
    name = "forward_kl" if by == "the entry point" else "given_five"
    install(site, "imitates", f"{name} = imitates:Settings", SETTINGS.format(kind="forward_kl"))
    with pytest.raises(RecipeError) as error:
        registry.settings_class("objectives", "given_five")
    assert "potstill" in error.value.what
    assert "imitates" in str(error.value)
    assert registry.settings_class("objectives", "forward_kl").__module__ == "potstill.recipe.response"


def test_two_packages_of_one_name_are_refused_naming_both(site: Path) -> None:
    install(site, "first_of_two", "given_six = first_of_two:Settings")
    install(site, "second_of_two", "given_six = second_of_two:Settings")
    with pytest.raises(RecipeError, match=r"by (first|second)_of_two 1\.2 and by (first|second)_of_two 1\.2"):
        registry.settings_class("objectives", "given_six")


def test_an_entry_point_and_its_settings_have_one_name(site: Path) -> None:
    install(site, "disagrees", "given_seven = disagrees:Settings", SETTINGS.format(kind="given_eight"))
    with pytest.raises(RecipeError, match="is called 'given_seven', and its settings 'given_eight'"):
        registry.settings_class("objectives", "given_seven")


def test_an_entry_point_of_another_room_is_refused(site: Path) -> None:
    install(site, "strays", "given_nine = strays:Settings", SETTINGS.format(kind="given_nine"), room="teachers")
    with pytest.raises(RecipeError, match="Settings is neither the settings of a kind of teachers nor"):
        registry.settings_class("teachers", "given_nine")


def test_a_recipe_of_known_kinds_looks_for_no_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "{name: x, data: x.jsonl, student: {kind: from_teacher}, teacher: {kind: local, model: x}, train: {}}"
    )
    monkeypatch.setattr(registry, "_entry_points", lambda room: pytest.fail(f"looked for packages of {room}"))
    load_recipe(tmp_path / "recipe.yaml")


# ---- in the keys of stages -----------------------------------------------------------------------------------


def key_of(recipe: Recipe) -> str:
    return Stage("train", 1, (), {}, dict, lambda _: None).key(recipe, {})[0]


def recipe_with(kind: str) -> Recipe:
    document = {"name": "x", "data": "x.jsonl", "student": {"kind": "from_teacher"}}
    document |= {"teacher": {"kind": "local", "model": "x"}, "train": {"objectives": [{"kind": kind}]}}
    return parse_recipe(document, base=Path("/"))


def test_a_plug_in_is_in_the_keys_of_the_recipes_that_use_it_and_of_no_others(site: Path) -> None:
    before = key_of(recipe_with("forward_kl"))
    install(site, "keyed", "given_ten = keyed:Settings", SETTINGS.format(kind="given_ten"))
    recipe = recipe_with("given_ten")
    with_plug_in = key_of(recipe)
    assert key_of(recipe_with("forward_kl")) == before
    (site / "keyed.py").write_text("# another meaning\n" + SETTINGS.format(kind="given_ten"))
    registry.plugin_digests.clear()  # as in a new process
    assert key_of(recipe) != with_plug_in


def test_every_file_of_a_package_is_in_its_digest(site: Path) -> None:
    install(site, "whole", "given_eleven = whole.settings:Settings")
    (site / "whole.py").unlink()
    (site / "whole").mkdir()
    (site / "whole" / "__init__.py").write_text("")
    (site / "whole" / "maths.py").write_text("x = 1")
    (site / "whole" / "settings.py").write_text(SETTINGS.format(kind="given_eleven"))
    (first,) = registry.digests_of([registry.settings_class("objectives", "given_eleven"), LocalTeacher])
    (site / "whole" / "maths.py").write_text("x = 2")
    registry.plugin_digests.clear()
    assert registry.digests_of([registry.settings_class("objectives", "given_eleven")]) != [first]

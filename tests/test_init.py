"""A recipe that comes with potstill is copied with the files it names, and parses where it lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.errors import RecipeError
from potstill.init import write_starter
from potstill.recipe import load_recipe
from potstill.shipped import shipped


@pytest.mark.parametrize("name", ["sequence_kd", "self_instruct", "conversations", "hinton_digits_teacher"])
def test_a_shipped_recipe_parses_in_a_folder_of_its_own(name: str, tmp_path: Path) -> None:
    write_starter(tmp_path, name)
    assert load_recipe(tmp_path / "recipe.yaml").name


def test_files_that_a_recipe_names_come_along(tmp_path: Path) -> None:
    written = {path.relative_to(tmp_path).as_posix() for path in write_starter(tmp_path, "reasoning_teacher")}
    assert {"recipe.yaml", "additions.py", "additions/tokenizer.json"} <= written


def test_an_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'sequence_kd'"):
        write_starter(tmp_path, "sequence_dk")


def test_documentation_and_recipes_are_found_beside_the_sources() -> None:
    docs, recipes = shipped("docs"), shipped("recipes")
    assert docs is not None and recipes is not None and (recipes / "prompts.jsonl").is_file()

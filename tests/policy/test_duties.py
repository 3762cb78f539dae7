"""Duties are carried out in what is exported: names, notices, copies, restrictions, share-alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from policy.test_provenance import House

from potstill.check import check_recipe
from potstill.policy.duties import conflicts, copies, displayed, licence_of_student, named, write_papers
from potstill.policy.gate import Rulings, rulings_on
from potstill.recipe import Recipe
from tiny_models import make_tiny_causal_lm

APACHE = Path(__file__).parents[2] / "LICENSE"


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path, make_tiny_causal_lm(tmp_path / "plain"))


def published(house: House, licence: str, **sections: Any) -> tuple[Recipe, Rulings]:
    teacher = house.licensed(f"teacher-{licence}", licence)
    recipe = house.recipe("half", teacher=teacher, policy={"purpose": "publish"}, **sections)
    return recipe, rulings_on(recipe)


def test_built_with_llama(house: House, tmp_path: Path) -> None:
    recipe, rulings = published(house, "llama3.1")
    assert named("half", rulings) == "Llama-half"
    assert named("llama-half", rulings) == "llama-half"
    assert displayed("Llama-half", rulings) == ["Built with Llama"]
    (tmp_path / "out").mkdir()
    undone = write_papers(tmp_path / "out", recipe, rulings)
    notice = (tmp_path / "out" / "NOTICE").read_text()
    for text in (
        "Llama-half: made with potstill.",
        "Built with Llama",
        "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc.",
        "https://llama.meta.com/llama3_1/use-policy",
        "700 million",
    ):
        assert text in notice
    # The text itself is not on this machine, and that is said.
    assert len(undone) == 1
    assert "a copy of the Llama 3.1 Community License must go along" in undone[0]


def test_a_copy_of_the_licence_goes_along(house: House, tmp_path: Path) -> None:
    recipe, rulings = published(house, "apache-2.0", student={"kind": "from_teacher"})
    assert [source.id for source in copies(recipe, rulings).missing] == ["apache-2.0"]
    (Path(recipe.teachers["main"].model) / "LICENSE.txt").write_bytes(APACHE.read_bytes())  # type: ignore[attr-defined]
    (tmp_path / "out").mkdir()
    assert write_papers(tmp_path / "out", recipe, rulings_on(recipe)) == []
    assert (tmp_path / "out" / "LICENSE.apache-2.0").read_bytes() == APACHE.read_bytes()


def test_a_text_that_the_recipe_names_goes_along(house: House, tmp_path: Path) -> None:
    (tmp_path / "llama.txt").write_text("the text")
    recipe, _ = published(house, "llama3.1")
    policy = {"purpose": "publish", "texts": {"llama-3.1": str(tmp_path / "llama.txt")}}
    recipe = recipe.model_copy(update={"policy": type(recipe.policy).model_validate(policy)})
    (tmp_path / "out").mkdir()
    assert write_papers(tmp_path / "out", recipe, rulings_on(recipe)) == []
    assert (tmp_path / "out" / "LICENSE.llama-3.1").read_text() == "the text"


def test_use_restrictions_are_passed_on(house: House, tmp_path: Path) -> None:
    recipe, rulings = published(house, "gemma")
    (tmp_path / "out").mkdir()
    write_papers(tmp_path / "out", recipe, rulings)
    notice = (tmp_path / "out" / "NOTICE").read_text()
    assert "bound by the use restrictions of the Gemma Terms of Use" in notice
    assert "https://ai.google.dev/gemma/prohibited_use_policy" in notice


def test_a_notice_that_is_there_is_kept(house: House, tmp_path: Path) -> None:
    recipe, rulings = published(house, "gemma")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "NOTICE").write_text("Copyright of the first maker")
    write_papers(tmp_path / "out", recipe, rulings)
    notice = (tmp_path / "out" / "NOTICE").read_text()
    assert notice.index("Gemma is provided") < notice.index("Copyright of the first maker")


def test_share_alike_is_the_students_licence(house: House) -> None:
    data = {"kind": "jsonl", "path": str(house.folder / "data" / "rows.jsonl"), "licence": "cc-by-sa-4.0"}
    _, rulings = published(house, "apache-2.0", data=data)
    assert licence_of_student(rulings) == "cc-by-sa-4.0"
    assert conflicts(rulings) == []


def test_duties_that_cannot_all_be_met_are_named(house: House) -> None:
    path = str(house.folder / "data" / "rows.jsonl")
    data = {"kind": "jsonl", "path": path, "licence": "cc-by-sa-4.0 AND gpl-3.0"}
    _, two = published(house, "apache-2.0", data=data)
    assert licence_of_student(two) == ""
    assert any("each ask that the student be under it alone" in text for text in conflicts(two))
    recipe, further = published(house, "gemma", data={**data, "licence": "gpl-3.0"}, export=[{"kind": "huggingface"}])
    assert any("allows no further restrictions" in text for text in conflicts(further))
    assert any("allows no further restrictions" in warning.text for warning in check_recipe(recipe).warnings)
    members = [house.licensed("a", "llama3.1"), house.licensed("b", "hyperclovax")]
    ensemble = house.recipe("x", teacher={"kind": "ensemble", "members": members}, policy={"purpose": "publish"})
    assert any("name cannot begin with each" in text for text in conflicts(rulings_on(ensemble)))


def test_research_inside_the_house_has_no_papers_but_its_provenance(house: House, tmp_path: Path) -> None:
    recipe = house.recipe("half", teacher=house.licensed("teacher", "apache-2.0"))
    (tmp_path / "out").mkdir()
    assert write_papers(tmp_path / "out", recipe, rulings_on(recipe)) == []
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"provenance.json"}
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["uses"][0]["name"] == "teacher"

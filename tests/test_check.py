"""A check says what a recipe will do, and refuses what cannot work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potstill.check import check_recipe
from potstill.errors import DataError
from potstill.init import write_starter
from potstill.recipe import Recipe, load_recipe


@pytest.fixture
def starter(tmp_path: Path) -> Path:
    return write_starter(tmp_path)[0]


def recipe_with(path: Path, *overrides: str) -> Recipe:
    return load_recipe(path, overrides)


def test_the_starter_passes_as_it_is_written(starter: Path) -> None:
    findings = check_recipe(recipe_with(starter))
    assert findings.figures["records"] == 12
    assert findings.figures["held_out"] >= 2
    assert findings.figures["tokens_at_most"] == 12 * 192


def test_a_token_budget_bounds_the_estimate(starter: Path) -> None:
    assert check_recipe(recipe_with(starter, "generate.token_budget=500")).figures["tokens_at_most"] == 500


def test_too_few_held_out_groups_are_refused_before_training(starter: Path) -> None:
    with pytest.raises(DataError, match="fewer than two groups"):
        check_recipe(recipe_with(starter, "data.held_out=0.001"))


def test_prompts_that_nothing_answers_are_refused(starter: Path) -> None:
    with pytest.raises(DataError, match="nothing answers them"):
        check_recipe(recipe_with(starter, "generate=null"))


def test_data_of_the_hub_are_not_fetched(starter: Path) -> None:
    findings = check_recipe(recipe_with(starter, "data={kind: hub, id: some/where}"))
    assert findings.lines["data"] == ("hub: will be fetched, and is not looked at before",)


def test_columns_that_are_not_used_are_named(starter: Path) -> None:
    rows = [{"prompt": f"Say the number {n}.", "colour": "red"} for n in range(40)]
    starter.with_name("prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert "columns that are not used: colour" in check_recipe(recipe_with(starter)).lines["data"]

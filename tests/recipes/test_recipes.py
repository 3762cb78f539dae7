"""Every shipped recipe runs from its data to its report in a small size, states its minutes, and has a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_recipes import RECIPES, ROOT, SMALL, run, steps

from potstill.artifacts import read_artifact
from potstill.measures import Measures
from potstill.recipe import load_recipe

METHODS = [
    name
    for name in RECIPES
    if name not in ("alignment_tax", "demo", "offline", "smollm2_half") and not name.endswith("_teacher")
]


def test_every_shipped_recipe_is_run() -> None:
    assert set(SMALL) == set(RECIPES)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_recipe_runs_from_its_data_to_its_report(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    overrides = [*SMALL[name](tmp_path), *steps(2, name), "evaluate.resamples=50"]
    recipe = load_recipe(RECIPES[name], overrides)
    run(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "report" / "report.html").is_file()
    measures = Measures.load(tmp_path / "run" / "evaluate" / "measures.json")
    assert measures.task == recipe.task
    assert {"student", *recipe.evaluate.controls, *recipe.train.controls} <= set(measures.models)  # type: ignore[union-attr]
    assert ("teacher" in measures.models) == bool(recipe.teachers)
    trained = read_artifact(tmp_path / "run" / "train")
    assert trained is not None
    logged = (trained.path / "history.jsonl").read_text()
    assert [o.kind for o in recipe.train.all_objectives if o.kind not in logged] == []  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "demo"])
def test_a_recipe_states_its_minutes(name: str) -> None:
    said = " ".join(line.lstrip("# ") for line in RECIPES[name].read_text().splitlines() if line.startswith("#"))
    assert re.search(r"(\d+|[Hh]alf a) minutes? on two cores", said)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_a_page_with_its_source_its_equation_and_its_figure(name: str) -> None:
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    (source, *_) = re.findall(r"arXiv (\d{4}\.\d{5})", RECIPES[name].read_text(encoding="utf-8"))
    assert source in page
    assert f"recipes/{name}.yaml" in page
    for heading in ("## The equation", "## What it reaches here", "## How far that is from the paper's"):
        assert heading in page
    assert f"methods/{name}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")

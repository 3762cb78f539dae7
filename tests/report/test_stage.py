"""What the stage reads, and what it hands on."""

from __future__ import annotations

import shutil
from pathlib import Path

from report.synthetic import Shape, recipe_of

from potstill.recipe import parse_recipe
from potstill.report.stage import stage
from potstill.teachers.origin import origin_of_teacher, teacher_name


def test_it_reads_what_the_recipe_has(tiny_llama: Path) -> None:
    assert stage(recipe_of(Shape(), tiny_llama)).reads == ("evaluate", "train", "train.text_only", "generate")
    assert stage(recipe_of(Shape(kl=None, nll=None, generated=False), tiny_llama)).reads == ("evaluate", "train")


def test_another_title_is_another_page(tiny_llama: Path) -> None:
    keys = [stage(r).key(r, {})[0] for r in (recipe_of(Shape(title=t), tiny_llama) for t in ("one", "two", "one"))]
    assert keys[0] == keys[2] != keys[1]


def test_it_writes_a_page_and_a_card_and_nothing_else(report: Path) -> None:
    assert {f.name for f in report.iterdir()} == {"report.html", "README.md", "manifest.json"}


def test_the_teacher_is_the_one_that_evaluate_measures_against(tiny_llama: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)  # a link would be followed
    teachers = {"writer": {"kind": "local", "model": str(other)}, "tutor": {"kind": "local", "model": str(tiny_llama)}}
    document = {
        "name": "n",
        "student": {"kind": "from_teacher"},
        "data": {"kind": "jsonl", "path": "x.jsonl"},
        "generate": {"kind": "sequence", "teacher": "writer"},
    }
    for given, train in (
        (teachers, {"teacher": "tutor"}),
        (teachers, {"objectives": [{"kind": "hard_ce"}]}),
        ({"writer": teachers["writer"]}, {"objectives": [{"kind": "hard_ce"}]}),
    ):
        recipe = parse_recipe(document | {"teachers": given, "train": train}, base=Path("/"))
        name, found = teacher_name(recipe), origin_of_teacher(recipe)
        assert name is not None and found is not None
        assert found.name == Path(given[name]["model"]).name

"""What the stage reads, and what it hands on."""

from __future__ import annotations

from pathlib import Path

from report.synthetic import Shape, recipe_of

from potstill.report.stage import stage


def test_it_reads_what_the_recipe_has(tiny_llama: Path) -> None:
    assert stage(recipe_of(Shape(), tiny_llama)).reads == ("evaluate", "train", "train.text_only", "generate")
    assert stage(recipe_of(Shape(kl=None, nll=None, generated=False), tiny_llama)).reads == ("evaluate", "train")


def test_another_title_is_another_page(tiny_llama: Path) -> None:
    keys = [stage(r).key(r, {})[0] for r in (recipe_of(Shape(title=t), tiny_llama) for t in ("one", "two", "one"))]
    assert keys[0] == keys[2] != keys[1]


def test_it_writes_a_page_and_a_card_and_nothing_else(report: Path) -> None:
    assert {f.name for f in report.iterdir()} == {"report.html", "README.md", "manifest.json"}

"""The stage `report`: from measures to a page and a model card. Loads torch and altair only when it runs."""

from __future__ import annotations

from functools import partial

from potstill.recipe import Pruned, Recipe
from potstill.recipe.train import PRUNED
from potstill.speculation import load_speculation
from potstill.stage import Context, Stage
from potstill.teachers.origin import origin_digests, origin_of_teacher

CONTRACT = 4


def stage(recipe: Recipe) -> Stage:
    """The stage of a recipe that has an `evaluate` section, or a `speculate` section.

    Its artifact holds `report.html` and `README.md`, the model card that exporters include. The page shows the whole
    recipe, so the whole recipe is in its key.
    """
    reads = []
    if recipe.evaluate is not None:
        reads += ["evaluate", *(training.stage for training in recipe.required_train.trainings)]
        reads += [PRUNED] if isinstance(recipe.student, Pruned) else []
        reads += ["generate"] if recipe.generate is not None else []
        reads += ["capture"] if recipe.capture is not None else []
    if recipe.speculate is not None:
        reads.append("speculate")
    settings = recipe.model_dump(mode="json", warnings=False)
    return Stage("report", CONTRACT, tuple(reads), settings, partial(origin_digests, recipe), _write)


def _write(context: Context) -> None:
    from potstill.report.card import render_card
    from potstill.report.findings import read_findings
    from potstill.report.page import render_page, render_speculation
    from potstill.report.verdict import judge

    recipe = context.recipe
    if recipe.evaluate is None:
        page = render_speculation(recipe, load_speculation(context.inputs["speculate"].path))
        (context.out / "report.html").write_text(page, encoding="utf-8", newline="\n")
        context.console.say(f"report: {context.run / 'report' / 'report.html'}", report=str(context.run / "report"))
        return
    with context.console.task("report", total=3, unit="parts") as task:
        findings = read_findings(recipe, context.inputs, origin_of_teacher(recipe))
        task.advance(1)
        page = render_page(findings)
        (context.out / "report.html").write_text(page, encoding="utf-8", newline="\n")
        task.advance(1)
        (context.out / "README.md").write_text(render_card(findings), encoding="utf-8", newline="\n")
        task.advance(1)
    context.console.say(judge(findings.measures).text)
    context.console.say(f"report: {context.run / 'report' / 'report.html'}", report=str(context.run / "report"))

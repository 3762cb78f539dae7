"""`README.md`: the student's model card. What it was made from and how, what was lost, and what was not measured.

The card is published, so it names no path of this machine.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from potstill.markdown import escape_markdown
from potstill.policy.duties import displayed, licence_of_student, named
from potstill.policy.gate import rulings_on_run
from potstill.policy.terms import terms_section
from potstill.recipe import Existing, FromTeacher, ImageSettings, ModuleStudent, Pruned
from potstill.recipe.schedules import schedule_text
from potstill.report import figures, sections
from potstill.report.findings import Findings
from potstill.report.terminology import words_of
from potstill.report.verdict import judge
from potstill.tasks import SPECS

_SPDX_LIKE = re.compile(r"^[a-z0-9][a-z0-9.+-]*$")


def render_card(findings: Findings) -> str:
    """The card, as Markdown with YAML metadata in front."""
    from huggingface_hub import ModelCard, ModelCardData

    origin = findings.begins_with
    rulings = rulings_on_run(findings.recipe, findings.manifests)
    title = named(findings.title, rulings)
    # The hub asks for `other` and a name for a licence that is not an SPDX-like identifier.
    licence: dict[str, Any] = {}
    stated = licence_of_student(rulings) or (origin.licence if origin is not None else "")
    if stated:
        lower = stated.lower()
        licence = {"license": lower} if _SPDX_LIKE.match(lower) else {"license": "other", "license_name": lower}
    teacher = findings.teacher
    base = origin or teacher
    metadata = ModelCardData(
        **licence,
        base_model=base.hub_id if base is not None else None,
        library_name=None if findings.is_module else "transformers",
        pipeline_tag=SPECS[findings.recipe.task].pipeline_tag,
        tags=["knowledge-distillation", "potstill"],
        # No model-index: the figures are of this run's held-out records, which are not a benchmark that others can run.
    )
    body = _template().render(
        findings=findings,
        title=title,
        displayed=displayed(title, rulings),
        terms="\n".join(terms_section(rulings)),
        measures=findings.measures,
        task=SPECS[findings.measures.task],
        student=findings.student,
        teacher=teacher,
        origin=origin,
        same_origin=origin is not None and origin == teacher,
        teacher_measures=findings.measures.models.get("teacher"),
        verdict=judge(findings.measures),
        words=words_of(findings.measures),
        solving=sections.solving_table(findings.measures),
        begins=_begins_with_weights(findings),
        normalised=_normalised(findings.recipe.data),
        input_shape=", ".join(map(str, findings.manifests["evaluate"]["facts"].get("image_shape", ()))),
        pooling=findings.recipe.required_train.pooling,
        models=sections.models_table(findings.measures),
        differences=sections.differences_table(findings.measures),
        sizes=sections.size_table(findings.measures),
        made=_how_it_was_made(findings),
        text=_text_of(findings),
        facts=findings.trained["student"],
        has_template=findings.has_template,
        objectives=_objectives(findings),
        data_licence=findings.recipe.data.licence_id,
        versions=findings.manifests["train"]["versions"],
    )
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"))


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("potstill.report"),
        # Every value is escaped for Markdown and then taken verbatim; our own wording is marked (`own`).
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(escape_markdown(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"own": Markup, "count": figures.count, "large": figures.large}
    return environment.get_template("README.md.jinja")


def _how_it_was_made(findings: Findings) -> str:
    """How the student was built, in a sentence."""
    student, facts = findings.recipe.student, findings.trained["student"]
    layers = facts.get("layers")
    if isinstance(student, FromTeacher) and layers is not None:
        listed = ", ".join(map(str, layers))
        return f"It began as layers {listed} of the teacher (counted from 0), with its embeddings, norms and head."
    if isinstance(student, Pruned) and layers is not None:
        shape = facts.get("shape")
        width = (
            f", each {shape['hidden']} wide, with {shape['groups']} groups of heads and {shape['channels']} channels"
            if shape
            else ""
        )
        return (
            f"It began as the teacher pruned to {len(layers)} of its {facts['teacher_layers']} layers{width}, the best "
            f"of {len(facts['candidates'])} candidates after a short look."
        )
    if isinstance(student, Existing):
        began = findings.begins_with
        return f"It began as {began.name if began is not None else 'an existing model'}."
    if isinstance(student, ModuleStudent) and student.weights is not None:
        return f"It began with the weights of {student.weights.name}."
    return "It began with random weights."


def _begins_with_weights(findings: Findings) -> str:
    """The name of the weights file that the student began with; empty if it began with a model's or random weights."""
    student = findings.recipe.student
    return student.weights.name if isinstance(student, ModuleStudent) and student.weights is not None else ""


def _normalised(data: Any) -> tuple[float, float] | None:
    """Mean and standard deviation that images are normalised with."""
    return (data.mean, data.std) if isinstance(data, ImageSettings) else None


def _text_of(findings: Findings) -> str:
    """What it was trained on, in a sentence."""
    recipe = findings.recipe
    data = _data_name(recipe.data)
    task = SPECS[recipe.task]
    if not task.writes:
        what = "images" if task.reads_images else "labelled texts" if task.has_classes else "texts"
        return f"It was trained on the {what} of {data}."
    if recipe.generate is None:
        return f"It was trained on the answers in {data}."
    manifest = findings.manifests["generate"]
    written = manifest["facts"].get("tokens")
    tokens = f", {figures.count(written)} tokens in all" if written is not None else ""
    return f"It was trained on answers that the teacher wrote to the prompts of {data}{tokens}."


def _data_name(data: Any) -> str:
    """The public name of a data source: never a folder of this machine."""
    if hasattr(data, "path"):
        return Path(data.path).name
    return str(getattr(data, "id", None) or getattr(data, "name", None) or data.kind)


def _objectives(findings: Findings) -> str:
    """`1 · forward_kl + 1 · hidden_cosine`."""
    objectives = findings.recipe.required_train.all_objectives
    named = [f"{schedule_text(o.weight)} · {o.kind.rpartition(':')[2]}" for o in objectives]
    return " + ".join(named)

"""The findings of a run: everything that the page and the card state is read here, from complete artifacts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.artifacts import Artifact
from potstill.cost.cascade import Cascade
from potstill.cost.inputs import cascade_of
from potstill.errors import RunError
from potstill.measures import MODELS, Measures, ModelMeasures
from potstill.recipe import Existing, Recipe
from potstill.recipe.train import PRUNED
from potstill.speculation import Speculation, load_speculation
from potstill.tasks import SPECS
from potstill.teachers.origin import Origin, origin_of


@dataclass(frozen=True)
class Findings:
    """Everything known about a run, as its artifacts state it.

    `values` are the losses of every held-out target, by column (`kl_student`). `classes` are the label of each example
    and each model's first choice (`label`, `student`, …; empty without classes). `history` and `trained` are the
    training log and the facts of the student and, under their names, of the trained controls. `manifests` are those of
    the stages read, in the order of the run. `has_template` says whether the student takes conversations, and
    `is_module` whether it is a plain module, which `transformers` does not open. `cascade` is fitted on the held-out
    values; `speculation` is what was measured of a draft, if anything was.
    """

    recipe: Recipe
    measures: Measures
    documents: list[dict[str, Any]]
    values: Mapping[str, NDArray[Any]]
    classes: Mapping[str, list[str]]
    trained: Mapping[str, Mapping[str, Any]]
    history: Mapping[str, list[dict[str, Any]]]
    manifests: Mapping[str, Mapping[str, Any]]
    teacher: Origin | None
    has_template: bool
    is_module: bool
    cascade: Cascade | None = None
    speculation: Speculation | None = None

    @property
    def title(self) -> str:
        """The recipe's `report.title`, else its name."""
        return self.recipe.report.title or self.recipe.name

    @property
    def student(self) -> ModelMeasures:
        return self.measures.models["student"]

    @property
    def models(self) -> list[ModelMeasures]:
        """All measured models, in display order."""
        return [self.measures.models[name] for name in MODELS if name in self.measures.models]

    @property
    def begins_with(self) -> Origin | None:
        """The model whose weights the student began with; None if they were random."""
        student = self.recipe.student
        if student is not None and student.begins_with_teacher:
            return self.teacher
        return origin_of(student.model, student.revision) if isinstance(student, Existing) else None


def read_findings(recipe: Recipe, inputs: Mapping[str, Artifact], teacher: Origin | None) -> Findings:
    """Read the artifacts of a run.

    Args:
        recipe: the recipe of the run.
        inputs: `evaluate` and `train`, and if the recipe has them `train.text_only` and `generate`.
        teacher: facts about the teacher.

    Raises:
        RunError: a required file is missing or damaged.
    """
    evaluate = inputs["evaluate"].path
    trainings = {"student": inputs["train"]}
    controls = {name: a for name, a in inputs.items() if name.startswith("train.") and name != PRUNED}
    trainings |= {name.removeprefix("train."): a for name, a in controls.items()}
    measures = _read(evaluate / "measures.json", Measures.load)
    if "student" not in measures.models:
        raise RunError(
            "there are no measures of the student",
            where=str(evaluate / "measures.json"),
            fix="run the stage again: potstill evaluate --force",
        )
    of_tokens = SPECS[measures.task].has_vocabulary
    table = evaluate / ("tokens.parquet" if of_tokens else "examples.parquet")
    model = inputs["train"].path / "model"
    order = ("generate", "capture", PRUNED, "train", *(f"train.{name}" for name in trainings), "evaluate")
    return Findings(
        recipe=recipe,
        measures=measures,
        documents=_read(evaluate / "documents.json", _json),
        values=_read(table, read_values),
        classes={} if of_tokens else _read(table, _classes),
        trained={name: _read(a.path / "student.json", _json) for name, a in trainings.items()},
        history={name: _read(a.path / "history.jsonl", _json_lines) for name, a in trainings.items() if name in MODELS},
        manifests={name: inputs[name].manifest for name in order if name in inputs},
        teacher=teacher,
        has_template=_has_template(model),
        is_module=(model / "module.json").is_file(),
        cascade=cascade_of(evaluate),
        speculation=load_speculation(inputs["speculate"].path) if "speculate" in inputs else None,
    )


def _has_template(model: Path) -> bool:
    if (model / "chat_template.jinja").is_file():
        return True
    config = model / "tokenizer_config.json"
    return config.is_file() and bool(_read(config, _json).get("chat_template"))


def _read(path: Path, how: Any) -> Any:
    try:
        return how(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        stage = path.parent.name
        raise RunError(f"{path.name} {what}", where=str(path.parent), fix=f"run {stage} again with --force") from error


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def read_values(path: Path) -> dict[str, NDArray[np.float64]]:
    """The losses of each model on each target: the columns `nll_…` and `kl_…`."""
    import pyarrow.parquet as pq

    names = [name for name in pq.read_schema(path).names if name.startswith(("nll_", "kl_"))]
    table = pq.read_table(path, columns=names)
    return {name: np.asarray(table.column(name).to_numpy(), dtype=np.float64) for name in names}


def _classes(path: Path) -> dict[str, list[str]]:
    """The label of each example, and each model's first choice, by the model's name; empty for embeddings."""
    import pyarrow.parquet as pq

    names = [name for name in pq.read_schema(path).names if name.startswith("class_")]
    if not names:
        return {}
    table = pq.read_table(path, columns=["label", *names])
    return {name.removeprefix("class_"): table.column(name).to_pylist() for name in ("label", *names)}

"""The content of a student's bill of material, read from its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.artifacts import MANIFEST, file_digest, read_json
from potstill.errors import RunError
from potstill.measures import Interval, Measures, ModelMeasures
from potstill.models.folder import read_config, stated_licence
from potstill.policy.gate import described, rulings_on_run
from potstill.policy.terms import ANSWERS_IN_WORDS
from potstill.recipe import Recipe, load_recipe
from potstill.tasks import SPECS
from potstill.teachers.origin import Origin, origin_of_teacher


@dataclass(frozen=True)
class Metric:
    """One figure on held-out records, with its interval if there is one."""

    name: str
    label: str
    value: float
    low: float | None
    high: float | None
    unit: str


@dataclass(frozen=True)
class Material:
    """What is known of an exported student.

    Attributes:
        name: of the recipe. made: when the export ended, UTC.
        task: as the hub names it (`text-generation`).
        architecture: class of the model; empty if the folder does not say.
        licence: of the weights, as the student's folder or its teacher states it; empty if neither does.
        teacher: where the teacher comes from; None if there was none.
        data: name of the data; data_licence: as the recipe states it.
        records: number of training records, if counted.
        made_by: sentences on how it was made. settings: what it was trained with, by name.
        metrics: figures of the student. limits: sentences on what it cannot do.
        answers: of the gate on licences and terms, a sentence for each use. overrides: what a person allowed although
            the gate blocks it, with name, day and reason.
        versions: of the programs that trained it.
        files: SHA-256 of every file of the folder, by its relative name.
    """

    name: str
    made: str
    task: str
    architecture: str
    parameters: int | None
    licence: str
    teacher: Origin | None
    data: str
    data_licence: str
    records: int | None
    made_by: tuple[str, ...]
    settings: Mapping[str, str]
    metrics: tuple[Metric, ...]
    limits: tuple[str, ...]
    answers: tuple[str, ...]
    overrides: tuple[str, ...]
    versions: Mapping[str, str]
    files: Mapping[str, str]


def material_of(folder: Path, files: Mapping[str, str]) -> Material:
    """The material of an export, from the run around its folder.

    Args:
        folder: an artifact of an `export` stage.
        files: digests of its files.

    Raises:
        RunError: it is not in a run's folder.
    """
    run = folder.resolve().parent
    if not (run / "recipe.yaml").is_file() or not (folder / MANIFEST).is_file():
        raise RunError(
            "not an export in a run's folder, so that nothing says where it comes from",
            where=str(folder),
            fix="name a folder such as runs/<name>/export.huggingface",
        )
    recipe = load_recipe(run / "recipe.yaml")
    manifests = {file.parent.name: read_json(file) for file in sorted(run.glob(f"*/{MANIFEST}"))}
    manifest, trained = read_json(folder / MANIFEST), manifests.get("train", {})
    measured = run / "evaluate" / "measures.json"
    measures = Measures.load(measured) if measured.is_file() else None
    student = measures.models.get("student") if measures is not None else None
    teacher = origin_of_teacher(recipe)
    rulings = rulings_on_run(recipe, manifests)
    config = read_config(run / "train" / "model") if (run / "train" / "model" / "config.json").is_file() else {}
    return Material(
        name=recipe.name,
        made=str(manifest["ended"]),
        task=SPECS[recipe.task].pipeline_tag,
        architecture=next(iter(config.get("architectures") or ()), ""),
        parameters=student.parameters if student is not None else None,
        licence=stated_licence(run / "train" / "model") or (teacher.licence if teacher is not None else ""),
        teacher=teacher,
        data=_data_name(recipe),
        data_licence=recipe.data.licence_id,
        records=_count(trained, "records"),
        made_by=_how(recipe),
        settings=_settings(recipe, trained),
        metrics=_metrics(measures, student),
        limits=(
            "Figures are of held-out records like those it was trained on; nothing says how it does elsewhere.",
            "Mistakes of the teacher come along; safeguards do not come along by imitation alone.",
            *(f"{warning}." for warning in trained.get("warnings", ())),
        ),
        answers=tuple(f"{described(r)}: {ANSWERS_IN_WORDS[r.answer]} by {r.because}" for r in rulings.rulings),
        overrides=tuple(f"{o.source}, by {o.by} on {o.on}: {o.reason}" for o in rulings.provenance.overrides),
        versions=trained.get("versions", {}),
        files=files,
    )


def digests_of(folder: Path, without: frozenset[str]) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its relative name. A link to a file counts as that file (downloads are
    often laid out so); a link to a folder, one that leads nowhere, and a device have an empty digest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: file_digest(p) if p.is_file() else "" for name, p in names.items() if name not in without}


def _how(recipe: Recipe) -> tuple[str, ...]:
    lines = []
    if recipe.student is not None:
        lines.append(f"The student was built by {recipe.student.kind}.")
    if recipe.generate is not None:
        lines.append(f"The teacher wrote its training text ({recipe.generate.kind}).")
    if recipe.train is not None:
        lines.append(f"It learned by {', '.join(o.kind for o in recipe.train.all_objectives)}.")
    return tuple(lines)


def _settings(recipe: Recipe, trained: Mapping[str, Any]) -> dict[str, str]:
    arguments = trained.get("facts", {}).get("arguments", {})
    steps = _count(trained, "steps")
    found = {str(name): str(value) for name, value in arguments.items()} | {"seed": str(recipe.seed)}
    return found | ({"steps": str(steps)} if steps is not None else {})


def _metrics(measures: Measures | None, student: ModelMeasures | None) -> tuple[Metric, ...]:
    if measures is None or student is None:
        return ()
    found: list[tuple[str, Interval]] = [(name, value) for name in measures.metrics if (value := student.get(name))]
    return tuple(
        Metric(name, measures.metrics[name].label, value.value, value.low, value.high, measures.metrics[name].unit)
        for name, value in found
    )


def _data_name(recipe: Recipe) -> str:
    """The public name of the data: never a folder of this machine."""
    data: Any = recipe.data
    if hasattr(data, "path"):
        return Path(data.path).name
    return str(getattr(data, "id", None) or getattr(data, "name", None) or data.kind)


def _count(manifest: Mapping[str, Any], name: str) -> int | None:
    found = manifest.get("counts", {}).get(name)
    return int(found) if found is not None else None

"""A sweep, described: one recipe in several arms, each with the same seeds.

Arms that differ in what is compared:

    claim: Soft targets beat hard ones
    recipe: ../../recipes/hinton_digits.yaml     # paths are relative to this file
    before:                                      # recipes that run first: those that make teachers or assistants
      - {recipe: ../../recipes/hinton_digits_teacher.yaml, run: hinton_digits_teacher-1, set: {seed: 1}}
    seeds: [0, 1, 2, 3, 4]
    measure: accuracy                            # of the student, on held-out records (solved: of problems)
    baseline: alone                              # the arm that the others are compared with
    set: {train.controls: []}                    # in all arms
    arms:
      kd: {}                                     # the recipe as it stands
      alone: {train.objectives: [{kind: hard_ce}]}
    along: {arm: kd, key: train.objectives.0.temperature, values: [1, 2, 4, 8], axis: temperature T}

`along` replaces one arm by an arm for each value. A grid makes an arm of every combination instead, to fit the capacity
of students to:

    grid:
      student.layers: {4: {uniform: 4}, 8: {uniform: 8}, 15: every_other}
      train.args.max_steps: [20, 40, 80]
    capacity:
      - {loss: 3.0, tokens: 40000}               # how small may the student be for this loss with so many tokens?

`questions` ask of two arms what a weaker teacher, or an assistant, is worth:

    arms:
      direct: {}
      assisted: {teacher.model: "run:../../runs/assistant"}
    questions:
      - {ask: assistant, arm: assisted}          # or teacher_too_strong, of an arm with a weaker teacher
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from potstill.errors import RecipeError, did_you_mean
from potstill.evaluate.measures.fidelity import SOLVED, metrics_of_tables
from potstill.recipe import Recipe, Settings, load_recipe
from potstill.recipe.load import wrong_type
from potstill.recipe.reading import read_yaml

RUNS = Path("runs")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def _known_metric(name: str) -> str:
    if name not in (known := metrics_of_tables()):
        raise ValueError(f"{name!r} is no measure of a student{did_you_mean(name, known)}")
    return name


Measure = Annotated[str, AfterValidator(_known_metric)]


class Along(Settings):
    """One override through several values. `axis` names it on the plot, and `log` draws it on a logarithmic axis."""

    arm: str
    key: str
    values: Annotated[tuple[float, ...], Field(min_length=2)]
    axis: str = ""
    log: bool = False

    def name(self, value: float) -> str:
        """The name of the arm of one value."""
        return f"{self.arm}={value:g}"


class Before(Settings):
    """A recipe that runs first, in `runs/<run>` (by itself under its own name), with some overrides."""

    recipe: Path
    run: str | None = Field(None, pattern=NAME)
    set: dict[str, Any] = {}


class Capacity(Settings):
    """A question to the runs: how small may the student be for at most this loss with so many training tokens (those
    of every epoch)?"""

    loss: PositiveFloat
    tokens: PositiveInt


class Question(Settings):
    """A question that an arm answers beside the baseline: `teacher_too_strong`, where the arm has a weaker teacher, or
    `assistant`, where its teacher is an assistant that learned from the baseline's."""

    ask: Literal["teacher_too_strong", "assistant"]
    arm: str


class Sweep(Settings):
    """A sweep as its file says it, paths absolute. `also` are measures that are compared beside the one that decides,
    `beside` any metrics of the runs' pages that are shown (refusal_rate, mmlu_accuracy), `set` are overrides of all
    arms, and `claim` is what it is to show, in one sentence. `grid` maps a key to its values, as a list or by name.
    `tolerance` is the relative error with which the law must predict the largest run."""

    name: str = Field(pattern=NAME)
    claim: str = ""
    recipe: Path
    before: tuple[Before, ...] = ()
    set: dict[str, Any] = {}
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    arms: dict[Annotated[str, Field(pattern=NAME)], dict[str, Any]] = {}
    grid: dict[str, list[Any] | dict[str | int | float, Any]] = {}
    measure: Measure
    also: tuple[Measure, ...] = ()
    beside: tuple[str, ...] = ()
    baseline: str | None = None
    along: Along | None = None
    capacity: tuple[Capacity, ...] = ()
    questions: tuple[Question, ...] = ()
    tolerance: float = Field(0.1, gt=0, lt=1)
    confidence: float = Field(0.95, gt=0, lt=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Sweep:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("a seed is given twice: it would count as two")
        if bool(self.arms) == bool(self.grid):
            raise ValueError("give either arms, or a grid of values")
        if self.along is not None and self.along.arm not in self.arms:
            raise ValueError(f"along.arm: no arm {self.along.arm!r}{did_you_mean(self.along.arm, self.arms)}")
        if self.arms and self.baseline is None:
            raise ValueError("baseline is missing: the arm that the others are compared with")
        if self.baseline is not None and self.baseline not in self.all_arms:
            raise ValueError(f"baseline: no arm {self.baseline!r}{did_you_mean(self.baseline, self.all_arms)}")
        if len(self.all_arms) < 2:
            raise ValueError("one arm is nothing to compare: give another, or several values")
        if self.capacity and self.measure not in ("kl", "nll"):
            raise ValueError(f"capacity is about a loss, kl or nll, and measure is {self.measure}")
        self._refuse_questions()
        return self

    def _refuse_questions(self) -> None:
        """Questions need a baseline, another arm, and a measure that is not against each arm's own teacher."""
        for question in self.questions:
            if self.baseline is None:
                raise ValueError("baseline is missing: the arm that questions compare with")
            if question.arm not in self.all_arms or question.arm == self.baseline:
                others = [name for name in self.all_arms if name != self.baseline]
                raise ValueError(f"questions: {question.arm!r} is no other arm{did_you_mean(question.arm, others)}")
            if self.measure in ("kl", "top1_agreement"):
                raise ValueError(
                    f"questions compare students of different teachers, and {self.measure} is of each arm's own: "
                    "measure nll, accuracy or solved"
                )

    @property
    def all_arms(self) -> dict[str, dict[str, Any]]:
        """Overrides by the name of the arm, those of `along` in the place of its arm, or of the grid."""
        if self.grid:
            return {name: {**self.set, **overrides} for name, overrides in _product(self.grid)}
        found: dict[str, dict[str, Any]] = {}
        for name, own in self.arms.items():
            overrides = {**self.set, **own}
            if self.along is None or name != self.along.arm:
                found[name] = overrides
                continue
            for value in self.along.values:
                number = int(value) if float(value).is_integer() else value
                found[self.along.name(value)] = {**overrides, self.along.key: number}
        return found

    @property
    def measures(self) -> tuple[str, ...]:
        """What decides, and what is given beside it."""
        return (self.measure, *(name for name in self.also if name != self.measure))


def _product(grid: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, overrides) of every combination; `layers=4,max_steps=20`."""
    named = {
        key: values if isinstance(values, dict) else {_text(value, at): value for at, value in enumerate(values)}
        for key, values in grid.items()
    }
    made = []
    for chosen in itertools.product(*(values.items() for values in named.values())):
        parts = [f"{key.rpartition('.')[2]}={name}" for key, (name, _) in zip(named, chosen, strict=True)]
        made.append((",".join(parts), {key: value for key, (_, value) in zip(named, chosen, strict=True)}))
    return made


def _text(value: Any, at: int) -> str:
    """A name for a value of a grid: the value itself, or its place in the list."""
    return str(value) if isinstance(value, str | int | float) else str(at)


@dataclass(frozen=True)
class Run:
    """One arm with one seed: an ordinary run of a recipe in a folder of its own."""

    arm: str
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def training_seeds(self) -> range:
        """The seeds of its trainings: its own and those that follow it, as many as `train.seeds`."""
        return range(self.seed, self.seed + self.recipe.required_train.seeds)


def load_sweep(path: Path | str) -> Sweep:
    """Read and check a sweep. Its `name` is the file's, unless it says another.

    Raises:
        RecipeError: no such file, an unknown key (the nearest is named), or something that does not fit.
    """
    path = Path(path)
    if not path.is_file():
        near = did_you_mean(path.name, (p.name for p in path.parent.glob("*.y*ml"))) if path.parent.is_dir() else ""
        raise RecipeError(f"no such sweep{near}", where=str(path))
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise RecipeError("a sweep is a mapping", where=str(path), fix="see docs/sweep.md")
    document = {"name": path.stem, **document}
    base = path.parent.resolve()
    if isinstance(document.get("recipe"), str):
        document["recipe"] = (base / document["recipe"]).resolve()
    if isinstance(document.get("before"), list):
        document["before"] = [_before(entry, base) for entry in document["before"]]
    try:
        return Sweep.model_validate(document)
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(e) for e in error.errors()), where=str(path)) from None


def _before(entry: Any, base: Path) -> Any:
    entry = {"recipe": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("recipe"), str):
        return entry
    return {**entry, "recipe": (base / entry["recipe"]).resolve()}


def first_runs_of(sweep: Sweep) -> list[tuple[Recipe, Path]]:
    """The recipes that run first, and their folders. Raises as `load_recipe`."""
    made = []
    for before in sweep.before:
        recipe = load_recipe(before.recipe, _overrides(before.set))
        made.append((recipe, RUNS / (before.run or recipe.name)))
    return made


def runs_of(sweep: Sweep, folder: Path) -> list[Run]:
    """Every run, the first seed of every arm first: whatever stops it, what is there can be compared.

    Raises:
        RecipeError: an override of any arm is wrong, and which arm's it is.
    """
    made = []
    for seed in sweep.seeds:
        for arm, overrides in sweep.all_arms.items():
            try:
                recipe = load_recipe(sweep.recipe, _overrides({**overrides, "seed": seed}))
            except RecipeError as error:
                raise RecipeError(error.what, where=f"arm {arm!r}: {error.where}", fix=error.fix) from None
            if recipe.evaluate is None or recipe.train is None:
                raise RecipeError(
                    "nothing is measured", where=f"arm {arm!r}", fix="the recipe needs train and evaluate"
                )
            _refuse_other_measures(sweep, recipe, arm)
            made.append(Run(arm, seed, recipe, folder / f"{arm}-{seed}"))
    _refuse_shared_seeds(made)
    return made


def _refuse_other_measures(sweep: Sweep, recipe: Recipe, arm: str) -> None:
    """An arm's evaluation has the measure that decides; one beside it may be missing.

    Raises:
        RecipeError: it is of another task, or of problems that are not put.
    """
    solves = recipe.evaluate is not None and recipe.evaluate.solve is not None
    has = {
        "accuracy": not recipe.spec.has_vocabulary,
        "kl": recipe.spec.has_response,
        "nll": recipe.spec.has_response,
        _SOLVED: solves,
    }
    if not has.get(sweep.measure, True):
        fix = f"measure one of: {', '.join(name for name in metrics_of_tables() if has.get(name, True))}"
        if sweep.measure == _SOLVED:
            fix = "add `solve: {verify: {kind: numeric}}` to evaluate, or measure something else"
        raise RecipeError(f"an evaluation of {recipe.task} has no {sweep.measure}", where=f"arm {arm!r}", fix=fix)


_SOLVED = SOLVED.spec.name


def _refuse_shared_seeds(runs: Sequence[Run]) -> None:
    """A run trains by the seeds that follow its own (`train.seeds`): no seed may occur in two runs of an arm, where it
    would count as two.

    Raises:
        RecipeError: one does.
    """
    known: dict[tuple[str, int], int] = {}
    for made in runs:
        for seed in made.training_seeds:
            if (made.arm, seed) in known:
                count = len(made.training_seeds)
                raise RecipeError(
                    f"seed {seed} is trained in the runs of seeds {known[made.arm, seed]} and {made.seed}",
                    where=f"arm {made.arm!r}",
                    fix=f"with train.seeds: {count} give seeds that are {count} apart, or one seed",
                )
            known[made.arm, seed] = made.seed


def _overrides(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


_PARTS: dict[str, type[Settings]] = {"along": Along, "before": Before, "capacity": Capacity, "questions": Question}


def _explain(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        part = _PARTS.get(str(error["loc"][0])) if len(error["loc"]) > 1 else None
        return f"unknown key {name!r}{did_you_mean(str(error['loc'][-1]), (part or Sweep).model_fields)}"
    if error["type"] == "missing":
        return f"{name} is missing"
    message = wrong_type(error) or error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{name}: {message}" if name else message

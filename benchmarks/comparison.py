"""A comparison, described: arms that differ in a few settings of one recipe, the same seeds for each.

    claim: Soft targets beat hard ones
    recipe: ../../recipes/hinton_digits.yaml     # paths are relative to this file
    before:                                      # recipes that run first: those that make teachers
      - {recipe: ../../recipes/hinton_digits_teacher.yaml, run: hinton_digits_teacher-1, set: {seed: 1}}
    seeds: [0, 1, 2, 3, 4]
    measure: accuracy                            # of the student, on held-out records (solved: of problems)
    baseline: alone                              # the arm that the others are held against
    set: {train.controls: []}                    # in all arms
    arms:
      kd: {}                                     # the recipe as it stands
      alone: {train.objectives: [{kind: hard_ce}]}
    sweep: {arm: kd, key: train.objectives.0.temperature, values: [1, 2, 4, 8], axis: temperature T}

A sweep puts one arm for each value in the place of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, Field, ValidationError, model_validator

from potstill.errors import RecipeError, did_you_mean
from potstill.measures import Metric
from potstill.recipe import Recipe, Settings, load_recipe
from potstill.recipe.reading import read_yaml

RUNS = Path("runs")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def _known_metric(name: str) -> str:
    if name not in get_args(Metric):
        raise ValueError(f"{name!r} is no measure of a student{did_you_mean(name, get_args(Metric))}")
    return name


Measure = Annotated[str, AfterValidator(_known_metric)]


class Sweep(Settings):
    """One override through several values. `axis` names it on the plot, and `log` draws it on a logarithmic axis."""

    arm: str
    key: str
    values: Annotated[tuple[float, ...], Field(min_length=2)]
    axis: str = ""
    log: bool = False

    def name(self, value: float) -> str:
        """What the arm of one value is called."""
        return f"{self.arm}={value:g}"


class Before(Settings):
    """A recipe that runs first, in `runs/<run>` (by itself under its own name), with some overrides."""

    recipe: Path
    run: str | None = Field(None, pattern=NAME)
    set: dict[str, Any] = {}


class Comparison(Settings):
    """A comparison as its file says it, paths absolute. `also` are measures that are given beside the one that decides,
    `set` are overrides of all arms, and `claim` is what it is to show, in one sentence."""

    name: str = Field(pattern=NAME)
    claim: str = ""
    recipe: Path
    before: tuple[Before, ...] = ()
    set: dict[str, Any] = {}
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    arms: Annotated[dict[Annotated[str, Field(pattern=NAME)], dict[str, Any]], Field(min_length=1)]
    measure: Measure
    also: tuple[Measure, ...] = ()
    baseline: str
    sweep: Sweep | None = None
    confidence: float = Field(0.95, gt=0, lt=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Comparison:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("a seed is given twice: it would count as two")
        if self.sweep is not None and self.sweep.arm not in self.arms:
            raise ValueError(f"sweep.arm: no arm {self.sweep.arm!r}{did_you_mean(self.sweep.arm, self.arms)}")
        if self.baseline not in self.all_arms:
            raise ValueError(f"baseline: no arm {self.baseline!r}{did_you_mean(self.baseline, self.all_arms)}")
        if len(self.all_arms) < 2:
            raise ValueError("one arm is nothing to compare: give another, or a sweep")
        return self

    @property
    def all_arms(self) -> dict[str, dict[str, Any]]:
        """Overrides by the name of the arm, those of the sweep in the place of its arm."""
        found: dict[str, dict[str, Any]] = {}
        for name, own in self.arms.items():
            overrides = {**self.set, **own}
            if self.sweep is None or name != self.sweep.arm:
                found[name] = overrides
                continue
            for value in self.sweep.values:
                number = int(value) if float(value).is_integer() else value
                found[self.sweep.name(value)] = {**overrides, self.sweep.key: number}
        return found

    @property
    def measures(self) -> tuple[str, ...]:
        """What decides, and what is given beside it."""
        return (self.measure, *(name for name in self.also if name != self.measure))


@dataclass(frozen=True)
class Run:
    """One arm with one seed: an ordinary run of a recipe in a folder of its own."""

    arm: str
    seed: int
    recipe: Recipe
    folder: Path


def load_comparison(path: Path | str, changes: Mapping[str, Any] | None = None) -> Comparison:
    """Read and check a comparison. Its `name` is the file's, unless it says another.

    Args:
        path: the YAML file.
        changes: keys that are given in another way than in the file.

    Raises:
        RecipeError: no such file, an unknown key (the nearest is named), or something that does not fit.
    """
    path = Path(path)
    if not path.is_file():
        near = did_you_mean(path.name, (p.name for p in path.parent.glob("*.y*ml"))) if path.parent.is_dir() else ""
        raise RecipeError(f"no such comparison{near}", where=str(path))
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise RecipeError("a comparison is a mapping", where=str(path), fix="see those in benchmarks/comparisons")
    document = {"name": path.stem, **document, **(changes or {})}
    base = path.parent.resolve()
    if isinstance(document.get("recipe"), str):
        document["recipe"] = (base / document["recipe"]).resolve()
    if isinstance(document.get("before"), list):
        document["before"] = [_before(entry, base) for entry in document["before"]]
    try:
        return Comparison.model_validate(document)
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(e) for e in error.errors()), where=str(path)) from None


def _before(entry: Any, base: Path) -> Any:
    entry = {"recipe": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("recipe"), str):
        return entry
    return {**entry, "recipe": (base / entry["recipe"]).resolve()}


def first_runs_of(comparison: Comparison) -> list[tuple[Recipe, Path]]:
    """The recipes that run first, and their folders. Raises as `load_recipe`."""
    made = []
    for before in comparison.before:
        recipe = load_recipe(before.recipe, _overrides(before.set))
        made.append((recipe, RUNS / (before.run or recipe.name)))
    return made


def runs_of(comparison: Comparison, folder: Path) -> list[Run]:
    """Every run, the first seed of every arm first: whatever stops it, what is there can be compared.

    Raises:
        RecipeError: an override of any arm is wrong, and which arm's it is.
    """
    made = []
    for seed in comparison.seeds:
        for arm, overrides in comparison.all_arms.items():
            try:
                recipe = load_recipe(comparison.recipe, _overrides({**overrides, "seed": seed}))
            except RecipeError as error:
                raise RecipeError(error.what, where=f"arm {arm!r}: {error.where}", fix=error.fix) from None
            if recipe.evaluate is None or recipe.train is None:
                raise RecipeError(
                    "nothing is measured", where=f"arm {arm!r}", fix="the recipe needs train and evaluate"
                )
            made.append(Run(arm, seed, recipe, folder / f"{arm}-{seed}"))
    return made


def _overrides(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _explain(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        inner = {"sweep": Sweep.model_fields, "before": Before.model_fields}.get(str(error["loc"][0]))
        fields = inner if inner is not None and len(error["loc"]) > 1 else Comparison.model_fields
        return f"unknown key {name!r}{did_you_mean(str(error['loc'][-1]), fields)}"
    if error["type"] == "missing":
        return f"{name} is missing"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{name}: {message}" if name else message

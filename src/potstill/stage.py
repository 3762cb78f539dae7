"""A stage: a name, the artifacts that it reads, and a function that writes one artifact. No torch at import.

A stage's key is made of the digests of its inputs, the fields of its settings that affect results (with the content of
files that they name), the seed, the digests of the plug-ins that the recipe uses, and its `contract`, an integer raised
when the meaning of its output changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from potstill.artifacts import Artifact, Work
from potstill.console import Console
from potstill.recipe import KindSettings, Pruned, Recipe, Settings
from potstill.recipe.train import PRUNED, STUDENT, Training
from potstill.registry import digests_of
from potstill.types import digest


@dataclass(frozen=True)
class Context:
    """The inputs of a stage's work function. `inputs` are whole artifacts by stage name."""

    recipe: Recipe
    run: Path
    inputs: Mapping[str, Artifact]
    work: Work
    console: Console

    @property
    def out(self) -> Path:
        """The folder to write into; it becomes the artifact."""
        return self.work.path


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    `name` is its folder in the run. `reads` are the stages whose artifacts it reads. `settings` are the parts of the
    recipe that affect its result; `sources` are digests of what it reads from outside the run (data files, teacher
    weights). `write` does the work.
    """

    name: str
    contract: int
    reads: tuple[str, ...]
    settings: Mapping[str, Any]
    sources: Callable[[], Mapping[str, str]]
    write: Callable[[Context], None]

    def key(self, recipe: Recipe, inputs: Mapping[str, Artifact]) -> tuple[str, dict[str, str]]:
        """The stage's key, and the digests of its inputs that went into it."""
        digests = {name: artifact.output_digest for name, artifact in inputs.items()} | dict(self.sources())
        parts = [self.name, self.contract, dict(self.settings), digests, recipe.seed, digests_of(_kinds_in(recipe))]
        return digest(parts), digests


def stages_of(recipe: Recipe) -> list[Stage]:
    """The recipe's stages, in order: those whose section is present."""
    stages: list[Stage] = []
    if recipe.generate is not None:
        stages.append(_stage("generate", recipe))
    if recipe.capture is not None:
        stages.extend(_stage("capture", recipe, number) for number in range(len(recipe.capture.teachers)))
    if recipe.train is not None:
        if isinstance(recipe.student, Pruned):
            stages.append(_stage("train", recipe, PRUNED))
        stages.extend(_stage("train", recipe, training) for training in recipe.train.trainings)
    if recipe.speculate is not None:
        stages.extend(_speculating(recipe))
    if recipe.evaluate is not None:
        stages.append(_stage("evaluate", recipe))
    if recipe.evaluate is not None or recipe.speculate is not None:
        stages.append(_stage("report", recipe))
    stages.extend(_stage("export", recipe, index) for index in range(len(recipe.export)))
    return stages


def _speculating(recipe: Recipe) -> Iterator[Stage]:
    """The stage `speculate`. Before a draft is trained, its cost and what it could gain are measured."""
    if recipe.required_speculate.train is not None:
        yield _stage("speculate", recipe, "speculate.advice")
        yield replace(_stage("train", recipe.draft_training, STUDENT), name="speculate.train")
    yield _stage("speculate", recipe, "speculate")


def stage_names(recipe: Recipe) -> list[str]:
    """The folders of the recipe's stages in a run, in order."""
    return [stage.name for stage in stages_of(recipe)]


def _stage(room: str, recipe: Recipe, *which: Training | int | str) -> Stage:
    # Rooms load on demand: a recipe without `train` never imports it.
    made: Stage = import_module(f"potstill.{room}.stage").stage(recipe, *which)
    return made


def _kinds_in(value: object) -> Iterator[type]:
    """The settings class of every variant in a recipe."""
    if isinstance(value, KindSettings):
        yield type(value)
    if isinstance(value, Settings):
        value = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _kinds_in(inner)

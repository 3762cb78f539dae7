"""Inner tensors of the teacher beside its response: which are kept, and how a batch of them is cut into records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from potstill.capture.plan import length_of
from potstill.data.reader import Row
from potstill.data.tokenize import Tokenized
from potstill.errors import CapabilityError, ModelError, RecipeError
from potstill.models.anatomy import dims
from potstill.objectives.pooling import pool
from potstill.recipe import Pooling, Recipe
from potstill.recipe.capture import Floats
from potstill.registry import build
from potstill.signals import Batch, Dims, ModelDims, View
from potstill.store.codec import TensorPart
from potstill.students.base import Materials
from potstill.students.outline import outline_of_student
from potstill.tasks import SPECS


@dataclass(frozen=True)
class Features:
    """The names of what is kept, as in `signals.Signals.taps`, and in which precision."""

    names: tuple[str, ...] = ()
    dtype: Floats = "bfloat16"

    @property
    def taps(self) -> frozenset[str]:
        """The taps that they are made of: a pooled state is made of a state."""
        return frozenset(f"hidden.{_pooled(name)[0]}" if name.startswith("pooled.") else name for name in self.names)

    def parts(self, of_row: Mapping[str, NDArray[np.float32]]) -> tuple[TensorPart, ...]:
        """The tensors as a store keeps them, given those of one record."""
        return tuple(
            TensorPart(name, "tokens" if _of_tokens(name) else "example", of_row[name].shape[1:], self.dtype)
            for name in self.names
        )

    def of_rows(
        self, taps: Mapping[str, Tensor], batch: Batch, rows: Sequence[Row]
    ) -> Iterator[dict[str, NDArray[np.float32]]]:
        """The tensors of each record, [tokens, …] or [1, …], without padding; [A,T,d] of attention as [T,A,d]."""
        view = batch.teacher
        made: dict[str, Tensor] = {}
        for name in self.names:
            if name.startswith("pooled.") and isinstance(view, View):
                state, how = _pooled(name)
                made[name] = pool(taps[f"hidden.{state}"], view.example_ids, how)
            else:
                made[name] = taps[name] if name.startswith(("hidden.", "module:")) else taps[name].transpose(1, 2)
        whole = {name: tensor.float().cpu().numpy() for name, tensor in made.items()}
        for number, row in enumerate(rows):
            length = length_of(row)
            yield {n: t[number, :length] if _of_tokens(n) else t[number : number + 1] for n, t in whole.items()}


NO_FEATURES = Features()


def _pooled(name: str) -> tuple[int, Pooling]:
    _, state, how = name.split(".")
    return int(state), how  # type: ignore[return-value]  # the recipe has checked it


def _of_tokens(name: str) -> bool:
    return not name.startswith(("pooled.", "module:"))


def features_of(recipe: Recipe, sizes: ModelDims, materials: Materials, example: Row) -> Features:
    """What the section `capture` keeps. `asked` is what the objectives of all stages of `train` read of the teacher,
    and the embedding that an evaluation compares, for a student of the recipe's sizes.

    Args:
        sizes: the teacher's.
        materials: for the student's sizes.
        example: a row, which tells texts from images.

    Raises:
        RecipeError: nothing is asked, or the student's sizes are not known before it is built.
        CapabilityError: a module's output over texts, whose layout is not known.
        ModelError: an objective asks for layers that do not exist.
    """
    capture = recipe.required_capture
    names = set(_asked(recipe, sizes, materials)) if capture.features == "asked" else set(capture.features)
    if not names and not capture.response:
        raise RecipeError(
            "no objective of train reads inner tensors, so nothing is kept",
            where="capture.features",
            fix="name them (hidden.12), or set capture.kind to one that keeps responses",
        )
    if isinstance(example, Tokenized) and (modules := sorted(n for n in names if n.startswith("module:"))):
        raise CapabilityError(
            f"{modules[0]} is not kept: where the tokens are in a module's output over texts is not known",
            where="capture.features",
            fix="use objectives on hidden states, or drop the section capture, so that the teacher runs in training",
        )
    return Features(tuple(sorted(names)), capture.feature_dtype)


def _asked(recipe: Recipe, sizes: ModelDims, materials: Materials) -> Iterator[str]:
    train = recipe.required_train
    if not SPECS[recipe.task].has_response and recipe.evaluate is not None:
        yield f"pooled.{sizes.layers}.{train.pooling}"
    reading = [objective for objective in train.all_objectives if _reads_taps(objective.needs().teacher)]
    if not reading:
        return
    student = outline_of_student(recipe.required_student, materials)
    if student is None:
        raise RecipeError(
            "the student's layers are not known before it is built, and so not what its objectives read",
            where="capture.features",
            fix="name the teacher's tensors (hidden.12, queries.11)",
        )
    for settings in reading:
        try:
            yield from build(settings).kept(Dims(dims(student), sizes))
        except ModelError as error:
            raise ModelError(error.what, where="train.objectives", fix=error.fix) from error


def _reads_taps(needed: Sequence[frozenset[str]]) -> bool:
    return any("taps" in alternatives for alternatives in needed)

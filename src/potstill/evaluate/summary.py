"""From values per target to `measures.json`: means with their intervals, and differences, paired. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from potstill.evaluate.bootstrap import FEW_GROUPS, PairedBootstrap, Values, rank_correlation
from potstill.evaluate.scores import Scores, chance_of
from potstill.measures import MODELS, Comparison, Flips, Interval, Measures, Metric, ModelMeasures, Speed
from potstill.tasks import Task

if TYPE_CHECKING:
    from potstill.evaluate.measured import Size

_ALL: tuple[Metric, ...] = ("accuracy", "kl", "nll", "top1_agreement")
_COMPARED: tuple[tuple[str, str, tuple[Metric, ...]], ...] = (
    ("student", "teacher", ("accuracy", "nll")),
    ("student", "text_only", _ALL),
    ("student", "untrained", _ALL),
    ("text_only", "untrained", _ALL),
)
"""Model, what it is held against, and in what."""

_FIELDS: Mapping[Metric, str] = {"accuracy": "correct", "nll": "nll", "kl": "kl", "top1_agreement": "agree"}


@dataclass(frozen=True)
class Draws:
    """How intervals are drawn."""

    resamples: int
    confidence: float
    seed: int


def summarise(
    scores: Mapping[str, Scores],
    sizes: Mapping[str, Size],
    speeds: Mapping[str, Speed],
    groups: Sequence[str],
    *,
    task: Task = "causal_lm",
    labels: NDArray[np.int64] | None = None,
    records: int,
    draws: Draws,
    notes: Sequence[str],
) -> Measures:
    """The measures of all models.

    Args:
        scores: per model, per target [N].
        sizes: per model.
        speeds: per model whose rates were measured.
        groups: the group of each target [N].
        task: what the models are for.
        labels: the class of each target [N], −1 where it has none; of classes and embeddings only.
        records: how many records the targets are of.
        draws: of the bootstrap.
        notes: what a reader must know; what is found here is added.

    Raises:
        DataError: fewer than two groups.
    """
    bootstrap = PairedBootstrap(groups, resamples=draws.resamples, confidence=draws.confidence, seed=draws.seed)
    chance = None if labels is None else chance_of(labels, task)
    teacher = scores.get("teacher")
    above_chance = teacher is not None and _above(teacher, chance, bootstrap)
    models = {}
    for name in (name for name in MODELS if name in scores):
        measured = _model(name, scores[name], sizes[name], speeds.get(name), bootstrap)
        if teacher is not None and name != "teacher":
            measured = _beside(measured, scores[name], teacher, bootstrap, draws, above_chance=above_chance)
        models[name] = measured
    found = list(notes)
    if chance is not None and teacher is not None and teacher.correct is not None and not above_chance:
        found.append(
            f"The teacher is not shown to be better than chance ({100 * float(chance.mean()):.1f} %), so no share of "
            "its accuracy is given."
        )
    if bootstrap.groups < FEW_GROUPS:
        found.append(
            f"Only {bootstrap.groups} held-out groups: intervals of skewed losses cover less often than they say."
        )
    return Measures(
        models=models,
        comparisons=_comparisons(scores, bootstrap),
        groups=bootstrap.groups,
        records=records,
        targets=len(groups),
        confidence=draws.confidence,
        resamples=draws.resamples,
        notes=tuple(found),
        task=task,
        chance=None if chance is None else float(chance.mean()),
    )


def _comparisons(scores: Mapping[str, Scores], bootstrap: PairedBootstrap) -> tuple[Comparison, ...]:
    return tuple(
        Comparison(model, against, metric, bootstrap.difference(values, others))
        for model, against, metrics in _COMPARED
        for metric in metrics
        if model in scores
        and against in scores
        and (values := getattr(scores[model], _FIELDS[metric])) is not None
        and (others := getattr(scores[against], _FIELDS[metric])) is not None
    )


def _model(name: str, scores: Scores, size: Size, speed: Speed | None, bootstrap: PairedBootstrap) -> ModelMeasures:
    def mean(values: Values | None) -> Interval | None:
        return None if values is None else bootstrap.mean(values)

    nll = mean(scores.nll)
    return ModelMeasures(
        name=name,
        parameters=size.parameters,
        bytes=size.bytes,
        layers=size.layers,
        nll=nll,
        # Of classes nobody speaks of perplexity.
        perplexity=None if nll is None or scores.correct is not None else _exponential(nll.value),
        kl=mean(scores.kl),
        top1_agreement=mean(scores.agree),
        speed=speed,
        accuracy=mean(scores.correct),
    )


def _beside(
    measured: ModelMeasures,
    scores: Scores,
    teacher: Scores,
    bootstrap: PairedBootstrap,
    draws: Draws,
    *,
    above_chance: bool,
) -> ModelMeasures:
    """A model with what compares it with the teacher beyond differences of means."""
    mine, theirs = scores.correct, teacher.correct
    if mine is not None and theirs is not None:
        flips = Flips(lost=bootstrap.mean(theirs & ~mine), won=bootstrap.mean(mine & ~theirs))
        kept = bootstrap.ratio(mine, theirs) if above_chance else None
        measured = replace(measured, flips=flips, kept=kept)
    if scores.pairs is not None and teacher.pairs is not None:
        correlation = rank_correlation(
            scores.pairs, teacher.pairs, resamples=draws.resamples, confidence=draws.confidence, seed=draws.seed
        )
        measured = replace(measured, similarity_correlation=correlation)
    return measured


def _above(teacher: Scores, chance: NDArray[np.float64] | None, bootstrap: PairedBootstrap) -> bool:
    """Whether the teacher's accuracy is above chance by more than its interval (rule 10)."""
    if teacher.correct is None or chance is None:
        return False
    return bootstrap.difference(teacher.correct, chance).low > 0


def _exponential(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf

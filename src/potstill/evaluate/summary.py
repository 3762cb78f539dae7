"""From per-token values to `measures.json`: means with their intervals, and differences, paired. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from potstill.evaluate.bootstrap import FEW_GROUPS, PairedBootstrap
from potstill.measures import MODELS, Comparison, Measures, Metric, ModelMeasures, Speed

if TYPE_CHECKING:
    from potstill.evaluate.fidelity import TokenScores
    from potstill.evaluate.measured import Size

_COMPARED: tuple[tuple[str, str, tuple[Metric, ...]], ...] = (
    ("student", "teacher", ("nll",)),
    ("student", "text_only", ("kl", "nll", "top1_agreement")),
    ("student", "untrained", ("kl", "nll", "top1_agreement")),
    ("text_only", "untrained", ("kl", "nll", "top1_agreement")),
)
"""Model, what it is held against, and in what."""

_FIELDS: Mapping[Metric, str] = {"nll": "nll", "kl": "kl", "top1_agreement": "agree"}


def summarise(
    scores: Mapping[str, TokenScores],
    sizes: Mapping[str, Size],
    speeds: Mapping[str, Speed],
    groups: Sequence[str],
    *,
    records: int,
    resamples: int,
    confidence: float,
    seed: int,
    notes: Sequence[str],
) -> Measures:
    """The measures of all models.

    Args:
        scores: per model, per target [N].
        sizes: per model.
        speeds: per model whose rates were measured.
        groups: the group of each target [N].
        records: how many records the targets are of.
        resamples: of the bootstrap.
        confidence: of the intervals.
        seed: of the draws.
        notes: what a reader must know; one on few groups is added.

    Raises:
        DataError: fewer than two groups.
    """
    bootstrap = PairedBootstrap(groups, resamples=resamples, confidence=confidence, seed=seed)
    models = {name: _model(name, scores[name], sizes[name], speeds.get(name), bootstrap) for name in _shown(scores)}
    comparisons = [
        Comparison(model, against, metric, bootstrap.difference(values, others))
        for model, against, metrics in _COMPARED
        for metric in metrics
        if model in scores
        and against in scores
        and (values := getattr(scores[model], _FIELDS[metric])) is not None
        and (others := getattr(scores[against], _FIELDS[metric])) is not None
    ]
    few = (
        [f"Only {bootstrap.groups} held-out groups: the intervals are rough, and rather too narrow."]
        if bootstrap.groups < FEW_GROUPS
        else []
    )
    return Measures(
        models=models,
        comparisons=tuple(comparisons),
        groups=bootstrap.groups,
        records=records,
        targets=len(groups),
        confidence=confidence,
        resamples=resamples,
        notes=(*notes, *few),
    )


def _model(
    name: str, scores: TokenScores, size: Size, speed: Speed | None, bootstrap: PairedBootstrap
) -> ModelMeasures:
    nll = bootstrap.mean(scores.nll)
    return ModelMeasures(
        name=name,
        parameters=size.parameters,
        bytes=size.bytes,
        layers=size.layers,
        nll=nll,
        perplexity=math.exp(nll.value),
        kl=None if scores.kl is None else bootstrap.mean(scores.kl),
        top1_agreement=None if scores.agree is None else bootstrap.mean(scores.agree),
        speed=speed,
    )


def _shown(scores: Mapping[str, TokenScores]) -> list[str]:
    return [name for name in MODELS if name in scores]

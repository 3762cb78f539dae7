"""Held-out targets of a teacher that is right about them, and students with a known damage.

Targets are drawn from the teacher's own distribution, so that it is calibrated; a student's logits are the teacher's
with small noise, and the damage.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from potstill.evaluate.fidelity import _with
from potstill.evaluate.measures.base import Draws, Table
from potstill.evaluate.scores import Scores
from potstill.evaluate.summary import Size, summarise
from potstill.measures import Measures
from potstill.objectives import token_statistics
from potstill.recipe.measures import default_measures
from potstill.registry import build
from potstill.signals import Dense
from potstill.tasks import SPECS

VOCAB, GROUPS, PER_GROUP = 200, 150, 20
Logits = NDArray[np.float64]


def world(seed: int) -> tuple[Logits, NDArray[np.int64], NDArray[np.int64]]:
    """The teacher's logits [N,V], the targets [N], and how often each token is a target in training [V]."""
    rng = np.random.default_rng(seed)
    zipf = -1.1 * np.log(np.arange(1, VOCAB + 1))
    logits = zipf + rng.normal(0, 2.0, (GROUPS * PER_GROUP, VOCAB))
    uniform = rng.gumbel(size=logits.shape)
    targets = (logits + uniform).argmax(-1)
    counts = np.bincount(rng.choice(targets, 20 * len(targets)), minlength=VOCAB)
    return logits, targets, counts


def rare_tokens(targets: NDArray[np.int64], counts: NDArray[np.int64], share: float = 0.1) -> NDArray[np.bool_]:
    """The tokens [V] that are the rarest share of the targets."""
    return counts <= np.quantile(counts[targets], share, method="higher")


def student_of(
    logits: Logits, seed: int, *, rare: NDArray[np.bool_] | None = None, by: float = 0.0, scale: float = 1.0
) -> Logits:
    """The teacher's logits with a little noise; rare tokens' lowered `by` so much; all multiplied by `scale`."""
    noisy = logits + np.random.default_rng(1000 + seed).normal(0, 0.3, logits.shape)
    if rare is not None:
        noisy[:, rare] -= by
    return scale * noisy


def scores_of(logits: Logits, teacher: Logits | None, targets: NDArray[np.int64], columns: tuple[str, ...]) -> Scores:
    """What an evaluation computes per target."""
    other = None if teacher is None else Dense(torch.from_numpy(teacher).float())
    found = token_statistics(Dense(torch.from_numpy(logits).float()), other, torch.from_numpy(targets), columns)
    own = Scores(found.nll_student.numpy())
    if found.kl is not None and found.top1_agree is not None:
        own = Scores(found.nll_student.numpy(), found.kl.numpy(), found.top1_agree.numpy())
    return _with(own, {name: values.numpy() for name, values in found.more.items()})


def measured(seed: int, *, resamples: int = 300, **damage: float) -> Measures:
    """The measures of a student with a damage (`by`, `scale`), or none."""
    teacher, targets, counts = world(seed)
    rare = rare_tokens(targets, counts) if "by" in damage else None
    student = student_of(teacher, seed, rare=rare, **damage)  # type: ignore[arg-type]
    task = SPECS["causal_lm"]
    measures = [build(settings) for settings in default_measures(task)]
    columns = tuple(dict.fromkeys(column for measure in measures for column in measure.columns))
    scores = {
        "teacher": [scores_of(teacher, None, targets, columns)],
        "student": [scores_of(student, teacher, targets, columns)],
    }
    groups = [f"g{i:04}" for i in range(GROUPS) for _ in range(PER_GROUP)]
    draws = Draws(resamples, 0.95, 0)
    places = np.tile(np.arange(PER_GROUP), GROUPS)
    table = Table(task, groups, targets, (), places, np.full(len(targets), PER_GROUP), scores, draws, lambda: counts)
    return summarise(
        scores,
        dict.fromkeys(scores, Size(10, 40, 1)),
        {},
        groups,
        records=GROUPS,
        draws=draws,
        notes=(),
        measures=measures,
        table=table,
    )

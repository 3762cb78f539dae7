"""Closeness of a model to the text and to its teacher: NLL, KL, agreement, accuracy, flips, neighbours. No torch.

A new metric is one entry of `metrics_of`: its interval, its paired differences, its place in `measures.json`, on the
page, in the card and in the terminal follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack

from potstill.evaluate.bootstrap import (
    NOT_NEGATIVE,
    SHARE,
    Bounds,
    Floats,
    Ranks,
    Statistic,
    Values,
    difference_of,
    mean_of,
    ratio_of,
)
from potstill.evaluate.measures.base import Compared, Found, Metric, Table
from potstill.measures import Band, Bands, MetricSpec, Unit
from potstill.recipe.measures import Fidelity
from potstill.registry import implements
from potstill.tasks import SPECS, TaskSpec

Flags = NDArray[np.bool_]
Classes = NDArray[np.int64]


@implements(Fidelity)
class FidelityMeasure:
    """Closeness of a model to the text and to its teacher."""

    columns = ("reverse_kl", "total_variation", "entropy")

    def __init__(self, settings: Fidelity) -> None:
        self.settings = settings

    def metrics(self, task: TaskSpec) -> tuple[Metric, ...]:
        """See `metrics_of`; and of whole distributions, `distances_of`."""
        return (*metrics_of(task), *(distances_of(task) if task.has_response else ()))

    def findings(self, table: Table) -> Found:
        """For classes, F1 of each class."""
        return Found(by_class(table)) if table.task.has_classes else Found()


def metrics_of(task: TaskSpec) -> tuple[Metric, ...]:
    """The metrics of held-out targets for a task, in display order."""
    per = "example" if not task.has_vocabulary else "masked token" if task.masks else "token"
    target = "the class" if not task.has_vocabulary else "a masked token" if task.masks else "the next token"
    accuracy = "Accuracy" if task.has_response else "Recall@1"
    return (
        Metric(
            MetricSpec(
                "accuracy",
                label=accuracy,
                short=accuracy.lower(),
                unit="share",
                higher_is_better=True,
                per=f"{per}s",
                explanation="The share of examples whose class the model puts first."
                if task.has_response
                else "The share of examples whose nearest neighbour among the other held-out examples has the same "
                "label.",
                note="",
                decides=True,
                charted=True,
            ),
            lambda c: _mean(c.mine.correct),
            column="correct",
        ),
        Metric(
            MetricSpec(
                "macro_f1",
                label="Macro-F1",
                short="macro-F1",
                unit="share",
                higher_is_better=True,
                per=f"{per}s",
                explanation="The mean over classes of F1, the harmonic mean of precision and recall: a rare class "
                "counts as much as a common one.",
                charted=True,
            ),
            _macro_f1,
        ),
        Metric(
            MetricSpec(
                "kept",
                label="Kept",
                short="kept",
                unit="share",
                higher_is_better=True,
                per=f"{per}s",
                explanation=f"{accuracy} as a share of the teacher’s.",
                note=f"of the teacher’s {accuracy.lower()}",
            ),
            _kept,
            paired=False,
        ),
        Metric(
            MetricSpec(
                "kl",
                label="KL from the teacher",
                short="KL",
                unit="nats",
                higher_is_better=False,
                per=per,
                explanation=f"KL(teacher ‖ model) of {target}, at temperature 1: how far the model is from its "
                "teacher.",
                note=f"nats per {per}; 0 is the teacher itself",
                decides=True,
                charted=True,
            ),
            lambda c: _mean(c.mine.kl, NOT_NEGATIVE),
            column="kl",
        ),
        Metric(
            MetricSpec(
                "nll",
                label="NLL",
                short="NLL",
                unit="nats",
                higher_is_better=False,
                per=per,
                explanation=f"−log of the probability that the model gives {_TRUTH[per]}.",
                decides=task.has_vocabulary,
                charted=True,
            ),
            lambda c: _mean(c.mine.nll, NOT_NEGATIVE),
            column="nll",
        ),
        Metric(
            MetricSpec(
                "perplexity",
                label="Pseudo-perplexity" if task.masks else "Perplexity",
                short="pseudo-perplexity" if task.masks else "perplexity",
                unit="number",
                higher_is_better=False,
                per=per,
                explanation="exp(NLL) of masked tokens; no perplexity of the text." if task.masks else "exp(NLL).",
                note="on held-out text",
            ),
            # Perplexity is not reported for classifiers.
            lambda c: _mean(c.mine.nll, NOT_NEGATIVE) if c.mine.correct is None else None,
            through=_exponential,
            paired=False,
        ),
        Metric(
            MetricSpec(
                "top1_agreement",
                label=_AGREEMENT[task.target],
                short=_AGREEMENT[task.target].lower(),
                unit="share",
                higher_is_better=True,
                per=f"{per}s",
                explanation=f"The share of {per}s where the model’s {_FIRST[task.target]} is the teacher’s.",
                note=f"{_FIRST[task.target]} is the teacher’s",
                decides=not task.has_response,
                charted=True,
            ),
            lambda c: _mean(c.mine.agree),
            column="agree",
        ),
        Metric(
            MetricSpec(
                "lost",
                label="Lost to the teacher",
                short="lost",
                unit="share",
                higher_is_better=False,
                per=f"{per}s",
                explanation="The share of examples that the teacher has right and the model wrong. Equal accuracy can "
                "hide many.",
                note="right with the teacher, wrong here",
            ),
            lambda c: _both(c, lambda mine, theirs: theirs & ~mine),
            paired=False,
        ),
        Metric(
            MetricSpec(
                "won",
                label="Won over the teacher",
                short="won",
                unit="share",
                higher_is_better=True,
                per=f"{per}s",
                explanation="The share of examples that the model has right and the teacher wrong: accuracy is the "
                "teacher’s − lost + won.",
            ),
            lambda c: _both(c, lambda mine, theirs: mine & ~theirs),
            paired=False,
        ),
        Metric(
            MetricSpec(
                "similarity_correlation",
                label="Similarity correlation",
                short="similarity correlation",
                unit="number",
                higher_is_better=True,
                per="pair",
                explanation="Spearman’s correlation between the cosines of pairs of examples in the model and in its "
                "teacher; each example is in one pair.",
                note="cosines of pairs, with the teacher’s",
            ),
            _similarity,
            paired=False,
        ),
    )


def distances_of(task: TaskSpec) -> tuple[Metric, ...]:
    """Other distances from the teacher's distribution, in the section of fidelity."""
    per = "example" if not task.has_vocabulary else "masked token" if task.masks else "token"

    def spec(name: str, label: str, short: str, unit: Unit, explanation: str) -> MetricSpec:
        return MetricSpec(
            name,
            label,
            short,
            unit,
            higher_is_better=False,
            per=f"{per}s" if unit == "share" else per,
            explanation=explanation,
            section="fidelity",
        )

    return (
        Metric(
            spec(
                "reverse_kl",
                "Reverse KL",
                "reverse KL",
                "nats",
                "KL(model ‖ teacher): large where the model finds likely what its teacher does not.",
            ),
            lambda c: _more(c, "reverse_kl"),
        ),
        Metric(
            spec(
                "total_variation",
                "Total variation",
                "total variation",
                "share",
                "½ Σ |p − q|: the share of probability that lies elsewhere than the teacher’s.",
            ),
            lambda c: _more(c, "total_variation"),
        ),
        Metric(
            spec(
                "entropy_gap",
                "Entropy gap",
                "entropy gap",
                "nats",
                "The model’s entropy less its teacher’s: above 0 it is less decided.",
            ),
            _entropy_gap,
            paired=False,
        ),
    )


def _more(compared: Compared, name: str) -> Statistic | None:
    values = compared.mine.more.get(name)
    return None if values is None or compared.teacher is None else mean_of(values, (0.0, math.inf))


def _entropy_gap(compared: Compared) -> Statistic | None:
    teacher = compared.teacher
    if teacher is None or teacher.entropy is None or compared.mine.entropy is None:
        return None
    return mean_of(compared.mine.entropy.astype(np.float64) - teacher.entropy)


SOLVED = Metric(
    MetricSpec(
        "solved",
        label="Share of problems solved",
        short="solved",
        unit="share",
        higher_is_better=True,
        per="problems",
        explanation="The share of held-out problems of the data to which the model’s greedy answer is right, as a "
        "verifier judges. What was cut short, or could not be judged, is not.",
        note="",
        charted=True,
    ),
    lambda c: _mean(c.mine.correct),
    column="solved",
)
"""Measured on held-out problems, not on targets."""


def metrics_of_tables() -> Mapping[str, Metric]:
    """By name, every metric that is the mean of a column of a table of values, for any task: runs can be compared by
    it, target by target."""
    known = [SOLVED, *(metric for task in SPECS.values() for metric in metrics_of(task))]
    return {metric.spec.name: metric for metric in known if metric.column is not None}


_TRUTH = {
    "token": "the token that really follows",
    "masked token": "the token that was masked",
    "example": "the example’s class",
}
_AGREEMENT = {"token": "Top-1 agreement", "class": "Agreement", "embedding": "Neighbour agreement"}
_FIRST = {"token": "first choice", "class": "first class", "embedding": "nearest neighbour"}


def _mean(values: Values | None, bounds: Bounds | None = None) -> Statistic | None:
    return None if values is None else mean_of(values, bounds)


def _both(compared: Compared, of: Callable[[Flags, Flags], Flags]) -> Statistic | None:
    """The share of examples with some relation between the model's and the teacher's correctness."""
    teacher = compared.teacher
    if compared.mine.correct is None or teacher is None or teacher.correct is None:
        return None
    return mean_of(of(compared.mine.correct, teacher.correct))


def _kept(compared: Compared) -> Statistic | None:
    teacher = compared.teacher
    if compared.mine.correct is None or teacher is None or teacher.correct is None or not compared.above_chance:
        return None
    return ratio_of(compared.mine.correct, teacher.correct)


def _macro_f1(compared: Compared) -> Statistic | None:
    mine = compared.mine
    return None if mine.labels is None or mine.predicted is None else f1_of(mine.labels, mine.predicted)


def f1_of(labels: Classes, predicted: Classes, only: int | None = None) -> Statistic:
    """The mean over classes of F1 = 2 TP ÷ (2 TP + FP + FN); with `only`, F1 of one class. Classes that occur neither
    among the labels nor among the predictions of a draw are left out of its mean, as in scikit-learn.

    Args:
        labels: the class of each example [N].
        predicted: a model's first choice [N].
        only: a class.
    """
    classes = [only] if only is not None else sorted({*labels.tolist(), *predicted.tolist()})
    right = csr_array(np.stack([(labels == c) & (predicted == c) for c in classes], -1).astype(np.float64))
    both = csr_array(np.stack([(labels == c).astype(float) + (predicted == c) for c in classes], -1))
    count = len(classes)

    def of(sums: Floats) -> Floats:
        hits, marked = sums[..., :count], sums[..., count:]
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.where(marked > 0, 2 * hits / marked, 0.0)
            mean = found.sum(-1) / (marked > 0).sum(-1)
        return np.asarray(np.nan_to_num(mean))

    def gradient(sums: Floats) -> Floats:
        hits, marked = sums[..., :count], sums[..., count:]
        present = np.maximum((marked > 0).sum(-1, keepdims=True), 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            by_hits = np.where(marked > 0, 2 / marked, 0.0)
            by_marked = np.where(marked > 0, -2 * hits / marked**2, 0.0)
        return np.asarray(np.concatenate([by_hits, by_marked], -1) / present)

    return Statistic(csr_array(hstack([right, both])), of, gradient, SHARE)


MOST_CLASSES = 50
"""Maximum number of classes that are measured individually, the commonest first."""


def by_class(table: Table) -> tuple[Bands, ...]:
    """F1 of each class with its interval, and the student's minus its teacher's."""
    classes = np.argsort(-np.bincount(table.ids), kind="stable")[:MOST_CLASSES]
    bootstrap = table.draws.of(table.groups)
    rows = []
    for number in classes.tolist():
        f1 = {
            name: [f1_of(table.ids, one.predicted, only=number) for one in seeds if one.predicted is not None]
            for name, seeds in table.scores.items()
        }
        teacher, student = f1.get("teacher"), f1["student"]
        against = None if not teacher else bootstrap.interval([difference_of(s, teacher[0]) for s in student])
        values = {name: bootstrap.interval(several) for name, several in f1.items()}
        name = table.names[number] if number < len(table.names) else str(number)
        rows.append(Band(name, int((table.ids == number).sum()), values, against))
    spec = MetricSpec("f1", label="F1", short="F1", unit="share", higher_is_better=True, per="classes")
    return (Bands("Class by class", "F1 of each class, the commonest first.", "fidelity", spec, "class", tuple(rows)),)


def _similarity(compared: Compared) -> Ranks | None:
    if compared.mine.pairs is None or compared.teacher is None or compared.teacher.pairs is None:
        return None
    return Ranks(compared.mine.pairs, compared.teacher.pairs)


def _exponential(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf

"""The table of metrics: each is a `MetricSpec` and the function that computes it from the scores. No torch.

A new metric is one entry of `metrics_of`: its interval, its paired differences, its place in `measures.json`, on the
page, in the card and in the terminal follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack

from potstill.evaluate.bootstrap import SHARE, Floats, Ranks, Statistic, Values, mean_of, ratio_of
from potstill.evaluate.scores import Scores
from potstill.measures import MetricSpec
from potstill.tasks import SPECS, TaskSpec

Flags = NDArray[np.bool_]
Classes = NDArray[np.int64]


@dataclass(frozen=True)
class Compared:
    """One model beside its teacher: what a metric is computed from.

    Attributes:
        mine: the model's scores.
        teacher: the teacher's; None for the teacher itself, and where none was measured.
        above_chance: whether the teacher's accuracy is shown to be above chance (rule 10).
    """

    mine: Scores
    teacher: Scores | None = None
    above_chance: bool = False


@dataclass(frozen=True)
class Metric:
    """A metric and its function.

    Attributes:
        spec: how it is called, its unit and direction.
        of: the statistic of a model; None where it means nothing for it.
        through: a rising function that value and ends of the interval go through.
        paired: whether models are compared in it.
        column: the column of the table of values whose mean it is; None where it is no mean of one.
    """

    spec: MetricSpec
    of: Callable[[Compared], Statistic | Ranks | None]
    through: Callable[[float], float] | None = None
    paired: bool = True
    column: str | None = None


def metrics_of(task: TaskSpec) -> tuple[Metric, ...]:
    """The metrics of held-out targets for a task, in the order in which they are shown."""
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
            lambda c: _mean(c.mine.kl),
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
            lambda c: _mean(c.mine.nll),
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
            lambda c: _mean(c.mine.nll) if c.mine.correct is None else None,
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
"""Of the held-out problems, not of the targets."""


def metrics_of_tables() -> Mapping[str, Metric]:
    """By name, every metric that is the mean of a column of a table of values, for any task: what runs can be compared
    in, target by target."""
    known = [SOLVED, *(metric for task in SPECS.values() for metric in metrics_of(task))]
    return {metric.spec.name: metric for metric in known if metric.column is not None}


_TRUTH = {
    "token": "the token that really follows",
    "masked token": "the token that was masked",
    "example": "the example’s class",
}
_AGREEMENT = {"token": "Top-1 agreement", "class": "Agreement", "embedding": "Neighbour agreement"}
_FIRST = {"token": "first choice", "class": "first class", "embedding": "nearest neighbour"}


def _mean(values: Values | None) -> Statistic | None:
    return None if values is None else mean_of(values)


def _both(compared: Compared, of: Callable[[Flags, Flags], Flags]) -> Statistic | None:
    """The share of examples for which something is so of a model and its teacher being right."""
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
    """The mean over classes of F1 = 2 TP ÷ (2 TP + FP + FN); of `only` one class. Classes that are neither among the
    labels nor among the predictions of a draw are left out of its mean, as scikit-learn does.

    Args:
        labels: the class of each example [N].
        predicted: the class that a model puts first [N].
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


def _similarity(compared: Compared) -> Ranks | None:
    if compared.mine.pairs is None or compared.teacher is None or compared.teacher.pairs is None:
        return None
    return Ranks(compared.mine.pairs, compared.teacher.pairs)


def _exponential(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf

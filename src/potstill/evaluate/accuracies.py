"""Tasks of questions that are answered right or wrong: accuracies, what is kept above chance, exact tests of pairs. No
torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binomtest, norm

from potstill.evaluate.bootstrap import Floats, PairedBootstrap, Statistic, difference_of, mean_of
from potstill.evaluate.measures.base import Compared, Draws, Metric, Values
from potstill.evaluate.scores import Scores
from potstill.evaluate.summary import find
from potstill.measures import Interval, Loss, MetricSpec

_POWER = 0.8

Row = tuple[MetricSpec, Mapping[str, Interval]]


@dataclass(frozen=True)
class Accuracies:
    """What one task shows.

    Attributes:
        values: the accuracy of each model, with paired differences.
        rows: what each model keeps of its teacher's accuracy above chance; none where that is not given.
        text: chance, and the tests of student against teacher.
        notes: for the reader.
        losses: what the student no longer gets right; none where no share of the teacher's accuracy is given.
    """

    values: Values
    rows: tuple[Row, ...]
    text: str
    notes: tuple[str, ...]
    losses: tuple[Loss, ...] = ()


def accuracies_of(
    name: str,
    explanation: str,
    section: str,
    scores: Mapping[str, Sequence[Scores]],
    bootstrap: PairedBootstrap,
    draws: Draws,
) -> Accuracies:
    """Compare models on one task.

    Args:
        name: of the task.
        explanation: what is right, for the list of terms.
        section: of the page.
        scores: by model and seed, with `correct` and, in `more`, the `chance` of each question; the student's too.
        bootstrap: over the groups of questions.
        draws: its settings.
    """
    label = f"Accuracy on {name}"
    spec = MetricSpec(f"{name}_accuracy", label, name, "share", True, "questions", explanation, section=section)
    values = find(scores, (Metric(spec, _accuracy),), bootstrap)
    chance = float(scores["student"][0].more["chance"].mean())
    text = f"Chance is {100 * chance:.1f} %."
    teacher = scores.get("teacher")
    if teacher is None:
        return Accuracies(values, (), text, ())
    rows: list[Row] = []
    notes = []
    if above_chance(teacher[0], bootstrap):
        kept = {
            n: bootstrap.interval([kept_of(one, teacher[0]) for one in seeds])
            for n, seeds in scores.items()
            if n != "teacher"
        }
        rows.append((MetricSpec(f"{name}_kept", "Kept above chance", "kept", "share", True, "questions"), kept))
    else:
        notes.append(
            f"On {name} the teacher is not shown to be better than chance ({100 * chance:.1f} %), so no share of "
            "its accuracy is given."
        )
    text += f" {_tested(teacher[0], scores['student'], bootstrap, draws.confidence)}"
    losses = losses_of(f"questions of {name}", section, scores, bootstrap)
    return Accuracies(values, tuple(rows), text, tuple(notes), losses)


def above_chance(scores: Scores, bootstrap: PairedBootstrap) -> bool:
    """Whether a model is shown to be better than chance."""
    return bootstrap.interval(difference_of(mean_of(right(scores)), mean_of(scores.more["chance"]))).low > 0


def losses_of(
    what: str, section: str, scores: Mapping[str, Sequence[Scores]], bootstrap: PairedBootstrap
) -> tuple[Loss, ...]:
    """What the student loses of its teacher's accuracy above chance: 1 − what it keeps. None where the teacher is not
    shown to be above chance, or is not there.

    Args:
        what: is asked ("problems of sums").
        section: of the page.
        scores: as for `accuracies_of`.
        bootstrap: over the groups of questions.
    """
    teacher, student = scores.get("teacher"), scores["student"]
    if teacher is None or not above_chance(teacher[0], bootstrap):
        return ()
    mine, theirs = (float(np.mean([right(one).mean() for one in seeds])) for seeds in (student, teacher))
    guessed = " above chance" if teacher[0].more["chance"].any() else ""
    kept = bootstrap.interval([kept_of(one, teacher[0]) for one in student])
    # Where few questions tell the two apart, the bootstrap sees too little variation: an exact test of pairs bounds it.
    exact = least_lost(student, teacher[0], bootstrap.confidence) / (theirs - float(teacher[0].more["chance"].mean()))
    loss = Loss(
        section,
        f"gets fewer {what} right: {100 * mine:.1f} %, its teacher {100 * theirs:.1f} %",
        Interval(1 - kept.value, min(1 - kept.high, exact), 1 - kept.low),
        "train on text of that kind, or longer",
        f"what its teacher gets right{guessed}",
        "share",
    )
    return (loss,)


def _tested(teacher: Scores, student: Sequence[Scores], bootstrap: PairedBootstrap, confidence: float) -> str:
    """McNemar's test of the first seed, and the least difference that would be seen."""
    by_student, by_teacher = right(student[0]), right(teacher)
    lost, won = int((by_teacher & ~by_student).sum()), int((by_student & ~by_teacher).sum())
    error = bootstrap.error(difference_of(mean_of(by_student), mean_of(by_teacher)))
    least = 100 * detectable(error, confidence)
    p = mcnemar(lost, won)
    seen = f"With so many questions a difference of {least:.1f} points would be seen in {100 * _POWER:.0f} % of cases."
    if not lost + won:  # their differences do not vary
        seen = "No question tells them apart, so nothing shows how small a difference would be seen."
    return (
        f"The teacher alone is right on {lost} questions, the student alone on {won} (McNemar’s exact test: p "
        f"{'< 0.001' if p < 0.001 else f'= {p:.3f}'}). {seen}"
    )


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p-value: the probability of discordant pairs at least as unequal, if both directions are
    equally likely."""
    return 1.0 if lost + won == 0 else float(binomtest(lost, lost + won, 0.5).pvalue)


def least_lost(students: Sequence[Scores], teacher: Scores, confidence: float) -> float:
    """The lower end of how much lower a student's accuracy is than its teacher's, by Clopper and Pearson's interval of
    the share of the questions with one right answer that the teacher gets: McNemar's test as an interval. Of several
    seeds the counts are means.

    Args:
        students: one of each seed.
        teacher: of the same questions.
        confidence: of the interval, two-sided.
    """
    theirs = right(teacher)
    lost = float(np.mean([(theirs & ~right(one)).sum() for one in students]))
    won = float(np.mean([(right(one) & ~theirs).sum() for one in students]))
    share = float(beta.ppf((1 - confidence) / 2, lost, won + 1)) if lost else 0.0
    return (lost + won) * (2 * share - 1) / len(theirs)


def detectable(error: float, confidence: float) -> float:
    """The difference that is detected with a power of 80 %, given the standard error of paired differences."""
    return error * float(norm.ppf((1 + confidence) / 2) + norm.ppf(_POWER))


def kept_of(mine: Scores, teacher: Scores) -> Statistic:
    """(accuracy − chance) ÷ (teacher's accuracy − chance)."""
    chance = mine.more["chance"]
    columns = np.stack([right(mine) - chance, right(teacher) - chance], -1).astype(np.float64)

    def of(sums: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(sums[..., 0] / sums[..., 1])

    return Statistic(columns, of)


def _accuracy(compared: Compared) -> Statistic:
    return mean_of(right(compared.mine))


def right(scores: Scores) -> NDArray[np.bool_]:
    """Whether each question was answered right [N].

    Raises:
        ValueError: no answer was judged.
    """
    if scores.correct is None:
        raise ValueError("questions were asked, and no answer was judged")
    return scores.correct

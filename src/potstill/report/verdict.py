"""Two sentences: what the student kept and lost, and what its teacher was worth.

If the interval of the paired difference from the same student trained without the teacher includes 0, the second
sentence says that no benefit is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from potstill.measures import Comparison, Interval, Loss, Measures, ModelMeasures
from potstill.quantities import counted
from potstill.report.figures import (
    count,
    difference,
    difference_of_metric,
    interval,
    large,
    number,
    percent,
    percent_interval,
    points,
)
from potstill.report.terminology import Words, words_of
from potstill.tasks import SPECS

Worth = Literal["better", "unclear", "worse", "mixed", "unknown", "untaught", "alone"]
"""The worth of the teacher's signals, as the control shows it: unknown without that control, untaught if no objective
used the teacher, alone without a teacher."""


@dataclass(frozen=True)
class Verdict:
    """`kept` and `worth` are one sentence each; `kept` is two if problems were asked. `losses` are the named losses
    beyond noise, the largest first."""

    kept: str
    worth: str
    outcome: Worth
    losses: tuple[NamedLoss, ...] = ()

    @property
    def text(self) -> str:
        named = (
            f" Its largest losses beyond noise: {'; '.join(loss.text for loss in self.losses)}." if self.losses else ""
        )
        return f"{self.kept} {self.worth}{named}"


@dataclass(frozen=True)
class NamedLoss:
    """A loss, with its size: a clause, the section that shows it, and a remedy."""

    text: str
    section: str
    remedy: str


def judge(measures: Measures) -> Verdict:
    """The verdict on a student, in plain text."""
    words = words_of(measures)
    outcome, worth = _worth(measures, words)
    losses = tuple(
        NamedLoss(f"it {loss.text} ({_lost(loss, words)})", loss.section, loss.remedy) for loss in measures.named_losses
    )
    return Verdict(_kept(measures, words) + _solves(measures), worth, outcome, losses)


def _lost(loss: Loss, words: Words) -> str:
    """`lost: 18.1 %, 0.20 [0.15, 0.25] nats per token`, `lost: 50.0 % [41.2, 58.8] of what its teacher gets right`."""
    if loss.unit == "share":
        return f"lost: {percent_interval(loss.size)} of {loss.per}"
    return f"lost: {percent(loss.share, 1)}, {interval(loss.size)} nats per {loss.per or words.unit}"


# ---- what it kept ------------------------------------------------------------------------------------------------


def _kept(measures: Measures, words: Words) -> str:
    student, teacher = measures.models["student"], measures.models.get("teacher")
    held_out = f"{count(measures.targets)} held-out {words.units}"
    if teacher is None or student.get("top1_agreement") is None:
        return _alone(measures, student, words, held_out)
    smaller = (
        f"The student has {_fewer(student, teacher)} than its teacher ({large(student.parameters)} of "
        f"{large(teacher.parameters)})"
    )
    if student.get("accuracy") is not None and teacher.get("accuracy") is not None:
        return f"{smaller} and {_right(measures, held_out)}."
    agrees = _agrees(student, words, held_out)
    kl = student.get("kl")
    if kl is None:
        found = student.get("similarity_correlation")
        similar = "" if found is None else f"; the cosines of pairs correlate with the teacher’s at {interval(found)}"
        return f"{smaller} and its {agrees}{similar}."
    lost = measures.comparison("student", "teacher", "nll")
    return (
        f"{smaller} and its {agrees}; what it lost is a KL of {interval(kl)} nats per {words.unit}"
        + (_loss_on_text(lost) if lost is not None else "")
        + "."
    )


def _solves(measures: Measures) -> str:
    """The share of problems solved, with the paired difference from its teacher, as a further sentence; empty if no
    problems were asked."""
    solved, solving = measures.models["student"].get("solved"), measures.solving
    if solved is None or solving is None:
        return ""
    said = f" It solves {percent_interval(solved)} of {count(solving.problems)} held-out problems"
    teacher, c = measures.models.get("teacher"), measures.comparison("student", "teacher", "solved")
    if teacher is None or c is None:
        return f"{said}."
    shown = "" if c.excludes_zero else ", which shows no difference"
    return f"{said}, its teacher {percent_interval(teacher.get('solved'))} ({points(c.difference)} points{shown})."


def _agrees(student: ModelMeasures, words: Words, held_out: str) -> str:
    """`first choice of token is the teacher's on 41 % of 480 held-out tokens`."""
    return f"{words.agrees} on {percent_interval(student.get('top1_agreement'))} of {held_out}"


def _right(measures: Measures, held_out: str) -> str:
    """Accuracy beside the teacher's, the share kept, and the flips that the two numbers hide."""
    student, teacher = measures.models["student"], measures.models["teacher"]
    said = (
        f"{_an_accuracy(measures)} of {percent_interval(student.get('accuracy'))} on {held_out}, where its teacher has "
        f"{percent_interval(teacher.get('accuracy'))}"
    )
    if (kept := student.get("kept")) is not None:
        said += f", so it keeps {percent_interval(kept)} of it"
    if student.get("lost") is not None:
        lost, won = (percent_interval(student.get(name)) for name in ("lost", "won"))
        said += f"; {lost} are right with the teacher and wrong with the student, {won} the other way round"
    return said


def _alone(measures: Measures, student: ModelMeasures, words: Words, held_out: str) -> str:
    """A student without a measured teacher."""
    if (accuracy := student.get("accuracy")) is not None:
        chance = "" if measures.chance is None else f" (chance is {percent(measures.chance, 1)})"
        said = f"{_an_accuracy(measures)} of {percent_interval(accuracy)} on {held_out}{chance}"
    elif (nll := student.get("nll")) is not None:
        said = f"an NLL of {interval(nll)} nats per {words.unit} on {held_out}"
    else:
        said = f"no label to be right about on {held_out}"
    why = measures.teacher_unmeasured
    against = "there is no teacher to hold it against" if why is None else f"its teacher was not measured ({why})"
    if (kl := student.get("kl")) is not None:  # from what a server gave
        agrees = f"its {words.agrees} on {percent_interval(student.get('top1_agreement'))} of them"
        against = f"{agrees}, and the KL from its teacher is at least {interval(kl)} nats per {words.unit}"
    return f"The student has {large(student.parameters)} parameters and {said}; {against}."


def _an_accuracy(measures: Measures) -> str:
    named = measures.metrics["accuracy"].in_sentence
    return f"an {named}" if named[:1] in "aeiou" else f"a {named}"


def _fewer(student: ModelMeasures, teacher: ModelMeasures) -> str:
    share = 1 - student.parameters / teacher.parameters
    if abs(share) < 0.005:
        return "no fewer parameters"
    return f"{percent(abs(share), 1)} {'fewer' if share > 0 else 'more'} parameters"


def _loss_on_text(lost: Comparison) -> str:
    """Against the teacher on the held-out text."""
    if not lost.excludes_zero:
        return f", while no difference to its teacher in NLL is shown ({difference(lost.difference)} nats)"
    if lost.difference.value > 0:
        return f", and an NLL higher than its teacher’s by {_nats(lost)}"
    return f", while its NLL is lower than its teacher’s by {_nats(lost)}"


# ---- what the teacher was worth ----------------------------------------------------------------------------------


def _worth(measures: Measures, words: Words) -> tuple[Worth, str]:
    deciding = measures.deciding
    told = [c for spec in deciding if (c := measures.comparison("student", "text_only", spec.name)) is not None]
    if not told:
        return _without_control(measures, words)
    outcome = _outcome(measures, told)
    at = f"{number(100 * measures.confidence, 0)} %"
    paired = _paired(measures)
    against = f"the same student trained for as many steps on {words.alone}"
    if outcome == "unclear":
        found = " and ".join(f"in {_named(measures, c)} {_difference(measures, c)}" for c in told)
        zero = "both intervals include 0" if len(told) == 2 else "the interval includes 0"
        result = f"against {against}, the difference is {found}, and {zero} ({at}, {paired})"
        if measures.teacher_unmeasured is not None and measures.models["student"].get("kl") is None:
            # A metric that was not measured is not the same as a difference that was not found.
            return "unknown", f"Whether it came nearer to its teacher was not measured; {result}."
        return outcome, f"That the teacher’s distributions were worth anything is not shown: {result}."
    said = " and ".join(_beside(measures, c) for c in told)
    if outcome == "worse":
        return outcome, f"It is worse than {against}: {said} ({at} intervals, {paired})."
    if outcome == "mixed":
        said = " but ".join(_beside(measures, c) for c in told)
        return outcome, f"Compared with {against}, {said} ({at} intervals, {paired})."
    return outcome, f"It is better than {against}: {said} ({at} intervals, {paired})."


def _outcome(measures: Measures, told: list[Comparison]) -> Worth:
    """Better or worse only if the intervals of both metrics exclude 0 and agree in direction."""
    signs = {(1 if measures.better(c) else -1) if c.excludes_zero else 0 for c in told}
    if signs == {1}:
        return "better"
    if signs == {-1}:
        return "worse"
    return "unclear" if signs == {0} else "mixed"


def _without_control(measures: Measures, words: Words) -> tuple[Worth, str]:
    metrics = [s.name for s in measures.deciding] if "teacher" in measures.models else ["accuracy", "nll"]
    found = next((c for m in metrics if (c := measures.comparison("student", "untrained", m)) is not None), None)
    compared = "" if found is None else f"compared with the untrained student, {_beside(measures, found)}"
    if "teacher" not in measures.models and not SPECS[measures.task].writes:
        return "alone", f"{compared[:1].upper()}{compared[1:] or 'It was compared with no other model'}."
    if not measures.taught:
        learned = f"It learned from {words.alone}, and of the teacher no more than what stands there"
        return "untaught", f"{learned}; {compared}." if compared else f"{learned}."
    if not SPECS[measures.task].has_response:
        missing = "What the teacher was worth is shown by no control: an embedding has none that learns without it"
    else:
        missing = (
            f"What the teacher’s distributions were worth is not known, since no control was trained on {words.alone} "
            "(train.controls: [text_only])"
        )
    return "unknown", f"{missing}; {compared}." if compared else f"{missing}."


def _paired(measures: Measures) -> str:
    """What the intervals are over. With a single training, they do not include other seeds."""
    groups = counted(measures.groups, "group")
    if measures.seeds > 1:
        return f"paired over {groups} and {measures.seeds} training seeds"
    return f"paired over {groups}; with one training seed, of this student and not of the method"


# ---- parts of sentences ------------------------------------------------------------------------------------------


def _named(measures: Measures, c: Comparison) -> str:
    return measures.metrics[c.metric].in_sentence


def _beside(measures: Measures, c: Comparison) -> str:
    """`its KL is lower by 0.38 nats [0.26, 0.51]`."""
    name = _named(measures, c)
    if not c.excludes_zero:
        return f"no difference in {name} is shown ({_difference(measures, c)})"
    size = _nats(c) if measures.metrics[c.metric].unit != "share" else _points(c)
    return f"its {name} is {'lower' if c.difference.value < 0 else 'higher'} by {size}"


def _difference(measures: Measures, c: Comparison) -> str:
    return difference_of_metric(measures.metrics[c.metric], c.difference)


def _size(c: Comparison) -> Interval:
    """A difference whose direction is stated in words."""
    d = c.difference
    return d if d.value >= 0 else Interval(-d.value, -d.high, -d.low)


def _nats(c: Comparison) -> str:
    value, _, brackets = interval(_size(c)).partition(" ")
    return f"{value} nats {brackets}"


def _points(c: Comparison) -> str:
    d = _size(c)
    return f"{number(100 * d.value, 1)} points [{number(100 * d.low, 1)}, {number(100 * d.high, 1)}]"

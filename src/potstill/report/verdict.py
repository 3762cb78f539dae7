"""Two sentences: what the student kept and lost, and what its teacher was worth.

The second says plainly when nothing is shown: where the interval of the paired difference to the same student trained
on the text alone includes 0, that is the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from potstill.measures import Comparison, Measures, ModelMeasures
from potstill.report.figures import count, difference, interval, large, number, percent, percent_interval

Worth = Literal["better", "unclear", "worse", "mixed", "unknown"]
"""Of the teacher's distributions, as the control shows it; unknown without that control."""


_METRIC = {"kl": "KL from the teacher", "nll": "NLL"}


@dataclass(frozen=True)
class Verdict:
    """`kept` and `worth` are one sentence each."""

    kept: str
    worth: str
    outcome: Worth

    @property
    def text(self) -> str:
        return f"{self.kept} {self.worth}"


def judge(measures: Measures) -> Verdict:
    """The verdict on a student, in plain text."""
    outcome, worth = _worth(measures)
    return Verdict(_kept(measures), worth, outcome)


def _kept(measures: Measures) -> str:
    student, teacher = measures.models["student"], measures.models.get("teacher")
    held_out = f"{count(measures.targets)} held-out tokens"
    if teacher is None or student.kl is None or student.top1_agreement is None:
        return (
            f"The student has {large(student.parameters)} parameters and an NLL of {interval(student.nll)} nats per "
            f"token on {held_out}; there is no teacher to hold it against."
        )
    lost = measures.comparison("student", "teacher", "nll")
    return (
        f"The student has {_fewer(student, teacher)} than its teacher ({large(student.parameters)} of "
        f"{large(teacher.parameters)}) and its first choice of token is the teacher’s on "
        f"{percent_interval(student.top1_agreement)} of {held_out}; what it lost is a KL of "
        f"{interval(student.kl)} nats per token" + (f"{_loss_on_text(lost)}." if lost is not None else ".")
    )


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
        return f", and an NLL higher than its teacher’s by {_size(lost)}"
    return f", while its NLL is lower than its teacher’s by {_size(lost)}"


def _worth(measures: Measures) -> tuple[Worth, str]:
    compared = [measures.comparison("student", "text_only", metric) for metric in ("kl", "nll")]
    kl, nll = compared
    if nll is None:
        return "unknown", _without_control(measures)
    told = [c for c in (kl, nll) if c is not None]
    outcome = _outcome(told)
    said = " and ".join(_beside(c) for c in told)
    at = f"{number(100 * measures.confidence, 0)} %"
    paired = f"paired over {count(measures.groups)} groups"
    against = "the same student trained equally long on the text alone"
    if outcome == "unclear":
        found = " and ".join(f"in {_METRIC[c.metric]} {difference(c.difference)}" for c in told)
        zero = "both intervals include 0" if len(told) == 2 else "the interval includes 0"
        return outcome, (
            f"That the teacher’s distributions were worth anything is not shown: against {against}, "
            f"the difference is {found} nats, and {zero} ({at}, {paired})."
        )
    if outcome == "worse":
        return outcome, f"It is worse than {against}: {said} ({at} intervals, {paired})."
    if outcome == "mixed":
        said = " but ".join(_beside(c) for c in told)
        return outcome, f"Compared with {against}, {said} ({at} intervals, {paired})."
    return outcome, f"It is better than {against}: {said} ({at} intervals, {paired})."


def _outcome(told: list[Comparison]) -> Worth:
    """Better or worse only where both metrics exclude 0 and point the same way."""
    signs = {(-1 if c.difference.value < 0 else 1) if c.excludes_zero else 0 for c in told}
    if signs == {-1}:
        return "better"
    if signs == {1}:
        return "worse"
    return "unclear" if signs == {0} else "mixed"


def _beside(c: Comparison) -> str:
    """`its KL is lower by 0.38 nats [0.26, 0.51]`."""
    name = _METRIC[c.metric]
    if not c.excludes_zero:
        return f"no difference in {name} is shown ({difference(c.difference)} nats)"
    return f"its {name} is {'lower' if c.difference.value < 0 else 'higher'} by {_size(c)}"


def _size(c: Comparison) -> str:
    """The size of a difference whose direction is said in words, with its interval."""
    d = c.difference
    if d.value < 0:
        d = type(d)(-d.value, -d.high, -d.low)
    value, _, brackets = interval(d).partition(" ")
    return f"{value} nats {brackets}"


def _without_control(measures: Measures) -> str:
    untrained = measures.comparison("student", "untrained", "kl")
    missing = (
        "What the teacher’s distributions were worth is not known, since no control was trained on the text alone "
        "(train.controls: [text_only])"
    )
    if untrained is None:
        return f"{missing}."
    return f"{missing}; compared with the untrained student, {_beside(untrained)}."

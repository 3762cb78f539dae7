"""The verdict says what the intervals say, whichever way they point."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report.synthetic import Shape, Spread, measures_of

from potstill.measures import Interval
from potstill.report.verdict import judge

BETTER, WORSE, NOTHING = (-0.38, -0.51, -0.26), (0.38, 0.26, 0.51), (-0.05, -0.12, 0.02)


@pytest.mark.parametrize(
    ("kl", "nll", "outcome", "said"),
    [
        (BETTER, BETTER, "better", "It is better than the same student trained for as many steps on the text alone"),
        (WORSE, WORSE, "worse", "It is worse than the same student trained for as many steps on the text alone"),
        (NOTHING, NOTHING, "unclear", "That the teacher’s distributions were worth anything is not shown"),
        (BETTER, NOTHING, "mixed", "lower by 0.38 nats [0.26, 0.51] but no difference in NLL is shown"),
        (NOTHING, WORSE, "mixed", "no difference in KL from the teacher is shown"),
        (BETTER, WORSE, "mixed", "lower by 0.38 nats [0.26, 0.51] but its NLL is higher by 0.38 nats [0.26, 0.51]"),
        (None, NOTHING, "unclear", "the interval includes 0"),
    ],
)
def test_the_control_decides_what_the_teacher_was_worth(
    kl: Spread | None, nll: Spread, outcome: str, said: str
) -> None:
    verdict = judge(measures_of(Shape(kl=kl, nll=nll)))
    assert verdict.outcome == outcome
    assert said in verdict.worth


def test_an_interval_that_includes_zero_is_never_called_better_or_lower() -> None:
    worth = judge(measures_of(Shape(kl=NOTHING, nll=NOTHING))).worth
    assert "−0.05 [−0.12, +0.02]" in worth and "both intervals include 0" in worth
    assert "better" not in worth and "lower" not in worth


def test_without_a_control_the_worth_is_not_known() -> None:
    verdict = judge(measures_of(Shape(kl=None, nll=None)))
    assert verdict.outcome == "unknown"
    assert "is not known" in verdict.worth and "text_only" in verdict.worth


def test_a_student_that_no_objective_taught_needs_no_control() -> None:
    verdict = judge(replace(measures_of(Shape(kl=None, nll=None)), taught=False))
    assert verdict.outcome == "untaught" and "It learned from the text alone" in verdict.worth
    assert "text_only" not in verdict.worth and "compared with the untrained student" in verdict.worth


def test_what_was_kept_and_lost_has_its_intervals() -> None:
    kept = judge(measures_of(Shape())).kept
    for figure in ("39.5 % fewer parameters", "81.4M of 134.5M", "41.2 % [39.0, 43.5] of 480 held-out tokens"):
        assert figure in kept
    for figure in ("KL of 1.93 [1.80, 2.07] nats per token", "NLL higher than its teacher’s by 1.60 nats [1.48, 1.73]"):
        assert figure in kept


def test_a_student_that_is_larger_or_reads_better_than_its_teacher_is_described_as_such() -> None:
    measures = measures_of(Shape())
    larger = replace(measures.models["student"], parameters=2 * measures.models["teacher"].parameters)
    better = replace(measures.comparisons[0], difference=Interval(-0.2, -0.3, -0.1))
    kept = judge(replace(measures, models={**measures.models, "student": larger}, comparisons=(better,))).kept
    assert "100.0 % more parameters" in kept and "its NLL is lower than its teacher’s by 0.20 nats [0.10, 0.30]" in kept


def test_a_student_without_a_teacher_has_a_verdict() -> None:
    measures = measures_of(Shape(kl=None, nll=None))
    alone = replace(measures.models["student"], metrics={"nll": measures.models["student"].metrics["nll"]})
    assert "no teacher to hold it against" in judge(replace(measures, models={"student": alone}, comparisons=())).kept


def test_a_teacher_that_was_not_measured_is_not_called_absent_nor_worthless() -> None:
    measures = measures_of(Shape(kl=None, nll=NOTHING))
    alone = replace(measures.models["student"], metrics={"nll": measures.models["student"].metrics["nll"]})
    models = {"student": alone, "text_only": measures.models["text_only"]}
    verdict = judge(replace(measures, models=models, teacher_unmeasured="its weights cannot be opened here"))
    assert "its teacher was not measured (its weights cannot be opened here)" in verdict.kept
    assert verdict.outcome == "unknown"
    assert "Whether it came nearer to its teacher was not measured; " in verdict.worth
    assert "no teacher" not in verdict.text and "worth anything is not shown" not in verdict.text


@pytest.mark.parametrize("shape", [Shape(), Shape(kl=NOTHING, nll=NOTHING), Shape(kl=None, nll=None)])
def test_it_is_two_sentences(shape: Shape) -> None:
    text = judge(measures_of(shape)).text
    assert text.count(". ") == 1 and text.endswith(".")

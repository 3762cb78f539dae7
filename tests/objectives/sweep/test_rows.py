"""What rules share on a tile."""

from __future__ import annotations

import pytest
import torch

from potstill.objectives.sweep.rows import Rows, Scratch


def tile(teacher: bool = True) -> Rows:
    torch.manual_seed(0)
    scratch = Scratch(torch.float32, torch.device("cpu"))
    return Rows(torch.randn(3, 7), torch.randn(3, 5) if teacher else None, torch.tensor([0, 1, 2]), scratch, True)


def test_a_distribution_is_computed_once_and_kept_apart_by_temperature_and_width() -> None:
    rows = tile()
    assert rows.student_softmax() is rows.student_softmax(1.0, 7)
    assert rows.student_exponentials(3.0) is rows.student_exponentials(3.0, 7)
    shared, all_tokens, tempered = (
        rows.student_softmax(1.0, 5).clone(),
        rows.student_softmax(),
        rows.student_softmax(2.0),
    )
    torch.testing.assert_close(rows.student_softmax(1.0, 5), shared, rtol=0, atol=0)
    torch.testing.assert_close(all_tokens, torch.softmax(rows.student, -1))
    torch.testing.assert_close(shared, torch.softmax(rows.student[:, :5], -1))
    torch.testing.assert_close(tempered, torch.softmax(rows.student / 2, -1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shift", [0.0, 1000.0, -1000.0])
def test_the_log_partition_is_that_of_the_tempered_logits(temperature: float, shift: float) -> None:
    rows = tile()
    rows.student += shift
    expected = torch.logsumexp(rows.student / temperature, -1, keepdim=True)
    torch.testing.assert_close(rows.student_exponentials(temperature).log_partition, expected)
    assert rows.teacher is not None
    expected = torch.logsumexp(rows.teacher[:, :4] / temperature, -1, keepdim=True)
    torch.testing.assert_close(rows.teacher_exponentials(temperature, 4).log_partition, expected)


@pytest.mark.parametrize("first", ["student_softmax", "student_exponentials"])
def test_exponentials_over_their_total_are_the_softmax_whichever_is_asked_for_first(first: str) -> None:
    rows = tile()
    given = getattr(rows, first)(2.0)
    kept = [each.clone() for each in (given if isinstance(given, tuple) else (given,))]
    values, total, _ = rows.student_exponentials(2.0)
    expected = torch.softmax(rows.student / 2, -1)
    torch.testing.assert_close(rows.student_softmax(2.0), expected)
    torch.testing.assert_close(values / total, expected)
    # What a rule was given stays as it was.
    for now, before in zip(given if isinstance(given, tuple) else (given,), kept, strict=True):
        torch.testing.assert_close(now, before, rtol=0, atol=0)


def test_gradients_of_rules_add_up_and_a_narrow_one_is_zero_beyond_its_width() -> None:
    rows = tile()
    coefficient = torch.tensor([[1.0], [2.0], [3.0]])
    rows.add_gradient(coefficient, torch.ones(3, 5))
    rows.add_gradient(coefficient, torch.ones(3, 7))
    rows.add_gradient_at(torch.tensor([0, 0, 6]), -coefficient)
    expected = torch.tensor([[2.0] * 5 + [1.0] * 2]).repeat(3, 1)
    expected[[0, 1, 2], [0, 0, 6]] -= 1.0
    torch.testing.assert_close(rows.gradient, expected * coefficient)


def test_without_a_rule_that_has_a_gradient_it_is_zero() -> None:
    rows = tile()
    rows.scratch.take("gradient", 3, 7).fill_(5.0)
    assert rows.gradient.abs().max() == 0


def test_asking_for_an_absent_teacher_says_so() -> None:
    with pytest.raises(ValueError, match="no teacher"):
        tile(teacher=False).teacher_softmax()

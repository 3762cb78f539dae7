"""Constants worked by hand, and T² where it belongs: on the gradient."""

from __future__ import annotations

import math

import pytest
import torch

from potstill.objectives.divergences import forward_kl, hard_ce, mass_on_cut_rows


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_forward_kl_is_teacher_against_student() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): KL(p‖q) = ½ ln 2 + ½ ln ⅔ = ½ ln(4/3); KL(q‖p) = ¼ ln ½ + ¾ ln(3/2) is another.
    kl = forward_kl(logits_of(0.25, 0.75), logits_of(0.5, 0.5))
    assert kl.item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-12)
    assert kl.item() != pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-3)


def test_temperature_two_takes_square_roots() -> None:
    # At T = 2 the probabilities 1/17, 16/17 become 1/5, 4/5, and 1/2, 1/2 stay.
    kl = forward_kl(logits_of(1 / 17, 16 / 17), logits_of(0.5, 0.5), temperature=2.0)
    assert kl.item() == pytest.approx(0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8), abs=1e-12)


def test_hard_ce_is_minus_the_log_of_the_targets_probability() -> None:
    nll = hard_ce(logits_of(0.1, 0.2, 0.7), torch.tensor([1]))
    assert nll.item() == pytest.approx(-math.log(0.2), abs=1e-12)


def test_cut_rows_change_neither_softmax_nor_value() -> None:
    shared = forward_kl(logits_of(0.25, 0.75), logits_of(0.5, 0.5))
    padded = forward_kl(logits_of(0.2, 0.6, 0.2), logits_of(0.5, 0.5))
    assert padded.item() == pytest.approx(shared.item(), abs=1e-12)
    assert mass_on_cut_rows(logits_of(0.2, 0.6, 0.2), 2).item() == pytest.approx(0.2, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_t_squared_is_on_the_gradient(temperature: float) -> None:
    student = torch.tensor([[0.3, -1.2, 0.8]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[1.0, 0.1, -0.4]], dtype=torch.float64)

    def value(logits: torch.Tensor) -> float:
        return forward_kl(logits, teacher, temperature, scale_by_temperature_squared=True).item()

    plain = forward_kl(student, teacher, temperature)
    scaled = forward_kl(student, teacher, temperature, scale_by_temperature_squared=True)
    assert scaled.item() == pytest.approx(temperature**2 * plain.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(scaled.sum(), student)
    step = 1e-6
    for v in range(3):
        moved = torch.zeros_like(student)
        moved[0, v] = step
        finite = (value(student.detach() + moved) - value(student.detach() - moved)) / (2 * step)
        assert gradient[0, v].item() == pytest.approx(finite, abs=1e-8)


def test_with_t_squared_the_gradient_tends_to_that_of_matched_logits() -> None:
    # Hinton et al. 2015, §2.1: for zero-mean logits and large T, T² · KL has gradient (z − v)/V.
    student = torch.tensor([[1.0, -1.0, 0.5, -0.5]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[-0.2, 0.2, 0.7, -0.7]], dtype=torch.float64)
    kl = forward_kl(student, teacher, 1000.0, scale_by_temperature_squared=True)
    (gradient,) = torch.autograd.grad(kl.sum(), student)
    torch.testing.assert_close(gradient, (student.detach() - teacher) / 4, atol=1e-3, rtol=0)

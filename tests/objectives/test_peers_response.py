"""TRL and Liger as oracles, where they compute the same thing on a processor; where they do not, by how much."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from objectives.worlds import World, make_world, relative_error
from torch import Tensor

from potstill.objectives import fused_sweep
from potstill.objectives.divergences import forward_kl
from potstill.objectives.mixtures import JSDRule
from potstill.objectives.response import ForwardKLRule, ReverseKLRule
from potstill.signals import IGNORE, Head

pytestmark = pytest.mark.peers

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
"""Theirs: 0 and 1 stand for forward and reverse KL, and between them it is the mixture β·teacher + (1−β)·student."""

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias, wider teacher": {"bias": True, "teacher_width": 13},
    "soft-cap": {"softcap": 3.0, "scale": 0.5},
}


def rule_of(beta: float, temperature: float) -> ForwardKLRule | ReverseKLRule | JSDRule:
    if beta == 0.0:
        return ForwardKLRule(temperature)
    return ReverseKLRule(temperature) if beta == 1.0 else JSDRule(beta, temperature)


def ours(world: World, beta: float, temperature: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Values per row, and the gradients of their mean."""
    rule, count = rule_of(beta, temperature), world.target_ids.shape[0]
    swept = fused_sweep(world.student, world.teacher, world.target_ids, [(rule, 1 / count)])
    return swept.values[0], torch.autograd.grad(swept.loss, world.leaves())


def assert_same_gradients(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], within: float) -> None:
    assert len(got) == len(expected) > 0
    for gradient, reference in zip(got, expected, strict=True):
        assert relative_error(gradient, reference) < within


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", BETAS)
def test_trl_generalized_jsd_loss_is_ours_without_t_squared(beta: float, temperature: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    world = make_world(dtype=torch.float64)
    values, gradients = ours(world, beta, temperature)
    student, teacher = world.student.logits()[None], world.teacher.logits()[None]
    labels = torch.zeros(1, 23, dtype=torch.long)
    loss = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta, temperature)
    torch.testing.assert_close(values.mean(), loss.detach(), rtol=1e-7, atol=0)
    assert_same_gradients(gradients, torch.autograd.grad(loss, world.leaves()), 1e-6)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", BETAS)
def test_trl_chunked_divergence_is_ours(beta: float, temperature: float, shape: dict[str, Any]) -> None:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    world = make_world(**shape)
    values, gradients = ours(world, beta, temperature)
    s, t = world.student, world.teacher
    apply: Any = ChunkedDivergenceFunction.apply
    divergence, _ = apply(
        *(s.hidden, s.weight, s.bias, t.hidden, t.weight, t.bias, beta, temperature),
        *(s.scale, s.softcap, t.scale, t.softcap),
    )
    torch.testing.assert_close(values, divergence.detach(), rtol=2e-5, atol=2e-6)
    assert_same_gradients(gradients, torch.autograd.grad(divergence.mean(), world.leaves()), 2e-5)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", BETAS)
def test_liger_chunked_jsd_is_ours(beta: float, temperature: float, masked: bool) -> None:
    world = make_world(24, dtype=torch.float64)
    labels = world.target_ids.clone()
    if masked:
        labels[::3] = IGNORE
    kept = world.rows(labels != IGNORE)
    values, gradients = ours(kept, beta, temperature)
    loss = liger_loss(world, labels, beta, temperature)
    # It sums the loss in fp32 whatever the models are in.
    torch.testing.assert_close(values.mean(), loss.detach().double(), rtol=1e-6, atol=0)
    expected = torch.autograd.grad(loss, world.leaves())
    hidden = torch.zeros_like(expected[0])
    hidden[labels != IGNORE] = torch.autograd.grad(
        fused_sweep(kept.student, kept.teacher, kept.target_ids, [(rule_of(beta, temperature), 1 / len(values))]).loss,
        kept.student.hidden,
    )[0]
    assert_same_gradients((hidden, gradients[1]), expected, 1e-7)


def liger_loss(world: World, labels: Tensor, beta: float, temperature: float) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(0.0, 1.0, beta, temperature=temperature, compiled=False, chunk_size=8)
    s, t = world.student, world.teacher
    value: Tensor = loss(s.hidden, s.weight, t.hidden, t.weight, labels)
    return value


def test_liger_fills_a_padded_vocabulary_with_zeros_and_ours_slices_it() -> None:
    # Rule 5: a logit of 0 takes part in the softmax.
    world = make_world(24, 30, teacher_vocab=300, dtype=torch.float64)
    theirs = liger_loss(world, world.target_ids, 0.0, 1.0).item()
    filled = torch.nn.functional.pad(world.student.logits().detach(), (0, 270))
    assert theirs == pytest.approx(forward_kl(filled, world.teacher.logits()).mean().item(), rel=1e-6)
    assert abs(theirs - ours(world, 0.0, 1.0)[0].mean().item()) > 0.05 * theirs


def test_liger_in_bf16_takes_the_logarithms_in_bf16_and_ours_in_fp32() -> None:
    world = make_world(24, 997, dtype=torch.bfloat16)
    exact = World(
        *(
            Head(*(t.detach().double().requires_grad_() for t in (h.hidden, h.weight)))
            for h in (world.student, world.teacher)
        ),
        world.target_ids,
    )
    expected = ours(exact, 0.5, 1.0)[1]
    mine = ours(world, 0.5, 1.0)[1]
    theirs = torch.autograd.grad(liger_loss(world, world.target_ids, 0.5, 1.0), world.leaves())
    for got, other, reference in zip(mine, theirs, expected, strict=True):
        assert relative_error(got, reference) < 0.7 * relative_error(other, reference)


def test_trl_jumps_at_the_ends_of_beta() -> None:
    # β·KL(p‖m) + (1−β)·KL(q‖m) tends to 0 at both ends; theirs is a KL there. Ours refuses both.
    from trl.experimental.gkd import GKDTrainer

    world = make_world(dtype=torch.float64)
    student, teacher = world.student.logits()[None].detach(), world.teacher.logits()[None]
    at_end, beside = (GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta).item() for beta in (0.0, 1e-6))
    assert beside < 1e-3 * at_end

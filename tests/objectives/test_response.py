"""Every response objective: by hand, by finite differences, against whole logits, in the sweep."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from objectives.worlds import RESPONSE, World, make_world, products, recorded, reference, relative_error
from torch import Tensor

from potstill.objectives import RowRule, Swept, fused_sweep
from potstill.objectives.divergences import dkd, forward_kl
from potstill.objectives.sweep import engine
from potstill.recipe.objectives import ObjectiveSettings
from potstill.recipe.response import (
    JSD,
    Acceptance,
    DecoupledKD,
    ForwardKL,
    HardCE,
    LogitMSE,
    ReverseKL,
    SkewedKL,
    SkewedReverseKL,
    SoftCE,
    SoftSettings,
    TotalVariation,
)
from potstill.registry import build
from potstill.signals import Dense

WORLDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias, soft-cap and scale": {"bias": True, "softcap": 2.0, "scale": 0.5},
    "wider teacher": {"teacher_width": 13},
    "teacher padded": {"teacher_vocab": 48},
    "student padded": {"teacher_vocab": 30, "bias": True, "softcap": 3.0},
}
TAUGHT = tuple(s for s in RESPONSE if not isinstance(s, HardCE))

every = pytest.mark.parametrize("settings", RESPONSE, ids=lambda s: s.kind)
every_taught = pytest.mark.parametrize("settings", TAUGHT, ids=lambda s: s.kind)


def rule_of(settings: ObjectiveSettings, progress: float = 0.0) -> RowRule:
    rule: RowRule = build(settings).row_rule(progress)
    return rule


def sweep(world: World, *settings: ObjectiveSettings, coefficient: Tensor | float = 0.1) -> Swept:
    rules = [(rule_of(one), coefficient) for one in settings]
    return fused_sweep(world.student, world.teacher, world.target_ids, rules)


def whole(world: World, *settings: ObjectiveSettings, coefficient: Tensor | float = 0.1) -> Tensor:
    """The same loss from [N,V] and autograd."""
    student, teacher = world.student.logits(), world.teacher.logits()
    return sum(
        ((coefficient * reference(one, student, teacher, world.target_ids)).sum() for one in settings),
        student.new_zeros(()),
    )


def same_heads(world: World) -> World:
    """Its student as its own teacher."""
    student = world.student
    bias = None if student.bias is None else student.bias.detach()
    return replace(
        world, teacher=replace(student, hidden=student.hidden.detach(), weight=student.weight.detach(), bias=bias)
    )


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of at most 5 rows, tiles of one."""
    monkeypatch.setattr(engine, "MOST_CHUNK_ROWS", 5)
    monkeypatch.setattr(engine, "TILE_BYTES", 1)


# ---- by hand ----------------------------------------------------------------------------------------------

ln = math.log
# p = (1/2, 1/2) of the teacher and q = (1/4, 3/4) of the student. Half and half they mix to (3/8, 5/8); a quarter of p
# to (5/16, 11/16); a quarter of q to (7/16, 9/16).
BY_HAND: tuple[tuple[ObjectiveSettings, float], ...] = (
    (ForwardKL(), (ln(2) + ln(2 / 3)) / 2),
    (ReverseKL(), ln(1 / 2) / 4 + 3 * ln(3 / 2) / 4),
    (JSD(), (ln(4 / 3) + ln(4 / 5)) / 4 + (ln(2 / 3) + 3 * ln(6 / 5)) / 8),
    (JSD(beta=0.25), (ln(8 / 5) + ln(8 / 11)) / 8 + 3 * (ln(4 / 5) + 3 * ln(12 / 11)) / 16),
    (SkewedKL(alpha=0.5), (ln(4 / 3) + ln(4 / 5)) / 2),
    (SkewedKL(alpha=0.25), (ln(8 / 5) + ln(8 / 11)) / 2),
    (SkewedReverseKL(alpha=0.25), (ln(4 / 7) + 3 * ln(4 / 3)) / 4),
    (TotalVariation(), 1 / 4),
    (Acceptance(), ln(4 / 3)),
    (SoftCE(), (ln(4) + ln(4 / 3)) / 2),
    (HardCE(), ln(4)),
)


@pytest.mark.parametrize(("settings", "expected"), BY_HAND, ids=lambda v: getattr(v, "kind", ""))
def test_the_value_is_that_worked_by_hand(settings: ObjectiveSettings, expected: float) -> None:
    student, teacher = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.25, 0.75], [0.5, 0.5]))
    assert_value(settings, student, teacher, expected)


def test_the_square_of_logits_is_their_mean_over_the_shared_tokens() -> None:
    student, teacher = torch.tensor([[1.0, 3.0]]).double(), torch.tensor([[2.0, -1.0, 100.0]]).double()
    assert_value(LogitMSE(), student, teacher, (1 + 16) / 2)


def test_decoupled_kd_is_the_target_against_all_others_and_the_others_among_themselves() -> None:
    # Target 0: (1/2, 1/2) against (1/4, 3/4) and, among the others, (1/2, 1/2) against (1/3, 2/3).
    student, teacher = (torch.tensor([p]).double().log() for p in ([0.25, 0.25, 0.5], [0.5, 0.25, 0.25]))
    pair, rest = (ln(2) + ln(2 / 3)) / 2, (ln(3 / 2) + ln(3 / 4)) / 2
    assert_value(DecoupledKD(), student, teacher, pair + 8 * rest)
    assert_value(DecoupledKD(alpha=3.0, beta=0.0), student, teacher, 3 * pair)


def test_every_kind_is_worked_by_hand_at_a_temperature_too() -> None:
    # At T = 2 the probabilities 1/17, 16/17 become 1/5, 4/5; times T².
    student, teacher = (torch.tensor([p]).double().log() for p in ([1 / 17, 16 / 17], [0.5, 0.5]))
    assert_value(ReverseKL(temperature=2.0), student, teacher, 4 * (0.2 * ln(0.4) + 0.8 * ln(1.6)))
    assert_value(TotalVariation(temperature=2.0, scale_by_temperature_squared=False), student, teacher, 0.3)
    # m = (0.35, 0.65)
    jsd = (ln(0.5 / 0.35) + ln(0.5 / 0.65)) / 4 + (0.2 * ln(0.2 / 0.35) + 0.8 * ln(0.8 / 0.65)) / 2
    assert_value(JSD(temperature=2.0), student, teacher, 4 * jsd)


def assert_value(settings: ObjectiveSettings, student: Tensor, teacher: Tensor, expected: float) -> None:
    target = torch.tensor([0])
    got = fused_sweep(Dense(student), Dense(teacher), target, [(rule_of(settings), 1.0)]).values
    assert got.item() == pytest.approx(expected, abs=1e-12)
    assert reference(settings, student, teacher, target).item() == pytest.approx(expected, abs=1e-12)


# ---- against whole logits and finite differences ------------------------------------------------------------


@every
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("shape", WORLDS.values(), ids=WORLDS)
def test_values_and_gradients_equal_those_of_whole_logits(shape: dict[str, Any], settings: ObjectiveSettings) -> None:
    world = make_world(**shape, dtype=torch.float64)
    loss, expected = sweep(world, settings).loss, whole(world, settings)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    got = torch.autograd.grad(loss, world.leaves())
    for gradient, exact in zip(got, torch.autograd.grad(expected, world.leaves()), strict=True):
        assert relative_error(gradient, exact) < 1e-11


@every
def test_gradients_equal_finite_differences(settings: ObjectiveSettings) -> None:
    world = make_world(4, 6, 3, bias=True, softcap=2.0, scale=0.7, teacher_vocab=5, dtype=torch.float64)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        head = replace(world.student, hidden=hidden, weight=weight, bias=bias)
        return fused_sweep(head, world.teacher, world.target_ids, [(rule_of(settings), 0.7)]).loss

    assert torch.autograd.gradcheck(loss, world.leaves())


@every_taught
def test_a_student_like_its_teacher_has_exactly_no_loss_and_no_gradient(settings: ObjectiveSettings) -> None:
    world = same_heads(make_world(bias=True))
    swept = sweep(world, settings)
    if isinstance(settings, SoftCE):
        p = torch.softmax(world.teacher.logits() / 2.0, -1)
        torch.testing.assert_close(swept.values[0], 4 * torch.special.entr(p).sum(-1))
    else:
        assert swept.values.abs().max() == 0
    assert all(g.abs().max() == 0 for g in torch.autograd.grad(swept.loss, world.leaves()))


@every
def test_splitting_the_rows_changes_nothing(settings: ObjectiveSettings) -> None:
    world = make_world(vocab=301, width=32, scale=0.3)
    world = replace(world, teacher=replace(world.teacher, scale=0.3))
    expected = torch.autograd.grad(sweep(world, settings).loss, world.leaves())
    for cuts in ([11, 12], [1, 2, 20]):
        split = [torch.zeros_like(g) for g in expected]
        for piece in torch.arange(23).split(cuts):
            part = world.rows(piece)
            for total, gradient in zip(
                split, torch.autograd.grad(sweep(part, settings).loss, world.leaves()), strict=True
            ):
                total.add_(gradient)
        for got, exact in zip(split, expected, strict=True):
            assert relative_error(got, exact) < 1e-6


@every
def test_a_row_without_weight_gives_no_gradient_and_weights_multiply(settings: ObjectiveSettings) -> None:
    world = make_world(dtype=torch.float64)
    weights = (torch.arange(23) % 3).double()
    got = torch.autograd.grad(sweep(world, settings, coefficient=weights).loss, world.leaves())
    assert got[0][weights == 0].abs().max() == 0
    for gradient, exact in zip(
        got, torch.autograd.grad(whole(world, settings, coefficient=weights), world.leaves()), strict=True
    ):
        assert relative_error(gradient, exact) < 1e-11


@every_taught
def test_the_teacher_gets_no_gradient_and_a_frozen_head_costs_no_product(settings: ObjectiveSettings) -> None:
    world = make_world()
    teacher = replace(
        world.teacher, hidden=world.teacher.hidden.requires_grad_(), weight=world.teacher.weight.requires_grad_()
    )
    frozen = replace(world, student=replace(world.student, weight=world.student.weight.detach()), teacher=teacher)
    with recorded() as (operations, _):
        sweep(frozen, settings).loss.backward()
    assert products(operations) == 3
    assert teacher.hidden.grad is None and teacher.weight.grad is None
    assert world.student.hidden.grad is not None


def test_all_objectives_share_four_products_and_add_up() -> None:
    world = make_world(vocab=211, dtype=torch.float64)
    with recorded() as (operations, _):
        loss = sweep(world, *RESPONSE).loss
        got = torch.autograd.grad(loss, world.leaves())
    assert products(operations) == 4
    for gradient, exact in zip(got, torch.autograd.grad(whole(world, *RESPONSE), world.leaves()), strict=True):
        assert relative_error(gradient, exact) < 1e-11


@every
def test_head_and_dense_give_equal_values_and_gradients(settings: ObjectiveSettings) -> None:
    world = make_world(teacher_vocab=30, bias=True, dtype=torch.float64)
    from_head = sweep(world, settings)
    logits = world.student.logits()
    dense = fused_sweep(Dense(logits), Dense(world.teacher.logits()), world.target_ids, [(rule_of(settings), 0.1)])
    torch.testing.assert_close(dense.values, from_head.values, rtol=1e-12, atol=1e-14)
    expected = torch.autograd.grad(from_head.loss, world.leaves())
    for got, exact in zip(torch.autograd.grad(dense.loss, world.leaves()), expected, strict=True):
        assert relative_error(got, exact) < 1e-11


# ---- precision ------------------------------------------------------------------------------------------------


def errors_in(
    dtype: torch.dtype, settings: ObjectiveSettings, scale: float = 1.0, rows: int = 64, vocab: int = 997
) -> tuple[float, list[float]]:
    """(relative error of the values, of each gradient) of one precision, against fp64 on the same inputs. Logits have a
    standard deviation of 2.8 · scale."""
    world = make_world(rows, vocab, 8, dtype=dtype, scale=scale)

    def exact(tensor: Tensor) -> Tensor:
        return tensor.detach().double().requires_grad_()

    student = replace(world.student, hidden=exact(world.student.hidden), weight=exact(world.student.weight))
    teacher = replace(
        world.teacher, hidden=world.teacher.hidden.double(), weight=world.teacher.weight.double(), scale=scale
    )
    low = replace(world, teacher=replace(world.teacher, scale=scale))
    high = World(student, teacher, world.target_ids)
    got, expected = sweep(low, settings), whole(high, settings)
    gradients = torch.autograd.grad(got.loss, low.leaves())
    exacts = torch.autograd.grad(expected, high.leaves())
    errors = [relative_error(g, e) for g, e in zip(gradients, exacts, strict=True)]
    values = reference(settings, student.logits(), teacher.logits(), world.target_ids)
    return relative_error(got.values[0], values), errors


@every
def test_in_fp32_the_error_is_a_few_units_in_the_last_place(settings: ObjectiveSettings) -> None:
    # More where a divergence is saturated, at T = 0.5 and α = 0.7: its gradient is a small difference of large terms.
    value, gradients = errors_in(torch.float32, settings)
    saturated = getattr(settings, "alpha", 0.0) == 0.7
    assert value < 1e-6 and max(gradients) < (2e-5 if saturated else 3e-6)


@every
def test_a_large_vocabulary_does_not_enlarge_the_error_of_the_gradient(settings: ObjectiveSettings) -> None:
    # Of the weight's, which no sum over the vocabulary enters. With the exponential that `torch.softmax` takes on CPUs
    # reverse KL's is 2.4e-5. Skewed reverse KL at α = 0.7 is saturated: no form of it is exact there and 0 at p = q.
    _, (_, of_weight) = errors_in(torch.float32, settings, rows=8, vocab=49_152)
    saturated = isinstance(settings, SkewedReverseKL) and settings.alpha == 0.7
    assert of_weight < (5e-5 if saturated else 2e-6)


@every
def test_in_bf16_the_error_is_that_of_logits_rounded_once(settings: ObjectiveSettings) -> None:
    # The gradients of total variation and acceptance jump where p = q, so that rounding flips some signs.
    value, gradients = errors_in(torch.bfloat16, settings)
    assert value < 5e-3 and 1e-3 < max(gradients) < (
        0.08 if isinstance(settings, (Acceptance, TotalVariation)) else 0.03
    )


@every_taught
@pytest.mark.parametrize("distance", [30.0, 1000.0])
def test_logits_in_the_hundreds_make_no_nan(settings: ObjectiveSettings, distance: float) -> None:
    # Probabilities underflow on one side, on the other, and on both; the reference works on logarithms in fp64.
    generator = torch.Generator().manual_seed(1)
    student, teacher = (distance * torch.randn(40, 50, generator=generator) for _ in range(2))
    student[0], teacher[1, 3] = teacher[0], -10 * distance
    target = torch.randint(0, 50, (40,), generator=generator)
    leaf = student.clone().requires_grad_()
    swept = fused_sweep(Dense(leaf), Dense(teacher), target, [(rule_of(settings), 1.0)])
    (gradient,) = torch.autograd.grad(swept.loss, leaf)
    exact = student.double().requires_grad_()
    expected = reference(settings, exact, teacher.double(), target)
    (derivative,) = torch.autograd.grad(expected.sum(), exact)
    assert swept.values.isfinite().all() and gradient.isfinite().all()
    torch.testing.assert_close(swept.values[0].double(), expected.detach(), rtol=1e-5, atol=1e-5)
    # A logit is itself exact to 6e-8 of its size only, the largest are 10 · distance, and T² is up to 16.
    torch.testing.assert_close(gradient.double(), derivative, rtol=1e-4, atol=1e-6 * distance)


# ---- properties ------------------------------------------------------------------------------------------------


@hypothesis_settings(max_examples=40)
@given(
    rows=st.integers(1, 7),
    vocab=st.integers(2, 9),
    spread=st.floats(0.01, 30.0),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**16),
)
def test_divergences_keep_within_their_bounds(rows: int, vocab: int, spread: float, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (spread * torch.randn(rows, vocab, generator=generator) for _ in range(2))
    target = torch.randint(0, vocab, (rows,), generator=generator)
    most: dict[ObjectiveSettings, float] = {
        ForwardKL(): math.inf,
        ReverseKL(): math.inf,
        TotalVariation(): 1.0,
        Acceptance(): math.inf,
        JSD(beta=share): -share * ln(share) - (1 - share) * math.log1p(-share),
        SkewedKL(alpha=share): -ln(share),
        SkewedReverseKL(alpha=share): -ln(share),
        DecoupledKD(): math.inf,
    }
    rules = [(rule_of(settings), 1.0) for settings in most]
    leaf = student.requires_grad_()
    for (settings, bound), rule in zip(most.items(), rules, strict=True):
        swept = fused_sweep(Dense(leaf), Dense(teacher), target, [rule])
        assert swept.values.min() >= -2e-6 * max(1.0, spread), settings.kind
        assert swept.values.max() <= bound + 2e-6, settings.kind
        # A softmax does not see a level: no gradient of these has one.
        assert torch.autograd.grad(swept.loss, leaf)[0].sum(-1).abs().max() < 1e-4 * max(1.0, spread)


@hypothesis_settings(max_examples=25)
@given(seed=st.integers(0, 2**16), temperature=st.floats(0.5, 5.0))
def test_identities_between_objectives_hold(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = (2 * torch.randn(5, 11, generator=generator, dtype=torch.float64) for _ in range(2))

    def value(settings: ObjectiveSettings, student: Tensor = ours, teacher: Tensor = theirs) -> Tensor:
        target = torch.zeros(5, dtype=torch.long)
        return fused_sweep(Dense(student), Dense(teacher), target, [(rule_of(settings), 1.0)]).values[0]

    at, swapped, close = {"temperature": temperature}, (theirs, ours), torch.testing.assert_close
    close(value(ReverseKL(**at)), value(ForwardKL(**at), *swapped))
    close(value(JSD(beta=0.3, **at)), value(JSD(beta=0.7, **at), *swapped))
    close(value(SkewedReverseKL(alpha=0.2, **at)), value(SkewedKL(alpha=0.2, **at), *swapped))
    close(value(TotalVariation(**at)), value(TotalVariation(**at), *swapped))
    close(value(Acceptance()), -torch.log1p(-value(TotalVariation())))
    # Divided by β, or by 1 − β, JSD tends to the two KLs: the ends themselves are 0, and are refused.
    close(value(JSD(beta=1e-7)) / 1e-7, value(ForwardKL()), rtol=1e-2, atol=1e-3)
    close(value(JSD(beta=1 - 1e-7)) / 1e-7, value(ReverseKL()), rtol=1e-2, atol=1e-3)


# ---- schedules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [s for s in TAUGHT if isinstance(s, SoftSettings)], ids=lambda s: s.kind)
def test_a_temperature_that_changes_is_read_at_the_progress(settings: SoftSettings) -> None:
    world = make_world(dtype=torch.float64)
    changing = settings.model_copy(update={"temperature": ForwardKL(temperature={"start": 1, "end": 5}).temperature})
    fixed = settings.model_copy(update={"temperature": 2.0})
    at = fused_sweep(world.student, world.teacher, world.target_ids, [(rule_of(changing, 0.25), 1.0)])
    torch.testing.assert_close(at.values, sweep(world, fixed).values, rtol=1e-12, atol=0)


@pytest.mark.parametrize("settings", [s for s in TAUGHT if isinstance(s, SoftSettings)], ids=lambda s: s.kind)
def test_t_squared_multiplies_value_and_gradient(settings: SoftSettings) -> None:
    world = make_world(dtype=torch.float64)
    plain, scaled = (
        sweep(world, settings.model_copy(update={"temperature": 3.0, "scale_by_temperature_squared": flag}))
        for flag in (False, True)
    )
    torch.testing.assert_close(scaled.values, 9 * plain.values, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(one.loss, world.leaves()) for one in (scaled, plain)]
    for got, exact in zip(*gradients, strict=True):
        assert relative_error(got, 9 * exact) < 1e-12


# ---- decoupled KD -----------------------------------------------------------------------------------------------


def test_decoupled_kd_is_forward_kl_where_beta_is_the_teachers_mass_on_the_others() -> None:
    # Zhao et al. 2022, eq. 5.
    world = make_world(9, 7, dtype=torch.float64)
    student, teacher = world.student.logits(), world.teacher.logits()
    others = 1 - torch.softmax(teacher, -1).gather(1, world.target_ids[:, None]).squeeze(1)
    pair, rest = (dkd(student, teacher, world.target_ids, a, b) for a, b in ((1.0, 0.0), (0.0, 1.0)))
    torch.testing.assert_close(pair + others * rest, forward_kl(student, teacher))


def test_where_a_target_is_not_shared_decoupled_kd_is_beta_times_forward_kl() -> None:
    world = make_world(12, 9, teacher_vocab=6, dtype=torch.float64)
    targets = torch.tensor([0, 5, 6, 8] * 3)
    settings = DecoupledKD(alpha=2.0, beta=3.0)
    world = replace(world, target_ids=targets)
    swept = sweep(world, settings)
    kl = forward_kl(world.student.logits(), world.teacher.logits()).detach()
    outside = targets >= 6
    torch.testing.assert_close(swept.values[0][outside], 3.0 * kl[outside])
    assert (swept.values[0][~outside] - 3.0 * kl[~outside]).abs().min() > 1e-6
    got = torch.autograd.grad(swept.loss, world.leaves())
    for gradient, exact in zip(got, torch.autograd.grad(whole(world, settings), world.leaves()), strict=True):
        assert relative_error(gradient, exact) < 1e-11


def test_decoupled_kd_keeps_the_others_where_the_teacher_is_sure() -> None:
    # 1 − p_target is 0 in fp32 here; the others still have their own distribution.
    teacher, student = torch.tensor([[60.0, 1.0, 2.0]]), torch.tensor([[0.0, 2.0, 1.0]])
    rest = fused_sweep(
        Dense(student), Dense(teacher), torch.tensor([0]), [(rule_of(DecoupledKD(alpha=0, beta=1)), 1.0)]
    )
    # (1, e)/(1 + e) against (e, 1)/(1 + e).
    assert rest.values.item() == pytest.approx((math.e - 1) / (math.e + 1), rel=1e-6)


def test_decoupled_kd_of_a_single_class_is_refused() -> None:
    with pytest.raises(ValueError, match="two or more tokens or classes"):
        sweep(make_world(vocab=5, teacher_vocab=1), DecoupledKD())

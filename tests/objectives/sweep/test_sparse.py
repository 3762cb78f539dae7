"""Stored and sampled distributions: equal to whole ones where all is kept, right on average where sampled, and off by
what is said where cut."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from objectives.worlds import RESPONSE, World, make_batch, make_world, relative_error
from torch import Tensor

from potstill.objectives import fused_sweep, total_loss
from potstill.objectives.divergences import forward_kl, soft_ce, sparse_forward_kl, sparse_soft_ce
from potstill.objectives.response import ForwardKLRule, HardCERule, SoftCERule
from potstill.objectives.sweep import engine
from potstill.recipe.objectives import ObjectiveSettings
from potstill.recipe.response import ForwardKL, HardCE, SoftCE, SoftSettings
from potstill.registry import build
from potstill.signals import Dense, Signals, Sparse

Estimator = Literal["unbiased", "top_k"]
LINEAR = {"forward_kl": (ForwardKLRule, sparse_forward_kl), "soft_ce": (SoftCERule, sparse_soft_ce)}


def stored(
    teacher_logits: Tensor,
    keep: int,
    estimator: Estimator = "top_k",
    temperature: float = 1.0,
    vocab: int | None = None,
) -> Sparse:
    """The `keep` likeliest tokens of each row, with their probabilities."""
    p = torch.softmax(teacher_logits.detach() / temperature, -1)
    weights, ids = p.topk(keep, dim=-1)
    rows = p.shape[0]
    offsets = torch.arange(rows + 1) * keep
    entropy = torch.special.entr(p).sum(-1)
    return Sparse(offsets, ids.flatten(), weights.flatten(), entropy, estimator, temperature, vocab)


def gradients(world: World, loss: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, world.leaves(), retain_graph=True)


@pytest.mark.parametrize("chunk", [5, 344])
@pytest.mark.parametrize("estimator", ["unbiased", "top_k"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("teacher_vocab", [37, 30])
@pytest.mark.parametrize("kind", LINEAR)
def test_head_dense_and_sparse_agree_where_every_token_is_kept(
    kind: str,
    teacher_vocab: int,
    temperature: float,
    estimator: Estimator,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "MOST_CHUNK_ROWS", chunk)
    world = make_world(teacher_vocab=teacher_vocab, bias=True, softcap=5.0, scale=0.5, dtype=torch.float64)
    rule = LINEAR[kind][0](temperature, scale_by_temperature_squared=True)
    logits = world.teacher.logits()
    sparse = stored(logits, teacher_vocab, estimator, temperature, teacher_vocab)
    expected = fused_sweep(world.student, world.teacher, world.target_ids, [(rule, 0.3)])
    for teacher in (Dense(logits), sparse):
        got = fused_sweep(world.student, teacher, world.target_ids, [(rule, 0.3)])
        torch.testing.assert_close(got.values, expected.values, rtol=1e-9, atol=1e-12)
        pairs = zip(gradients(world, got.loss), gradients(world, expected.loss), strict=True)
        assert all(relative_error(g, e) < 1e-10 for g, e in pairs)


@pytest.mark.parametrize("estimator", ["unbiased", "top_k"])
@pytest.mark.parametrize("kind", LINEAR)
def test_values_and_gradients_equal_the_reference_on_ragged_entries(kind: str, estimator: Estimator) -> None:
    world = make_world(6, 20, dtype=torch.float64)
    p = torch.softmax(world.teacher.logits() / 2, -1)
    kept = [0, 1, 5, 20, 3, 0]
    ids = [p[row].topk(k).indices for row, k in enumerate(kept)]
    weights = torch.cat([p[row, i] for row, i in enumerate(ids)])
    offsets = torch.tensor([0, *kept]).cumsum(0)
    sparse = Sparse(offsets, torch.cat(ids), weights, torch.special.entr(p).sum(-1), estimator, 2.0)
    rule, plain = LINEAR[kind]
    swept = fused_sweep(
        world.student,
        sparse,
        world.target_ids,
        [(rule(2.0, scale_by_temperature_squared=True), 0.3), (HardCERule(), 0.0)],
    )
    expected = plain(world.student.logits(), sparse, scale_by_temperature_squared=True)
    torch.testing.assert_close(swept.values[0], expected.detach(), rtol=1e-10, atol=1e-12)
    for got, exact in zip(gradients(world, swept.loss), gradients(world, 0.3 * expected.sum()), strict=True):
        assert relative_error(got, exact) < 1e-10


def test_a_sample_is_worked_by_hand_and_its_weights_are_not_renormalised() -> None:
    # q = (1/4, 3/4); the sample holds token 1 twice, with 0.5 and 0.3: value 0.8 · ln(4/3), gradient 0.8 q − (0, 0.8).
    student = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log().requires_grad_()
    weights = torch.tensor([0.5, 0.3], dtype=torch.float64)
    sparse = Sparse(
        torch.tensor([0, 2]), torch.tensor([1, 1]), weights, torch.tensor([0.2], dtype=torch.float64), "unbiased"
    )
    swept = fused_sweep(
        Dense(student), sparse, torch.tensor([0]), [(SoftCERule(), 1.0), (ForwardKLRule(), torch.zeros(1))]
    )
    assert swept.values[0].item() == pytest.approx(0.8 * math.log(4 / 3), abs=1e-12)
    assert swept.values[1].item() == pytest.approx(0.8 * math.log(4 / 3) - 0.2, abs=1e-12)
    (gradient,) = torch.autograd.grad(swept.loss, student)
    torch.testing.assert_close(gradient, torch.tensor([[0.2, -0.2]], dtype=torch.float64))


def test_a_cut_distribution_is_worked_by_hand() -> None:
    # p keeps 1/2 of token 0, and 1/2 remains; q = (1/4, 1/4, 1/2): −½ ln ¼ − ½ ln ¾, less ln 2.
    student = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64).log().requires_grad_()
    sparse = Sparse(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([0.5]), torch.tensor([9.0]), "top_k")
    swept = fused_sweep(Dense(student), sparse, torch.tensor([0]), [(ForwardKLRule(), 1.0)])
    assert swept.values.item() == pytest.approx(math.log(4) / 2 - math.log(0.75) / 2 - math.log(2), abs=1e-12)
    (gradient,) = torch.autograd.grad(swept.loss, student)
    # q less (1/2, 1/6, 1/3): the remaining half falls on the others as the student has them.
    torch.testing.assert_close(gradient, torch.tensor([[-0.25, 1 / 12, 1 / 6]], dtype=torch.float64))


def test_random_samples_are_right_on_average() -> None:
    # Sampling with probability p and weight count / draws (RS-KD, arXiv 2503.16870): the mean of many stores.
    world = make_world(3, 9, dtype=torch.float64)
    student, teacher = world.student.logits(), world.teacher.logits()
    p = torch.softmax(teacher, -1)
    draws, stores = 8, 4000
    generator = torch.Generator().manual_seed(0)
    ids = torch.multinomial(p.repeat(stores, 1), draws, replacement=True, generator=generator)
    rows = ids.shape[0]
    sparse = Sparse(
        torch.arange(rows + 1) * draws,
        ids.flatten(),
        torch.full((rows * draws,), 1 / draws, dtype=torch.float64),
        torch.special.entr(p).sum(-1).repeat(stores),
        "unbiased",
    )
    leaf = student.detach().repeat(stores, 1).requires_grad_()
    swept = fused_sweep(Dense(leaf), sparse, torch.zeros(rows, dtype=torch.long), [(ForwardKLRule(), 1 / stores)])
    (gradient,) = torch.autograd.grad(swept.loss, leaf)
    exact = student.detach().requires_grad_()
    kl = forward_kl(exact, teacher)
    (derivative,) = torch.autograd.grad(kl.sum(), exact)
    torch.testing.assert_close(swept.values.view(stores, 3).mean(0), kl.detach(), rtol=0, atol=0.06)
    torch.testing.assert_close(gradient.view(stores, 3, 9).sum(0), derivative, rtol=0, atol=0.01)


@hypothesis_settings(max_examples=30)
@given(keep=st.integers(1, 11), spread=st.floats(0.1, 5.0), seed=st.integers(0, 2**16))
def test_a_cut_distribution_is_off_by_no_more_than_is_said(keep: int, spread: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (spread * torch.randn(4, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    leaf, target = student.requires_grad_(), torch.zeros(4, dtype=torch.long)
    sparse = stored(teacher, keep)
    swept = fused_sweep(Dense(leaf), sparse, target, [(ForwardKLRule(), 1.0)])
    (gradient,) = torch.autograd.grad(swept.loss, leaf)
    kl = forward_kl(leaf, teacher)
    (derivative,) = torch.autograd.grad(kl.sum(), leaf)
    remaining = 1 - sparse.weights.view(4, keep).sum(-1)
    cut = torch.ones(4, 11, dtype=torch.bool).scatter(1, sparse.ids.view(4, keep), False)
    tails = torch.zeros(4, dtype=torch.float64)
    if keep < 11:
        tails = forward_kl(leaf.detach()[cut].view(4, -1), teacher[cut].view(4, -1))
    torch.testing.assert_close(swept.values[0], kl.detach() - remaining * tails, rtol=1e-9, atol=1e-9)
    assert (swept.values[0] <= kl.detach() + 1e-9).all() and (swept.values[0] >= -1e-9).all()
    assert ((gradient - derivative).norm(dim=-1) <= math.sqrt(2) * remaining + 1e-9).all()


@pytest.mark.parametrize(
    "settings", [s for s in RESPONSE if not isinstance(s, (ForwardKL, SoftCE, HardCE))], ids=lambda s: s.kind
)
def test_what_is_not_linear_in_the_teacher_refuses_a_sample_of_it(settings: ObjectiveSettings) -> None:
    world = make_world()
    temperature = settings.temperature if isinstance(settings, SoftSettings) else 1.0
    assert isinstance(temperature, float)
    sparse = stored(world.teacher.logits(), 5, temperature=temperature)
    with pytest.raises(ValueError, match="needs every probability of the teacher's"):
        fused_sweep(world.student, sparse, world.target_ids, [(build(settings).row_rule(), 1.0)])


def test_what_a_store_cannot_serve_is_said() -> None:
    world = make_world(teacher_vocab=48)
    sparse = stored(world.teacher.logits(), 48, temperature=2.0)
    with pytest.raises(ValueError, match="token 47, and student and teacher share 37 tokens"):
        fused_sweep(world.student, sparse, world.target_ids, [(ForwardKLRule(2.0), 1.0)])
    with pytest.raises(ValueError, match="stored at temperature 2 and ForwardKLRule is at 1"):
        fused_sweep(world.student, sparse, world.target_ids, [(ForwardKLRule(), 1.0)])
    with pytest.raises(ValueError, match="rows differ: student 23, teacher 5"):
        fused_sweep(world.student, stored(torch.randn(5, 37), 3), world.target_ids, [(ForwardKLRule(), 1.0)])


def test_the_loss_of_a_batch_takes_a_stored_distribution() -> None:
    batch = make_batch()
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    objectives = [build(ForwardKL()), build(SoftCE()), build(HardCE())]
    given_ = Signals(sparse=stored(teacher, 11))
    loss = total_loss(objectives, Signals(dense=Dense(student)), given_, batch, torch.tensor([5, 5, 5]))
    expected = torch.stack([forward_kl(student, teacher).sum(), soft_ce(student, teacher).sum()])
    torch.testing.assert_close(loss.sums[:2], expected)


def test_weights_in_half_precision_are_summed_in_full() -> None:
    world = make_world(4, 12)
    sparse = stored(world.teacher.logits(), 12, "unbiased")
    half = replace(sparse, weights=sparse.weights.half(), ids=sparse.ids.int())
    got = fused_sweep(world.student, half, world.target_ids, [(SoftCERule(), 1.0)]).values
    exact = replace(sparse, weights=half.weights.double())
    torch.testing.assert_close(
        got[0].double(), sparse_soft_ce(world.student.logits().double(), exact).detach(), rtol=1e-6, atol=1e-6
    )

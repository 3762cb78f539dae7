"""The fused sweep equals whole logits, does no more work than it says, and never holds [N,V]."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives.worlds import World, make_world, products, recorded, relative_error
from torch import Tensor

from potstill.objectives import fused_sweep
from potstill.objectives.divergences import forward_kl, hard_ce, mass_on_cut_rows
from potstill.objectives.response import ForwardKLRule, HardCERule
from potstill.objectives.sweep import engine
from potstill.objectives.sweep import weight_gradient as sums
from potstill.objectives.sweep.rows import Rows
from potstill.signals import Dense, Head

KL, KL_AT_2, CE = ForwardKLRule(), ForwardKLRule(2.0, scale_by_temperature_squared=True), HardCERule()
RULES = {
    "forward_kl": [(KL, 0.1)],
    "forward_kl at T=2": [(KL_AT_2, 0.1)],
    "hard_ce": [(CE, 0.3)],
    "both": [(KL, 0.1), (CE, 0.3)],
    "both, T=2": [(CE, 0.3), (KL_AT_2, 0.1)],
}
WORLDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "soft-cap": {"softcap": 3.0},
    "scale": {"scale": 0.0625},
    "bias, soft-cap and scale": {"bias": True, "softcap": 2.0, "scale": 0.5},
    "other width": {"teacher_width": 13},
    "teacher padded": {"teacher_vocab": 48},
    "student padded": {"teacher_vocab": 30, "bias": True, "softcap": 3.0},
}


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Chunks of at most 5 rows, tiles of one, on one thread and on two."""
    monkeypatch.setattr(engine, "MOST_CHUNK_ROWS", 5)
    monkeypatch.setattr(engine, "TILE_BYTES", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(threads)


def whole_logits(world: World, rules: list[tuple[Any, Any]]) -> Tensor:
    """The same loss from [N,V] and autograd."""
    student, teacher = world.student.logits(), world.teacher.logits()
    loss = student.new_zeros(())
    for rule, coefficient in rules:
        if rule is CE:
            values = hard_ce(student, world.target_ids)
        else:
            values = forward_kl(student, teacher, rule.temperature, scale_by_temperature_squared=rule is KL_AT_2)
        loss = loss + (coefficient * values).sum()
    return loss


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("shape", WORLDS.values(), ids=WORLDS)
def test_values_and_gradients_equal_those_of_whole_logits(shape: dict[str, Any], rules: list[tuple[Any, Any]]) -> None:
    world = make_world(**shape, dtype=torch.float64)
    loss = fused_sweep(world.student, world.teacher, world.target_ids, rules).loss
    expected = whole_logits(world, rules)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    got = torch.autograd.grad(loss, world.leaves())
    for gradient, reference in zip(got, torch.autograd.grad(expected, world.leaves()), strict=True):
        assert relative_error(gradient, reference) < 1e-12


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 40),
    vocab=st.integers(2, 50),
    teacher_vocab=st.integers(2, 50),
    chunk=st.integers(1, 17),
    temperature=st.floats(0.25, 8.0),
    seed=st.integers(0, 2**16),
)
def test_no_size_of_chunk_changes_the_result(
    rows: int, vocab: int, teacher_vocab: int, chunk: int, temperature: float, seed: int
) -> None:
    world = make_world(rows, vocab, teacher_vocab=teacher_vocab, dtype=torch.float64, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "MOST_CHUNK_ROWS", chunk)
        loss = fused_sweep(world.student, world.teacher, world.target_ids, [(ForwardKLRule(temperature), 1.0)]).loss
    expected = forward_kl(world.student.logits(), world.teacher.logits(), temperature).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    got = torch.autograd.grad(loss, world.leaves())
    for gradient, reference in zip(got, torch.autograd.grad(expected, world.leaves()), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("small_chunks")
def test_gradients_equal_finite_differences() -> None:
    world = make_world(6, 7, 3, bias=True, softcap=2.0, scale=0.7, teacher_vocab=6, dtype=torch.float64)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        head = replace(world.student, hidden=hidden, weight=weight, bias=bias)
        return fused_sweep(head, world.teacher, world.target_ids, [(KL_AT_2, 0.7), (CE, 0.2)]).loss

    assert torch.autograd.gradcheck(loss, world.leaves())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_student_like_its_teacher_has_exactly_no_loss_and_no_gradient(temperature: float) -> None:
    world = make_world()
    teacher = replace(world.student, hidden=world.student.hidden.detach(), weight=world.student.weight.detach())
    swept = fused_sweep(world.student, teacher, world.target_ids, [(ForwardKLRule(temperature), 1.0)])
    swept.loss.backward()
    assert swept.values.abs().max() == 0 and swept.loss == 0
    assert all(leaf.grad is not None and leaf.grad.abs().max() == 0 for leaf in world.leaves())


def test_one_sweep_of_two_objectives_is_the_sum_of_two_sweeps() -> None:
    world = make_world(vocab=211)
    both = fused_sweep(world.student, world.teacher, world.target_ids, [(KL_AT_2, 0.1), (CE, 0.3)])
    alone = [
        fused_sweep(world.student, world.teacher, world.target_ids, [rule]) for rule in [(KL_AT_2, 0.1), (CE, 0.3)]
    ]
    for row, one in enumerate(alone):
        torch.testing.assert_close(both.values[row], one.values[0], rtol=0, atol=0)
    gradients = [torch.autograd.grad(one.loss, world.leaves()) for one in alone]
    for got, first, second in zip(torch.autograd.grad(both.loss, world.leaves()), *gradients, strict=True):
        assert relative_error(got, first + second) < 1e-6


def test_two_objectives_share_the_products_and_the_students_exponentials() -> None:
    world = make_world()

    def operations_of(rules: list[tuple[Any, float]]) -> Counter[str]:
        with recorded() as (operations, _):
            fused_sweep(world.student, world.teacher, world.target_ids, rules).loss.backward()
        return operations

    alone, both = operations_of([(KL, 1.0)]), operations_of([(KL, 1.0), (CE, 1.0)])
    assert products(alone) == products(both) == 4
    assert alone["exp2_"] == both["exp2_"] == 2
    assert alone["softmax"] == both["softmax"] == alone["log_softmax"] == both["log_softmax"] == 0


def test_a_rule_that_took_the_softmax_first_changes_nothing_of_the_next_one() -> None:
    class Confidence:
        needs_teacher = False

        def __call__(self, rows: Rows, coefficient: Tensor) -> Tensor:
            return rows.student_softmax().square().sum(-1)

    world = make_world()
    teacher = Head(world.student.hidden.detach(), world.student.weight.detach())
    swept = fused_sweep(world.student, teacher, world.target_ids, [(Confidence(), 0.0), (KL, 1.0)])
    assert swept.values[1].abs().max() == 0
    assert all(gradient.abs().max() == 0 for gradient in torch.autograd.grad(swept.loss, world.leaves()))


def test_no_weight_of_a_row_means_no_gradient_from_it() -> None:
    world = make_world()
    weights = (torch.arange(23) % 3 > 0).float()
    loss = fused_sweep(world.student, world.teacher, world.target_ids, [(KL, weights), (CE, weights)]).loss
    kept = world.rows(weights > 0)
    sliced = fused_sweep(kept.student, kept.teacher, kept.target_ids, [(KL, 1.0), (CE, 1.0)]).loss
    torch.testing.assert_close(loss, sliced)
    got, expected = (torch.autograd.grad(one, world.leaves()) for one in (loss, sliced))
    assert got[0][weights == 0].abs().max() == 0
    for gradient, reference in zip(got, expected, strict=True):
        assert relative_error(gradient, reference) < 1e-6


@pytest.mark.parametrize("cuts", [[23], [11, 12], [1, 2, 20], [1] * 23], ids=str)
def test_splitting_the_rows_changes_nothing(cuts: list[int]) -> None:
    world = make_world(vocab=301, width=32)
    whole = torch.autograd.grad(
        fused_sweep(world.student, world.teacher, world.target_ids, [(KL, 1 / 23), (CE, 1 / 23)]).loss, world.leaves()
    )
    split = [torch.zeros_like(g) for g in whole]
    for piece in torch.arange(23).split(cuts):
        part = world.rows(piece)
        loss = fused_sweep(part.student, part.teacher, part.target_ids, [(KL, 1 / 23), (CE, 1 / 23)]).loss
        for total, gradient in zip(split, torch.autograd.grad(loss, world.leaves()), strict=True):
            total.add_(gradient)
    for got, reference in zip(split, whole, strict=True):
        assert relative_error(got, reference) < 1e-6


def test_the_teacher_gets_no_gradient() -> None:
    world = make_world()
    hidden, weight = (t.requires_grad_() for t in (world.teacher.hidden, world.teacher.weight))
    fused_sweep(
        world.student, replace(world.teacher, hidden=hidden, weight=weight), world.target_ids, [(KL, 1.0)]
    ).loss.backward()
    assert hidden.grad is None and weight.grad is None
    assert all(leaf.grad is not None for leaf in world.leaves())


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "shape", [WORLDS["bias, soft-cap and scale"], WORLDS["student padded"]], ids=["same", "padded"]
)
def test_head_and_dense_give_equal_values_and_gradients(shape: dict[str, Any]) -> None:
    world = make_world(**shape, dtype=torch.float64)
    rules = RULES["both, T=2"]
    from_head = fused_sweep(world.student, world.teacher, world.target_ids, rules)
    expected = torch.autograd.grad(from_head.loss, world.leaves())
    for student, teacher in (
        (Dense(world.student.logits()), world.teacher),
        (world.student, Dense(world.teacher.logits())),
        (Dense(world.student.logits()), Dense(world.teacher.logits())),
    ):
        from_dense = fused_sweep(student, teacher, world.target_ids, rules)
        torch.testing.assert_close(from_dense.values, from_head.values, rtol=1e-12, atol=1e-14)
        for got, reference in zip(torch.autograd.grad(from_dense.loss, world.leaves()), expected, strict=True):
            assert relative_error(got, reference) < 1e-12


def test_dense_logits_are_left_as_they_were() -> None:
    world = make_world()
    student, teacher = world.student.logits().detach().requires_grad_(), world.teacher.logits()
    before = student.detach().clone(), teacher.clone()
    fused_sweep(Dense(student), Dense(teacher), world.target_ids, RULES["both"]).loss.backward()
    assert torch.equal(student.detach(), before[0]) and torch.equal(teacher, before[1])


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [((), 4), (("weight",), 3), (("hidden",), 3), (("hidden", "weight"), 2)],
    ids=["none", "head", "hidden", "both"],
)
def test_what_is_frozen_costs_no_product(freeze: tuple[str, ...], expected: int) -> None:
    world = make_world()
    head = replace(world.student, **{name: getattr(world.student, name).detach() for name in freeze})
    with recorded() as (operations, _):
        loss = fused_sweep(head, world.teacher, world.target_ids, [(KL, 1.0)]).loss
        if len(freeze) < 2:
            loss.backward()
    assert products(operations) == expected
    assert loss.requires_grad == (len(freeze) < 2)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode_there_is_no_gradient_work(context: Callable[[], Any]) -> None:
    world = make_world()
    with recorded() as (operations, _), context():
        loss = fused_sweep(world.student, world.teacher, world.target_ids, RULES["both"]).loss
    assert not loss.requires_grad
    assert products(operations) == 2
    gradient_work = ("addcmul", "addcmul_", "scatter_add_", "empty_like")
    assert not any(operations[name] for name in gradient_work)
    with recorded() as (operations, _):
        fused_sweep(world.student, world.teacher, world.target_ids, RULES["both"])
    assert all(operations[name] for name in gradient_work)


@pytest.mark.usefixtures("small_chunks")
def test_no_array_of_rows_by_vocabulary_is_ever_made() -> None:
    rows, vocab, width = 64, 1000, 4
    world = make_world(rows, vocab, width)
    with recorded() as (_, sizes):
        fused_sweep(world.student, world.teacher, world.target_ids, RULES["both, T=2"]).loss.backward()
    assert max(sizes) == 5 * vocab
    with recorded() as (_, sizes):
        whole_logits(world, RULES["both, T=2"]).backward()
    assert max(sizes) == rows * vocab


@pytest.mark.parametrize("block", [4096, 5])
def test_a_bf16_weight_gradient_is_summed_in_fp32(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # A chunk with a large gradient, then thirty with a small one: a bf16 sum would not move any more. A chunk of narrow
    # products has two rows.
    monkeypatch.setattr(engine, "MOST_CHUNK_ROWS", 1)
    monkeypatch.setattr(sums, "_BLOCK_ROWS", block)
    one = make_world(1, 16, 4, dtype=torch.bfloat16)
    many = one.rows(torch.zeros(62, dtype=torch.long))
    coefficients = torch.tensor([1000.0, 0.0] + [1.0, 0.0] * 30)

    def weight_gradient(world: World, coefficient: Tensor | float) -> Tensor:
        loss = fused_sweep(world.student, world.teacher, world.target_ids, [(KL, coefficient)]).loss
        return torch.autograd.grad(loss, one.student.weight)[0]

    summed, single = weight_gradient(many, coefficients), weight_gradient(one, 1.0)
    assert summed.dtype == torch.bfloat16
    assert relative_error(summed, single.double() * 1030) < 2**-8


@pytest.mark.parametrize(
    ("dtype", "frozen", "expected"),
    [
        (torch.float32, False, 5),  # 10 rows in chunks of 5
        (torch.bfloat16, False, 10),  # twice as many, narrow
        (torch.bfloat16, True, 7),  # no sum of a weight's gradient gives its room: 20 rows in chunks of 7
    ],
)
def test_chunks_are_as_large_as_dtype_and_gradients_allow(
    dtype: torch.dtype, frozen: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, vocab, width = 20 if dtype == torch.bfloat16 else 10, 1000, 16
    monkeypatch.setattr(engine, "MOST_CHUNK_ROWS", 5)
    monkeypatch.setattr(engine, "BUFFER_BYTES", 7 * 2 * vocab * dtype.itemsize)
    monkeypatch.setattr(engine, "FEW_CHUNK_ROWS", 1)
    world = make_world(rows, vocab, width, dtype=dtype)
    student = replace(world.student, weight=world.student.weight.detach()) if frozen else world.student
    with recorded() as (_, sizes):
        fused_sweep(student, world.teacher, world.target_ids, [(KL, 1.0)])
    assert max(size for size in sizes if size % vocab == 0 and size != vocab * width) == expected * vocab


def test_under_autocast_products_are_in_its_dtype_and_statistics_in_fp32() -> None:
    world = make_world(64, 257, 32, scale=0.2)
    exact = fused_sweep(world.student, world.teacher, world.target_ids, RULES["both"])
    with torch.autocast("cpu", torch.bfloat16):
        swept = fused_sweep(world.student, world.teacher, world.target_ids, RULES["both"])
        in_bf16 = torch.nn.functional.linear(world.student.hidden, world.student.weight)
    assert swept.values.dtype == torch.float32
    # The logits are those of an autocast model, rounded once; what follows is exact to fp32.
    torch.testing.assert_close(swept.values[1], hard_ce(in_bf16.detach().float() * 0.2, world.target_ids))
    got, expected = (torch.autograd.grad(one.loss, world.leaves()) for one in (swept, exact))
    for gradient, reference in zip(got, expected, strict=True):
        assert gradient.dtype == torch.float32
        assert 0 < relative_error(gradient, reference) < 0.02


def test_the_incoming_gradient_multiplies() -> None:
    world = make_world()
    plain = torch.autograd.grad(
        fused_sweep(world.student, world.teacher, world.target_ids, RULES["both"]).loss, world.leaves()
    )
    loss = fused_sweep(world.student, world.teacher, world.target_ids, RULES["both"]).loss
    for got, reference in zip(torch.autograd.grad(3.0 * loss, world.leaves()), plain, strict=True):
        torch.testing.assert_close(got, 3.0 * reference)


def test_a_retained_graph_can_be_gone_through_again_and_accumulates() -> None:
    world = make_world()
    loss = fused_sweep(world.student, world.teacher, world.target_ids, RULES["both"]).loss
    loss.backward(retain_graph=True)
    once = [leaf.grad.clone() for leaf in world.leaves() if leaf.grad is not None]
    (2.0 * loss).backward(retain_graph=True)
    loss.backward()
    for leaf, first in zip(world.leaves(), once, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, 4.0 * first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_reach_what_the_head_was_made_of() -> None:
    # An adapter on the head: weight = base + up @ down, so the leaf of the sweep is no leaf of the graph.
    world = make_world(dtype=torch.float64)
    up = torch.randn(37, 2, dtype=torch.float64, requires_grad=True)
    down = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    adapted = replace(world, student=replace(world.student, weight=world.student.weight.detach() + up @ down))
    loss = fused_sweep(adapted.student, adapted.teacher, adapted.target_ids, RULES["both"]).loss
    got = torch.autograd.grad(loss, (up, down), retain_graph=True)
    expected = torch.autograd.grad(whole_logits(adapted, RULES["both"]), (up, down))
    for gradient, reference in zip(got, expected, strict=True):
        assert relative_error(gradient, reference) < 1e-12


def test_mass_on_cut_rows_is_reported_for_both_sides() -> None:
    world = make_world(teacher_vocab=48)
    swept = fused_sweep(world.student, world.teacher, world.target_ids, RULES["forward_kl at T=2"])
    assert swept.student_cut_mass is not None and swept.teacher_cut_mass is not None
    assert swept.student_cut_mass.abs().max() == 0
    torch.testing.assert_close(swept.teacher_cut_mass, mass_on_cut_rows(world.teacher.logits(), 37))
    same = make_world()
    assert fused_sweep(same.student, same.teacher, same.target_ids, RULES["both"]).teacher_cut_mass is None


def test_hard_ce_keeps_all_rows_of_a_padded_student() -> None:
    world = make_world(teacher_vocab=30)
    got = fused_sweep(world.student, world.teacher, world.target_ids, [(CE, 1.0)]).values[0]
    torch.testing.assert_close(got, hard_ce(world.student.logits(), world.target_ids).detach())


def test_without_rows_the_loss_is_zero_and_so_are_the_gradients() -> None:
    world = make_world(rows=0)
    loss = fused_sweep(world.student, world.teacher, world.target_ids, [(KL, 1.0), (CE, 1.0)]).loss
    loss.backward()
    assert loss == 0
    assert world.student.weight.grad is not None and world.student.weight.grad.abs().max() == 0


def test_rows_that_do_not_align_are_refused() -> None:
    world = make_world()
    with pytest.raises(ValueError, match="rows differ: student 23, teacher 5, targets 23"):
        fused_sweep(world.student, world.rows(slice(5)).teacher, world.target_ids, [(KL, 1.0)])
    with pytest.raises(ValueError, match="rows differ"):
        fused_sweep(world.student, world.teacher, world.target_ids[:4], [(KL, 1.0)])


def test_a_rule_that_needs_a_teacher_is_refused_without_one() -> None:
    world = make_world()
    with pytest.raises(ValueError, match="no teacher"):
        fused_sweep(world.student, None, world.target_ids, [(KL, 1.0)])


@pytest.mark.parametrize("given", [True, False], ids=["teacher given", "no teacher"])
def test_a_teacher_that_no_rule_asks_is_not_projected(given: bool) -> None:
    world = make_world()
    with recorded() as (operations, _):
        alone = fused_sweep(world.student, world.teacher if given else None, world.target_ids, [(CE, 1.0)])
    assert products(operations) == 3
    torch.testing.assert_close(alone.values[0], hard_ce(world.student.logits(), world.target_ids).detach())

"""1 − cos of hidden states: by hand, by finite differences, over targets and tokens, across widths."""

from __future__ import annotations

import pytest
import torch
from objectives.worlds import make_batch

from potstill.objectives import HiddenCosineLoss, hidden_cosine
from potstill.recipe.features import HiddenCosine
from potstill.registry import build
from potstill.signals import Dims, Head, ModelDims, Signals


def dims(student: int, teacher: int) -> Dims:
    return Dims(*(ModelDims(vocab=11, hidden=h, layers=2, heads=1, kv_heads=1) for h in (student, teacher)))


def test_aligned_orthogonal_and_opposed_states() -> None:
    student = torch.tensor([[2.0, 0.0], [3.0, 0.0], [1.0, 1.0], [3.0, 4.0]])
    teacher = torch.tensor([[0.5, 0.0], [0.0, 7.0], [-2.0, -2.0], [4.0, 3.0]])
    torch.testing.assert_close(hidden_cosine(student, teacher), torch.tensor([0.0, 1.0, 2.0, 1 - 24 / 25]))


def test_its_gradient_equals_finite_differences_and_none_goes_to_the_teacher() -> None:
    torch.manual_seed(0)
    student = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: hidden_cosine(s, teacher.detach()), (student,))
    hidden_cosine(student, teacher).sum().backward()
    assert teacher.grad is None and student.grad is not None


def test_descending_it_aligns_the_states() -> None:
    # The sign: a published recipe prints −cos, and the loss must fall as the states align.
    student, teacher = torch.tensor([[1.0, 0.2]], requires_grad=True), torch.tensor([[0.1, 1.0]])
    before = hidden_cosine(student, teacher)
    (gradient,) = torch.autograd.grad(before.sum(), student)
    assert hidden_cosine(student.detach() - 0.5 * gradient, teacher) < before


def test_bf16_states_are_compared_in_fp32() -> None:
    states = torch.randn(5, 64).bfloat16()
    values = hidden_cosine(states, states)
    assert values.dtype == torch.float32 and values.abs().max() < 1e-6


def test_over_targets_it_reads_what_the_head_reads_and_over_tokens_all_that_is_no_padding() -> None:
    torch.manual_seed(0)
    batch = make_batch()
    states, aims = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    targets = batch.target_positions["student"]
    loss = build(HiddenCosine())
    assert isinstance(loss, HiddenCosineLoss)
    heads = [Signals(head=Head(s.flatten(0, 1)[targets], torch.randn(11, 4))) for s in (states, aims)]
    taps = [Signals(taps={"hidden.0": torch.zeros(2, 6, 4), "hidden.2": s}) for s in (states, aims)]
    everywhere = hidden_cosine(states.flatten(0, 1), aims.flatten(0, 1))
    for student, teacher in (heads, taps, (heads[0], taps[1])):
        torch.testing.assert_close(loss(student, teacher, batch).values, everywhere[targets])
    assert loss.count(batch) == len(targets) == 5
    over_tokens = build(HiddenCosine(over="tokens"))
    kept = torch.tensor([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]).bool()
    torch.testing.assert_close(over_tokens(*taps, batch).values, everywhere[kept])
    assert over_tokens.count(batch) == 10


def test_pairs_of_layers_are_taken_as_they_are_named() -> None:
    torch.manual_seed(0)
    batch = make_batch()
    student = {f"hidden.{k}": torch.randn(2, 6, 4) for k in range(3)}
    teacher = {f"hidden.{k}": torch.randn(2, 6, 4) for k in range(5)}
    loss = build(HiddenCosine(layers=((1, 2), (2, 4)), over="tokens"))
    kept = batch.positions("tokens", "student")

    def pair(s: int, t: int) -> torch.Tensor:
        return hidden_cosine(student[f"hidden.{s}"].flatten(0, 1)[kept], teacher[f"hidden.{t}"].flatten(0, 1)[kept])

    values = loss(Signals(taps=student), Signals(taps=teacher), batch).values
    torch.testing.assert_close(values, (pair(1, 2) + pair(2, 4)) / 2)


def test_where_widths_differ_a_projection_is_trained_along() -> None:
    torch.manual_seed(0)
    batch = make_batch()
    loss = build(HiddenCosine(layers=((0, 0), (1, 3)), over="tokens"))
    assert loss.build(dims(4, 4)) is None
    module = loss.build(dims(4, 6))
    assert module is not None
    assert [tuple(p.shape) for p in module.parameters()] == [(6, 4), (6, 4)]
    student = Signals(taps={f"hidden.{k}": torch.randn(2, 6, 4, requires_grad=True) for k in range(2)})
    teacher = Signals(taps={f"hidden.{k}": torch.randn(2, 6, 6) for k in range(4)})
    loss(student, teacher, batch, module).values.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def test_a_state_that_is_not_there_is_named() -> None:
    batch = make_batch()
    given = Signals(taps={"hidden.0": torch.zeros(2, 6, 4)})
    with pytest.raises(ValueError, match=r"the student gives no hidden\.3; it gives \['hidden\.0'\]"):
        build(HiddenCosine(layers=((3, 0),)))(given, given, batch)
    with pytest.raises(ValueError, match="needs a teacher"):
        build(HiddenCosine())(given, None, batch)

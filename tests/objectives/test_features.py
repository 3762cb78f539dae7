"""Distances of hidden states: by hand, over targets and tokens, across widths and pairs of layers."""

from __future__ import annotations

import pytest
import torch
from objectives.worlds import make_batch
from torch import Tensor, nn

from potstill.objectives import HiddenCosineLoss, hidden_cosine, hidden_mse, hidden_smooth_l1
from potstill.recipe.features import HiddenCosine, HiddenMSE
from potstill.registry import build
from potstill.signals import Dims, ModelDims, Signals


def model(width: int, layers: int = 2) -> ModelDims:
    return ModelDims(vocab=11, hidden=width, layers=layers, heads=1, kv_heads=1)


def dims(student: int, teacher: int) -> Dims:
    return Dims(model(student), model(teacher))


def states(width: int, layers: int = 2) -> Signals:
    return Signals(taps={f"hidden.{k}": torch.randn(2, 6, width) for k in range(layers + 1)}, dims=model(width, layers))


def rows(signals: Signals, layer: int, kept: Tensor) -> Tensor:
    return signals.taps[f"hidden.{layer}"].flatten(0, 1)[kept]


def test_aligned_orthogonal_and_opposed_states() -> None:
    student = torch.tensor([[2.0, 0.0], [3.0, 0.0], [1.0, 1.0], [3.0, 4.0]])
    teacher = torch.tensor([[0.5, 0.0], [0.0, 7.0], [-2.0, -2.0], [4.0, 3.0]])
    torch.testing.assert_close(hidden_cosine(student, teacher), torch.tensor([0.0, 1.0, 2.0, 1 - 24 / 25]))


def test_squared_and_smooth_distances_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, 2.0], [1.0, -1.0]])
    # Differences: 2 and 0; 1 and −1.
    torch.testing.assert_close(hidden_mse(student, teacher), torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(hidden_smooth_l1(student, teacher, delta=1.0), torch.tensor([1.5 / 2, 0.5]))
    torch.testing.assert_close(hidden_smooth_l1(student, teacher, delta=2.0), torch.tensor([1.0 / 2, 0.25]))


@pytest.mark.parametrize("distance", [hidden_cosine, hidden_mse, hidden_smooth_l1], ids=lambda d: d.__name__)
def test_gradients_equal_finite_differences(distance) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: distance(s, teacher), (student.requires_grad_(),))


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


def test_over_targets_and_over_tokens() -> None:
    torch.manual_seed(0)
    batch, student, teacher = make_batch(), states(4), states(4)
    targets = batch.target_positions["student"]
    loss = build(HiddenCosine())
    assert isinstance(loss, HiddenCosineLoss)
    expected = hidden_cosine(rows(student, 2, targets), rows(teacher, 2, targets))
    torch.testing.assert_close(loss(student, teacher, batch).values, expected)
    assert loss.count(batch) == len(targets) == 5
    over_tokens = build(HiddenCosine(over="tokens"))
    kept = torch.tensor([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]).bool()
    expected = hidden_cosine(rows(student, 2, kept), rows(teacher, 2, kept))
    torch.testing.assert_close(over_tokens(student, teacher, batch).values, expected)
    assert over_tokens.count(batch) == 10


def test_pairs_of_layers_are_taken_as_they_are_named() -> None:
    torch.manual_seed(0)
    batch, student, teacher = make_batch(), states(4), states(4, layers=4)
    loss = build(HiddenCosine(layers=((1, 2), (2, 4)), over="tokens"))
    kept = batch.positions("tokens", "student")
    pairs = [hidden_cosine(rows(student, s, kept), rows(teacher, t, kept)) for s, t in ((1, 2), (2, 4))]
    torch.testing.assert_close(loss(student, teacher, batch).values, (pairs[0] + pairs[1]) / 2)


def test_where_widths_differ_a_projection_is_trained_along() -> None:
    torch.manual_seed(0)
    batch, student, teacher = make_batch(), states(4), states(6)
    loss = build(HiddenCosine(layers=((0, 0), (1, 2)), over="tokens"))
    assert loss.build(dims(4, 4)) is None
    module = loss.build(dims(4, 6))
    assert module is not None
    assert [tuple(p.shape) for p in module.parameters()] == [(6, 4), (6, 4)]
    loss(student, teacher, batch, module).values.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def test_a_projection_may_be_taken_always_and_shared_by_all_pairs() -> None:
    torch.manual_seed(0)
    batch, student, teacher = make_batch(), states(4), states(4)
    loss = build(HiddenMSE(layers="uniform", over="tokens", project="always", share_projection=True))
    module = loss.build(dims(4, 4))
    assert module is not None
    (weight,) = module.parameters()
    assert weight.shape == (4, 4)
    kept = batch.positions("tokens", "student")
    pairs = [hidden_mse(rows(student, k, kept) @ weight.T, rows(teacher, k, kept)) for k in range(3)]
    torch.testing.assert_close(loss(student, teacher, batch, module).values, torch.stack(pairs).mean(0))
    before = weight.detach().clone()
    loss.initialise(module, student, teacher, batch)
    assert torch.equal(weight, before)  # random is the default


def test_projections_may_start_at_the_teachers_principal_components() -> None:
    # Each for its own pair, of the rows that the loss is over; one for all where it is shared.
    torch.manual_seed(0)
    batch, student, teacher = make_batch(), states(2), states(6)
    kept = batch.positions("tokens", "teacher")
    for shared in (False, True):
        loss = build(HiddenMSE(layers="uniform", over="tokens", projection_init="pca", share_projection=shared))
        module = loss.build(dims(2, 6))
        assert module is not None
        loss.initialise(module, student, teacher, batch)
        aims = [rows(teacher, k, kept) for k in range(3)]
        for projection, aim in zip(module.children(), [torch.cat(aims)] if shared else aims, strict=True):
            assert isinstance(projection, nn.Linear)
            energy, directions = torch.linalg.eigh(aim.T @ aim)
            for column, direction in zip(projection.weight.T, directions.T.flip(0), strict=False):
                torch.testing.assert_close((column @ direction).abs(), torch.tensor(1.0), rtol=1e-4, atol=0)
            assert energy[-1] > energy[-2] > energy[-3]


def test_a_state_that_is_not_there_is_named() -> None:
    batch = make_batch()
    given = Signals(taps={"hidden.0": torch.zeros(2, 6, 4)}, dims=model(4))
    with pytest.raises(ValueError, match=r"the student gives no hidden\.2; it gives \['hidden\.0'\]"):
        build(HiddenCosine(layers=((2, 0),)))(given, given, batch)
    with pytest.raises(ValueError, match="needs a teacher"):
        build(HiddenCosine())(given, None, batch)
    with pytest.raises(ValueError, match="the sizes"):
        build(HiddenCosine())(Signals(taps=given.taps), given, batch)

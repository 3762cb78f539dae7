"""Attention transfer and hints: by hand, and a regressor that learns its sizes from the first batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from objectives.tables import packed_batch, text_batch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from potstill.errors import ModelError
from potstill.objectives import attention_transfer, hint
from potstill.objectives.modules import attention_map
from potstill.objectives.projections import Regressor
from potstill.recipe.features import AttentionTransfer, Hint, Modules
from potstill.registry import build
from potstill.signals import Batch, Dims, ImageView, ModelDims, Signals

PLAIN = ModelDims(vocab=10, hidden=0, layers=0, heads=0, kv_heads=0)
PAIR = Modules(student="conv1", teacher="layer1.0")


def image_batch(number: int = 2) -> Batch:
    view = ImageView(torch.zeros(number, 1, 8, 8))
    return Batch(view, view, torch.zeros(0).long(), {}, "examples")


def given(student: Tensor, teacher: Tensor) -> tuple[Signals, Signals]:
    taps = {"module:conv1": student}, {"module:layer1.0": teacher}
    return Signals(taps=taps[0], dims=PLAIN), Signals(taps=taps[1], dims=PLAIN)


def test_attention_transfer_by_hand() -> None:
    maps = torch.tensor([[[[3.0, 0.0]], [[0.0, -4.0]]]])  # two channels over a map of 1 × 2
    torch.testing.assert_close(attention_map(maps, power=1.0), torch.tensor([[0.6, 0.8]]))
    # p = 2: 9 and 16 over 2 channels, of which the length is divided out.
    length = (9**2 + 16**2) ** 0.5
    torch.testing.assert_close(attention_map(maps), torch.tensor([[9 / length, 16 / length]]))
    aim = torch.tensor([[[[5.0, 0.0]]]])
    torch.testing.assert_close(attention_transfer(maps, aim, 1.0), torch.tensor([(0.4**2 + 0.8**2) / 2]))
    opposite = attention_transfer(torch.tensor([[[[0.0, 2.0]]]]), aim)
    torch.testing.assert_close(opposite, torch.tensor([1.0]))


def test_hints_by_hand() -> None:
    student, teacher = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]]), torch.tensor([[[[3.0, 2.0]]], [[[1.0, 1.0]]]])
    torch.testing.assert_close(hint(student, teacher), torch.tensor([2.0, 1.0]))


def test_gradients_equal_finite_differences() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: attention_transfer(s, teacher), (student,))
    assert torch.autograd.gradcheck(lambda s: attention_transfer(s, teacher, 1.0), (student,))
    assert torch.autograd.gradcheck(lambda s: hint(s, teacher), (student,))


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 4.0])
def test_a_map_at_rest_makes_no_nan(power: float) -> None:
    # As after a ReLU: some units, or all, are 0.
    student = torch.tensor([[[[0.0, 1.0]]], [[[0.0, 0.0]]]], requires_grad=True)
    values = attention_transfer(student, torch.tensor([[[[1.0, 1.0]]], [[[1.0, 1.0]]]]), power)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert values.isfinite().all() and gradient.isfinite().all() and gradient[1].abs().max() == 0
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        AttentionTransfer(modules=(PAIR,), power=0.5)


def test_pairs_of_modules_are_averaged() -> None:
    torch.manual_seed(0)
    maps = {f"module:{n}": torch.randn(2, 3, 4, 4) for n in "abcd"}
    pairs = (Modules(student="a", teacher="b"), Modules(student="c", teacher="d"))
    loss, signals = build(AttentionTransfer(modules=pairs)), Signals(taps=maps, dims=PLAIN)
    one = attention_transfer(maps["module:a"], maps["module:b"])
    two = attention_transfer(maps["module:c"], maps["module:d"])
    torch.testing.assert_close(loss(signals, signals, image_batch()).values, (one + two) / 2)


@pytest.mark.parametrize("settings", [AttentionTransfer(modules=(PAIR,)), Hint(modules=PAIR)], ids=lambda s: s.kind)
def test_maps_of_other_sizes_are_refused_by_name(settings: AttentionTransfer | Hint) -> None:
    signals = given(torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 4, 4))
    sizes = r"student's conv1 has the shape \[2, 3, 8, 8\], and that of the teacher's layer1.0 \[2, 5, 4, 4\]"
    with pytest.raises(ModelError, match=sizes + r"\n.*all but their channels"):
        build(settings)(*signals, image_batch())


def test_attention_transfer_is_of_maps() -> None:
    signals = given(torch.zeros(2, 6, 8), torch.zeros(2, 6, 8))
    with pytest.raises(ModelError, match=r"conv1 has the shape \[2, 6, 8\] and is no map"):
        build(AttentionTransfer(modules=(PAIR,)))(*signals, image_batch())


@pytest.mark.parametrize("shape", [(4, 4), (), (7,)], ids=["maps", "vectors", "tokens"])
def test_a_hint_goes_through_a_regressor_made_of_the_first_batch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    wide = (2, 5, *shape) if len(shape) != 1 else (2, *shape, 5)
    narrow = (2, 3, *shape) if len(shape) != 1 else (2, *shape, 3)
    student, teacher, batch = torch.randn(narrow, requires_grad=True), torch.randn(wide), image_batch()
    loss = build(Hint(modules=PAIR))
    module = loss.build(Dims(PLAIN, PLAIN))
    assert not list(module.parameters())
    with pytest.raises(RuntimeError, match="no sizes yet"):
        loss(*given(student, teacher), batch, module)
    loss.initialise(module, *given(student, teacher), batch)
    weight, bias = module.parameters()
    assert weight.shape == (5, 3) and bias.shape == (5,)
    values = loss(*given(student, teacher), batch, module).values
    if len(shape) == 2:
        mapped = torch.nn.functional.conv2d(student, weight[:, :, None, None], bias)  # FitNets' 1×1 convolution
        torch.testing.assert_close(values, hint(mapped, teacher))
    values.sum().backward()
    assert student.grad is not None and student.grad.abs().max() > 0
    assert weight.grad is not None and weight.grad.abs().max() > 0


def test_where_the_channels_agree_nothing_is_made() -> None:
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    loss = build(Hint(modules=PAIR))
    module = loss.build(Dims(PLAIN, PLAIN))
    loss.initialise(module, *given(student, teacher), image_batch())
    assert not list(module.parameters()) and module.channels.tolist() == [3, 3]
    torch.testing.assert_close(loss(*given(student, teacher), image_batch(), module).values, hint(student, teacher))


@pytest.mark.parametrize("channels", [(3, 5), (4, 4)])
def test_a_regressor_comes_back_from_a_checkpoint(channels: tuple[int, int], tmp_path: Path) -> None:
    made, fresh, again = Regressor(), Regressor(), Regressor()
    made.materialise(*channels)
    save_file(made.state_dict(), tmp_path / "projectors.safetensors")
    state = load_file(tmp_path / "projectors.safetensors")
    again.materialise(*channels)
    for into in (fresh, again):
        assert into.state_dict()  # so that there is something to restore, made or not
        whole = torch.nn.ModuleDict({"hint": into})
        whole.load_state_dict({f"hint.{name}": weight for name, weight in state.items()})
        output = torch.randn(2, channels[0], 4, 4)
        assert torch.equal(into(output), made(output))
    if channels[0] != channels[1]:
        with pytest.raises(ModelError, match="for 3 channels of the student's, and gets 7"):
            fresh(torch.randn(2, 7, 4, 4))
    unmade = Regressor()
    unmade.load_state_dict(Regressor().state_dict())
    assert unmade.channels.tolist() == [0, 0]


def test_what_a_regressor_begins_with_is_decided_when_it_is_built() -> None:
    # The trainer builds under a seed of its own; the first batch comes when other numbers are drawn.
    weights = []
    for between in (0, 7):
        torch.manual_seed(3)
        module = Regressor()
        torch.randn(between)
        before = torch.get_rng_state()
        module.materialise(3, 5)
        assert torch.equal(torch.get_rng_state(), before)
        assert module.map is not None
        weights.append(module.map.weight)
    assert torch.equal(*weights)


def test_hints_on_texts_are_means_over_the_tokens_of_an_example() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    batch = text_batch((4, 2))
    values = build(Hint(modules=PAIR))(*given(student, teacher), batch).values
    expected = [(student[0] - teacher[0]).square().mean(), (student[1, :2] - teacher[1, :2]).square().mean()]
    torch.testing.assert_close(values, torch.stack(expected))
    with pytest.raises(ModelError, match=r"shape \[1, 3\] for 2 examples"):
        build(Hint(modules=PAIR))(*given(student[0, :1], teacher[0, :1]), packed_batch((4, 2)))

"""Rounded weights are those of a GGUF file, bit for bit; a model learns through them as if rounding changed nothing."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

from potstill.models.rounding import Bits, grids_of, round_to, round_weights, rounded
from tiny_models import tiny_model

gguf = pytest.importorskip("gguf")
STORED = {"int8": gguf.GGMLQuantizationType.Q8_0, "int4": gguf.GGMLQuantizationType.Q4_0}
BITS: tuple[Bits, ...] = get_args(Bits)

WEIGHTS = of_numpy.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.sampled_from([32, 64])),
    elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
)


@pytest.mark.parametrize("bits", BITS)
@given(weights=WEIGHTS)
def test_a_rounded_matrix_is_what_a_gguf_file_gives_back(bits: Bits, weights: np.ndarray) -> None:
    stored = gguf.quants.quantize(weights, STORED[bits])
    expected = gguf.quants.dequantize(stored, STORED[bits])
    found = round_to(torch.from_numpy(weights.copy()), bits).numpy()
    assert np.array_equal(found, expected, equal_nan=True)


@pytest.mark.parametrize("bits", BITS)
def test_a_rounded_matrix_is_not_changed_by_rounding_it_again_here_or_in_a_file(bits: Bits) -> None:
    once = round_to(torch.randn(64, 96, generator=torch.Generator().manual_seed(0)), bits)
    assert torch.equal(round_to(once, bits), once)
    again = gguf.quants.dequantize(gguf.quants.quantize(once.numpy(), STORED[bits]), STORED[bits])
    assert np.array_equal(again, once.numpy())


def test_a_block_by_hand() -> None:
    row = torch.zeros(1, 32)
    row[0, :5] = torch.tensor([-8.0, 3.4, 3.6, 7.9, -0.4])
    assert round_to(row, "int4")[0, :5].tolist() == [-8, 3, 4, 7, 0]  # 7 is the largest positive step
    assert round_to(-row, "int4")[0, :5].tolist() == [8, -3, -4, -7, 0]
    row[0, :3] = torch.tensor([127.0, -2.5, 2.5])
    assert round_to(row, "int8")[0, :3].tolist() == [127, -3, 3]


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_keeps_eight_bits(tied: bool) -> None:
    grids = grids_of(tiny_model(tied=tied), "int4")
    output = "model.embed_tokens.weight" if tied else "lm_head.weight"
    assert {name for name, grid in grids.items() if grid == "int8"} == {output}
    assert ("model.embed_tokens.weight" in grids) and not any("norm" in name for name in grids)


def test_gradients_are_those_at_the_rounded_weights_and_the_weights_stay() -> None:
    ids = torch.arange(3, 20)[None]
    model, copied = tiny_model(), tiny_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with rounded(model, "int4"):
        assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"])
        model(ids, labels=ids, use_cache=False).loss.backward()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    round_weights(copied, "int4")
    copied(ids, labels=ids, use_cache=False).loss.backward()
    gradients = dict(copied.named_parameters())
    assert all(torch.equal(weight.grad, gradients[name].grad) for name, weight in model.named_parameters())


def test_the_weights_come_back_when_something_fails_within() -> None:
    model = tiny_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="within"), rounded(model, "int8"):
        raise RuntimeError("within")
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_bits_are_counted_with_their_scales() -> None:
    linear = torch.nn.Linear(64, 64, bias=False)
    assert round_weights(linear, "int4") == pytest.approx(4.5)
    assert round_weights(torch.nn.Linear(64, 64), "int8") == pytest.approx((64 * 64 * 8.5 + 64 * 32) / (64 * 65))

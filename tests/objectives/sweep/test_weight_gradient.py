"""The gradient of an output weight is the sum of its chunks' products, rounded as seldom as can be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from potstill.objectives.sweep import weight_gradient
from potstill.objectives.sweep.weight_gradient import WeightGradient, bytes_saved_by_few

VOCAB, WIDTH, ROWS = 23, 6, 4


def chunks_of(number: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(number)

    def normal(columns: int) -> Tensor:
        return torch.randn(ROWS, columns, generator=generator).to(dtype)

    return [(normal(VOCAB), normal(WIDTH)) for _ in range(number)]


def summed(weight: Tensor, chunks: list[tuple[Tensor, Tensor]], product: torch.dtype) -> Tensor:
    total = WeightGradient(weight, product, torch.float32, len(chunks))
    for gradient, hidden in chunks:
        total.add(gradient, hidden)
    return total.take()


@pytest.fixture(params=[(4096, 2**26), (5, 1), (3, 200)], ids=["one piece", "pieces of a block", "pieces of blocks"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    block, piece = request.param
    monkeypatch.setattr(weight_gradient, "_BLOCK_ROWS", block)
    monkeypatch.setattr(weight_gradient, "_PIECE_BYTES", piece)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("number", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("leaf", [torch.bfloat16, torch.float32])
def test_each_product_is_rounded_once_and_their_sum_once(number: int, leaf: torch.dtype) -> None:
    chunks = chunks_of(number, torch.bfloat16)
    expected = torch.zeros(VOCAB, WIDTH)
    for gradient, hidden in chunks:
        expected += gradient.t() @ hidden
    got = summed(torch.empty(VOCAB, WIDTH, dtype=leaf), chunks, torch.bfloat16)
    assert got.dtype == leaf and got.shape == (VOCAB, WIDTH)
    assert torch.equal(got, expected.to(leaf))


@pytest.mark.usefixtures("cut")
def test_what_is_small_beside_the_sum_is_not_lost() -> None:
    # 1,000 and then ones: a sum in bf16 has steps of 4 there and would never move.
    one = torch.ones(1, VOCAB, dtype=torch.bfloat16), torch.ones(1, WIDTH, dtype=torch.bfloat16)
    got = summed(
        torch.empty(VOCAB, WIDTH, dtype=torch.bfloat16), [(one[0] * 1000, one[1])] + [one] * 30, torch.bfloat16
    )
    assert torch.equal(got, torch.full((VOCAB, WIDTH), 1030.0).bfloat16())


@pytest.mark.parametrize(("number", "wide"), [(1, False), (2, False), (3, True)])
def test_one_or_two_products_take_no_fp32_array(number: int, wide: bool) -> None:
    made: set[torch.dtype] = set()

    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            got = function(*args, **kwargs or {})
            made.add(got.dtype)
            return got

    chunks, weight = chunks_of(number, torch.bfloat16), torch.empty(VOCAB, WIDTH, dtype=torch.bfloat16)
    with Made():
        summed(weight, chunks, torch.bfloat16)
    assert (torch.float32 in made) == wide


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize(
    ("leaf", "product"),
    [(torch.bfloat16, torch.float32), (torch.float64, torch.bfloat16), (torch.float16, torch.bfloat16)],
    ids=str,
)
def test_a_weight_of_another_dtype_gets_the_same_sum(number: int, leaf: torch.dtype, product: torch.dtype) -> None:
    chunks = chunks_of(number, product)
    expected = torch.zeros(VOCAB, WIDTH)
    for gradient, hidden in chunks:
        expected += gradient.t() @ hidden
    got = summed(torch.empty(VOCAB, WIDTH, dtype=leaf), chunks, product)
    assert got.dtype == leaf
    torch.testing.assert_close(got, expected.to(leaf))


@pytest.mark.parametrize("number", [1, 3])
def test_products_as_wide_as_their_sum_add_themselves(number: int) -> None:
    chunks = chunks_of(number, torch.float32)
    got = summed(torch.empty(VOCAB, WIDTH), chunks, torch.float32)
    torch.testing.assert_close(got, sum(g.t() @ h for g, h in chunks))


@pytest.mark.parametrize("product", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("leaf", [torch.bfloat16, torch.float32], ids=str)
def test_what_few_products_save_is_what_their_sum_holds_less(leaf: torch.dtype, product: torch.dtype) -> None:
    weight = torch.empty(VOCAB, WIDTH, dtype=leaf)

    def held(number: int) -> int:
        return sum(piece.nbytes for piece in WeightGradient(weight, product, torch.float32, number)._pieces)

    saved = bytes_saved_by_few(weight, product, torch.float32)
    assert saved == held(3) - held(2)
    assert (saved > 0) == (leaf == product == torch.bfloat16)


def test_of_no_rows_it_is_zero() -> None:
    assert torch.equal(
        summed(torch.full((2, 3), 7.0, dtype=torch.bfloat16), [], torch.bfloat16),
        torch.zeros(2, 3, dtype=torch.bfloat16),
    )


def test_a_chunk_too_few_is_an_error() -> None:
    total = WeightGradient(torch.empty(VOCAB, WIDTH), torch.float32, torch.float32, 2)
    total.add(*chunks_of(1, torch.float32)[0])
    with pytest.raises(RuntimeError, match="1 of 2 chunks"):
        total.take()

"""Hidden states and the output layer beside them are the teacher's full distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from potstill.errors import DataError
from potstill.objectives import ForwardKLRule, ReverseKLRule, fused_sweep
from potstill.signals import Dense, Head
from potstill.store.codec import HIDDEN, Entries, Grid, decode, encode
from potstill.store.files import OUTPUT_LAYER
from potstill.store.output_layer import OutputLayer, save_output_layer

ROWS, WIDTH, VOCAB = 9, 70, 130


def teacher(dtype: torch.dtype = torch.float32, bias: bool = False, softcap: float | None = None) -> Head:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCAB, WIDTH, generator=random).mul(0.3).to(dtype)
    hidden = torch.randn(ROWS, WIDTH, generator=random).to(dtype)
    return Head(hidden, weight, torch.randn(VOCAB, generator=random).to(dtype) if bias else None, softcap, 0.5)


def stored(head: Head, grid: Grid) -> torch.Tensor:
    entries = Entries(
        np.zeros(ROWS + 1, np.int64),
        np.zeros(0, np.int32),
        np.zeros(0, np.float32),
        *(np.zeros(ROWS, np.float32) for _ in range(2)),
        np.zeros(0, np.float32),
        {HIDDEN: head.hidden.float().numpy()},
    )
    return torch.from_numpy(decode(encode(entries, grid, np.zeros(0)), ROWS, grid).tensors[HIDDEN])


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
def test_a_bfloat16_teacher_comes_back_exactly(tmp_path: Path, bias: bool, softcap: float | None) -> None:
    live = teacher(torch.bfloat16, bias, softcap)
    save_output_layer(live, tmp_path)
    found = OutputLayer.load(tmp_path).head(stored(live, Grid.hidden(VOCAB, WIDTH, "bfloat16")))
    assert torch.equal(found.logits(), live.logits())


def test_every_divergence_and_its_gradient_are_the_live_teachers(tmp_path: Path) -> None:
    live = teacher()
    live = Head(live.hidden.bfloat16().float(), live.weight, live.bias, live.softcap, live.scale)
    save_output_layer(live, tmp_path)
    found = OutputLayer.load(tmp_path).head(stored(live, Grid.hidden(VOCAB, WIDTH, "bfloat16")))
    targets, results = torch.zeros(ROWS, dtype=torch.long), []
    for head in (live, found):
        student = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(1)).requires_grad_()
        rules = [(ForwardKLRule(temperature=2.0), 1.0), (ReverseKLRule(), 1.0)]
        swept = fused_sweep(Dense(student), head, targets, rules)
        swept.loss.backward()
        results.append((swept.loss.detach(), student.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_int8_moves_each_logit_by_at_most_the_stated_error_times_its_weights(tmp_path: Path) -> None:
    """|Δz| ≤ scale · Σ_b (Σ |w| of block b) · max |h| of block b / 252."""
    live = teacher()
    save_output_layer(live, tmp_path)
    found = OutputLayer.load(tmp_path).head(stored(live, Grid.hidden(VOCAB, WIDTH, "int8")))
    bound = torch.zeros(ROWS, VOCAB)
    for block in (slice(0, 64), slice(64, WIDTH)):
        bound += live.hidden[:, block].abs().amax(1)[:, None] / 252 * live.weight[:, block].abs().sum(1)
    error = (found.logits() - live.logits()).abs()
    assert (error <= 0.5 * bound + 1e-5).all()
    assert error.max() > 0


def test_a_missing_output_layer_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="output layer cannot be read"):
        OutputLayer.load(tmp_path)
    (tmp_path / OUTPUT_LAYER).write_bytes(b"nothing")
    with pytest.raises(DataError, match="output layer cannot be read"):
        OutputLayer.load(tmp_path)

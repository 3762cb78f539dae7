"""The benchmark of whole steps compares like with like, or says that it does not."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import train_step


def row(by: str, dtype: str, seconds: float, loss: float = 4.0, beyond: int = 100) -> dict[str, Any]:
    return {
        "variant": f"{by} {dtype}",
        "by": by,
        "dtype": dtype,
        "folder": "a path of this machine",
        "seconds": seconds,
        "tokens": 1000,
        "first_loss": loss,
        "peak_beyond_state_bytes": beyond,
    }


def test_rates_are_tokens_by_seconds_and_the_folder_is_left_out() -> None:
    (done,) = train_step.finished([row("ours", "float32", 4.0)])
    assert done["tokens_per_second"] == 250.0
    assert "folder" not in done


def test_a_variant_that_computes_another_loss_is_refused() -> None:
    with pytest.raises(RuntimeError, match="gkd float32 computes something else"):
        train_step.finished([row("ours", "float32", 1.0), row("gkd", "float32", 1.0, loss=4.2)])


def test_a_peer_is_compared_in_the_dtype_in_which_it_is_fastest() -> None:
    rows = train_step.finished(
        [
            row("ours", "float32", 2.0),
            row("ours", "bfloat16", 1.0, beyond=50),
            row("gkd", "float32", 5.0),
            row("gkd", "bfloat16", 4.0),
        ]
    )
    ratios = train_step.ratios_of(rows)
    assert ratios["speed over gkd, float32"] == 2.5
    assert ratios["speed over gkd, its best dtype"] == ratios["speed over gkd, bfloat16"] == 4.0
    assert ratios["peak beyond state over gkd, bfloat16"] == 0.5


def test_left_and_right_padding_mask_what_they_add() -> None:
    filled, mask = train_step._padded([[1, 2], [3]], 9, left=True)
    assert filled.tolist() == [[1, 2], [9, 3]]
    assert mask.tolist() == [[1, 1], [0, 1]]
    filled, mask = train_step._padded([[1, 2], [3]], 9)
    assert filled.tolist() == [[1, 2], [3, 9]]
    assert mask.tolist() == [[1, 1], [1, 0]]

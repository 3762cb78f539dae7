"""How many rows of a sweep are projected at once: as many as its memory and its products make worth while."""

from __future__ import annotations

import math

BUFFER_BYTES = 176 * 2**20
"""Bytes of the two chunk buffers together, if they hold `FEW_CHUNK_ROWS`: with the tiles, all that a sweep takes beyond
the gradients stays below 200 MiB then."""

FEW_CHUNK_ROWS = 112
"""Where `BUFFER_BYTES` hold fewer rows, more bytes are spent: products of few rows read and write the weight and its
gradient more often than they need (per row, 88 rows took 1.4 times as long as 256, V = 262,144 in fp32)."""

MOST_BUFFER_BYTES = 232 * 2**20
"""As many and no more: with the tiles, below 256 MiB."""

MOST_CHUNK_ROWS = {"cpu": 344}
"""Most rows of a chunk by device type: on two cores, 344 took 2 % less time than 256, and 512 no less again. Elsewhere
the memory alone decides. Twice as many where the products are narrower than the sum of the weight's gradient, which is
read and written once per chunk: 4,096 rows in bf16, V = 49,152, took 10 % less time so."""

FEW_PRODUCTS = 2
"""So many products can be summed in their own dtype (`weight_gradient.py`)."""


def chunk_rows(
    rows: int, bytes_per_row: int, device_type: str = "cpu", *, narrow: bool = False, saved_bytes: int = 0
) -> int:
    """Rows of a chunk, of `bytes_per_row` in all buffers together.

    Args:
        narrow: products are narrower than the sum of the weight's gradient.
        saved_bytes: what that sum takes less where it is of `FEW_PRODUCTS` or fewer. So much more the buffers may take,
            if there are no more chunks then.
    """
    most = MOST_CHUNK_ROWS.get(device_type, rows) * (2 if narrow else 1)
    few = math.ceil(rows / FEW_PRODUCTS)
    budget = buffer_budget(bytes_per_row)
    if saved_bytes and few <= most and few * bytes_per_row <= MOST_BUFFER_BYTES + saved_bytes:
        budget = max(budget, few * bytes_per_row)
    return rows_per_chunk(rows, bytes_per_row, budget, most)


def buffer_budget(bytes_per_row: int) -> int:
    """Bytes that the buffers may take, of so many a row together."""
    return min(MOST_BUFFER_BYTES, max(BUFFER_BYTES, FEW_CHUNK_ROWS * bytes_per_row))


def rows_per_chunk(rows: int, bytes_per_row: int, budget_bytes: int, most: int) -> int:
    """As many as the budget holds, at most `most`, and balanced, so that no short chunk is left."""
    fit = max(1, min(most, budget_bytes // max(1, bytes_per_row)))
    return math.ceil(rows / math.ceil(rows / fit)) if rows else 1

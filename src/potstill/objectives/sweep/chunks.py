"""How many rows of a sweep are projected at once: as many as its memory and its products make worth while."""

from __future__ import annotations

import math

from potstill.objectives.sweep.weight_gradient import FEW_PRODUCTS

BUFFER_BYTES = 176 * 2**20
"""Bytes of the two chunk buffers together, if they hold `FEW_CHUNK_ROWS`: on two threads, with the tiles of any one
objective, all that a sweep takes beyond the gradients stays below 200 MiB then."""

FEW_CHUNK_ROWS = 112
"""Where `BUFFER_BYTES` hold fewer rows, more bytes are spent: products of few rows read and write the weight and its
gradient more often than they need (per row, 88 rows took 1.4 times as long as 256, V = 262,144 in fp32)."""

MOST_BUFFER_BYTES = 232 * 2**20
"""As many and no more: with the tiles, below 256 MiB."""

MOST_CHUNK_ROWS = {"cpu": 344}
"""Most rows of a chunk by device type: on two cores, 344 took 2 % less time than 256, and 512 no less again. Elsewhere
the memory alone decides. Twice as many of narrow products, which are sooner done, so that what comes with each chunk
weighs more: 4,096 rows in bf16, V = 49,152, took 10 % less time so."""


def chunk_rows(
    rows: int, bytes_per_row: int, device_type: str = "cpu", *, narrow_products: bool = False, saved_bytes: int = 0
) -> int:
    """Rows of a chunk, of `bytes_per_row` in all buffers together.

    Args:
        narrow_products: they are narrower than what is computed of them.
        saved_bytes: what the sum of the weight's gradient takes less where chunks are `FEW_PRODUCTS` or fewer. On a CPU
            the buffers may have them beyond their budget, if there are no more chunks then. Elsewhere a tile is a whole
            chunk, and its fp32 buffers would cost more than is saved.
    """
    most, budget = MOST_CHUNK_ROWS.get(device_type, rows), buffer_budget(bytes_per_row)
    if narrow_products:
        most *= 2
    rows_of_few = math.ceil(rows / FEW_PRODUCTS)
    if device_type == "cpu" and rows_of_few <= most and rows_of_few * bytes_per_row <= budget + saved_bytes:
        budget = max(budget, rows_of_few * bytes_per_row)
    return rows_per_chunk(rows, bytes_per_row, budget, most)


def buffer_budget(bytes_per_row: int) -> int:
    """Bytes that the buffers may take of themselves, of so many a row together."""
    return min(MOST_BUFFER_BYTES, max(BUFFER_BYTES, FEW_CHUNK_ROWS * bytes_per_row))


def rows_per_chunk(rows: int, bytes_per_row: int, budget_bytes: int, most: int) -> int:
    """As many as the budget holds, at most `most`, and balanced, so that no short chunk is left."""
    fit = max(1, min(most, budget_bytes // max(1, bytes_per_row)))
    return math.ceil(rows / math.ceil(rows / fit)) if rows else 1

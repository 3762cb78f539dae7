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

MOST_CHUNK_ROWS = 344
"""Most rows of a chunk on a CPU: on two cores, 344 took 2 % less time than 256, and 512 no less again. Twice as many of
narrow products, which are sooner done, so that what comes with each chunk weighs more: 4,096 rows in bf16,
V = 49,152, took 10 % less time so."""

MOST_ACCELERATOR_BYTES = 2 * 2**30
"""Bytes of the two chunk buffers together on a GPU. Each chunk reads and writes the whole gradient of the weight, which
only long chunks are worth: of 8,192 rows in bf16 (V = 128,256, H 2,048 and 4,096) the four products alone took 41 ms in
chunks of 256 rows, 33.5 of 1,024, 32 of 2,048 and 31.5 of 4,096, which fill this."""

ACCELERATOR_SHARE = 40
"""The buffers take at most one part in so many of a GPU's memory."""


def chunk_rows(
    rows: int,
    bytes_per_row: int,
    *,
    accelerator_bytes: int | None = None,
    narrow_products: bool = False,
    saved_bytes: int = 0,
) -> int:
    """Rows of a chunk, of `bytes_per_row` in all buffers together.

    Args:
        accelerator_bytes: the memory of the GPU; None on a CPU.
        narrow_products: they are narrower than what is computed of them.
        saved_bytes: what the sum of the weight's gradient takes less where chunks are `FEW_PRODUCTS` or fewer. On a CPU
            the buffers may have them beyond their budget, if there are no more chunks then.
    """
    if accelerator_bytes is not None:
        budget = min(MOST_ACCELERATOR_BYTES, accelerator_bytes // ACCELERATOR_SHARE)
        return rows_per_chunk(rows, bytes_per_row, budget, rows)
    most, budget = MOST_CHUNK_ROWS, buffer_budget(bytes_per_row)
    if narrow_products:
        most *= 2
    rows_of_few = math.ceil(rows / FEW_PRODUCTS)
    if rows_of_few <= most and rows_of_few * bytes_per_row <= budget + saved_bytes:
        budget = max(budget, rows_of_few * bytes_per_row)
    return rows_per_chunk(rows, bytes_per_row, budget, most)


def buffer_budget(bytes_per_row: int) -> int:
    """Bytes that the buffers may take of themselves, of so many a row together."""
    return min(MOST_BUFFER_BYTES, max(BUFFER_BYTES, FEW_CHUNK_ROWS * bytes_per_row))


def rows_per_chunk(rows: int, bytes_per_row: int, budget_bytes: int, most: int) -> int:
    """As many as the budget holds, at most `most`, and balanced, so that no short chunk is left."""
    fit = max(1, min(most, budget_bytes // max(1, bytes_per_row)))
    return math.ceil(rows / math.ceil(rows / fit)) if rows else 1

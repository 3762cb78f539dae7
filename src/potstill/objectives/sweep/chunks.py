"""The number of rows that a sweep projects at once, from its memory budget and the cost of its products."""

from __future__ import annotations

import math

from potstill.objectives.sweep.weight_gradient import FEW_PRODUCTS

BUFFER_BYTES = 176 * 2**20
"""Bytes of the two chunk buffers together, if they hold `FEW_CHUNK_ROWS`. On two threads, with the tiles of any one
objective, a sweep then uses less than 200 MiB beyond the gradients."""

FEW_CHUNK_ROWS = 112
"""If `BUFFER_BYTES` hold fewer rows, more bytes are used: products of few rows read and write the weight and its
gradient too often (per row, 88 rows took 1.4 times as long as 256, V = 262,144 in fp32)."""

MOST_BUFFER_BYTES = 232 * 2**20
"""The limit of those bytes: with the tiles, below 256 MiB."""

MOST_CHUNK_ROWS = 344
"""Maximum rows of a chunk on a CPU: on two cores, 344 took 2 % less time than 256, and 512 no less. Twice as many for
narrow products, which are faster, so that the overhead of a chunk weighs more: 4,096 rows in bf16, V = 49,152, took 10
% less time."""

MOST_ACCELERATOR_BYTES = 2 * 2**30
"""Bytes of the two chunk buffers together on a GPU. Each chunk reads and writes the whole gradient of the weight,
which pays only for long chunks: for 8,192 rows in bf16 (V = 128,256, H 2,048 and 4,096) the four products alone took
41 ms in chunks of 256 rows, 33.5 of 1,024, 32 of 2,048 and 31.5 of 4,096, which fill this."""

ACCELERATOR_SHARE = 40
"""The buffers use at most this fraction (1/n) of a GPU's memory."""


def chunk_rows(
    rows: int,
    bytes_per_row: int,
    *,
    accelerator_bytes: int | None = None,
    narrow_products: bool = False,
    saved_bytes: int = 0,
) -> int:
    """Rows of a chunk, if a row needs `bytes_per_row` in all buffers together.

    Args:
        accelerator_bytes: the memory of the GPU; None on a CPU.
        narrow_products: products are in a narrower dtype than the statistics.
        saved_bytes: memory saved in summing the weight's gradient if there are at most `FEW_PRODUCTS` chunks. On a CPU
            the buffers may use it beyond their budget, if there are then no more chunks.
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
    """The memory budget of the buffers, if a row needs `bytes_per_row` in all of them."""
    return min(MOST_BUFFER_BYTES, max(BUFFER_BYTES, FEW_CHUNK_ROWS * bytes_per_row))


def rows_per_chunk(rows: int, bytes_per_row: int, budget_bytes: int, most: int) -> int:
    """As many rows as the budget holds, at most `most`, balanced so that no chunk is short."""
    fit = max(1, min(most, budget_bytes // max(1, bytes_per_row)))
    return math.ceil(rows / math.ceil(rows / fit)) if rows else 1

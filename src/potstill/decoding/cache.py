"""Keys and values of a batch whose rows differ in length: preallocated, and rolled back by index.

The slot of a token is its position. A block of n tokens overwrites the slots `start … start + n − 1` of each row.
Taking a token back needs no work: no query reads a slot behind its own position, and a slot is written again before a
later query reads it. Sliding layers keep all positions; the mask applies the window.

The nodes of a tree take slots in their order, whatever their depth; those that stand are then moved to their positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass
class Block:
    """Where the next block of `length` tokens goes: the first slot of each row, on the host."""

    starts: Sequence[int] = ()
    length: int = 0
    slots_Bn: Int[Tensor, "B n"] | None = None
    """The slots, where rows start at different ones; None where one slice serves all rows."""

    @property
    def end(self) -> int:
        """The number of slots that are in use once the block is written."""
        return max(self.starts, default=0) + self.length


class RowLayer(CacheLayerMixin):
    """The keys and values of one layer, [B, heads, capacity, width]; allocated at the first update."""

    is_sliding = False
    is_croppable = True
    keys: Any
    values: Any

    def __init__(self, block: Block, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # not annotated there
        self._block, self._capacity = block, capacity

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the shapes of a first block."""
        self.keys, self.values = (
            # Zeros, not `empty`: a slot that the mask hides still takes part in 0 · value, and 0 · NaN is NaN.
            states.new_zeros((*states.shape[:2], self._capacity, states.shape[3]))
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Float[Tensor, "B A n D"], value_states: Float[Tensor, "B A n D"], *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write a block; returns views of all slots in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        block = self._block
        end = block.end
        for kept, states in ((self.keys, key_states), (self.values, value_states)):
            if block.slots_Bn is None:
                kept[:, :, end - block.length : end] = states
            else:
                rows = torch.arange(len(block.slots_Bn), device=kept.device)[:, None]
                kept[rows, :, block.slots_Bn] = states.transpose(1, 2)
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._block.end, 0

    def get_seq_length(self) -> int:
        return max(self._block.starts, default=0)

    def get_max_length(self) -> int:
        return self._capacity


class RowCache(Cache):
    """One `RowLayer` per layer of a model.

    Args:
        layers: how many.
        capacity: number of slots of each row.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        self.block = Block()
        self.capacity = capacity
        self._rows = [RowLayer(self.block, capacity) for _ in range(layers)]
        super().__init__(layers=[*self._rows])

    def place(self, starts: Sequence[int], length: int, device: torch.device) -> Int[Tensor, "B n"]:
        """Set where the next block goes; returns the slot of each of its tokens, which is its position.

        Raises:
            ValueError: the block does not fit.
        """
        block = self.block
        block.starts, block.length, block.slots_Bn = list(starts), length, None
        if block.end > self.capacity:
            raise ValueError(f"{block.end} slots of {self.capacity}")
        slots = torch.tensor(block.starts, device=device)[:, None] + torch.arange(length, device=device)
        if len(set(block.starts)) > 1:
            block.slots_Bn = slots
        return slots

    def move(self, rows: Sequence[int], sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy slots `sources` to slots `targets` of the same rows, all at once."""
        for layer in self._rows:
            if layer.is_initialized:
                for kept in (layer.keys, layer.values):
                    kept[rows, :, targets] = kept[rows, :, sources]

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Drop all other rows."""
        for layer in self._rows:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]

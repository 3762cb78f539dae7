"""A causal language model that reads blocks of tokens behind what it has read, each row at its own position.

Keys and values of the rows are preallocated, and rolled back by index. The slot of a token is its position. A block of
n tokens overwrites the slots `start … start + n − 1` of each row. Taking a token back needs no work: no query reads a
slot behind its own position, and a slot is written again before a later query reads it. Sliding layers keep all
positions; the mask applies the window. The nodes of a tree take slots in their order, whatever their depth; those that
stand are then moved to their positions.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from potstill.decoding.few_rows import linear, with_few_rows
from potstill.decoding.tree import Tree
from potstill.errors import ModelError
from potstill.models.anatomy import effective_head, inner_decoder, model_layers, text_config, unwrap, why_no_head

_FULL, _SLIDING = "full_attention", "sliding_attention"
_MASKED_ATTENTION = ("eager", "sdpa")


# ---- keys and values ---------------------------------------------------------------------------------------------


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


# ---- the model ---------------------------------------------------------------------------------------------------


class CachedModel:
    """A model, and the keys and values of the tokens in its rows.

    Attributes:
        limit: number of positions of the model's context; None if its configuration has none.
        hidden_BH: the last hidden state, after the final norm, behind each row's last token that stands and was read;
            None unless it is kept.

    Args:
        model: in evaluation mode.
        vocabulary: token ids of the only rows of its output layer that are computed, in order; None for all.
        cache: the model whose first layers these are, and whose keys and values they share; None for its own.

    Raises:
        ModelError: its cache cannot be rolled back, its attention takes no mask of ours, or its output layer cannot
            be cut to a vocabulary.
    """

    def __init__(
        self, model: PreTrainedModel, vocabulary: Int[Tensor, " K"] | None = None, cache: CachedModel | None = None
    ) -> None:
        check_rollback(model)
        self.model = model
        self._runs = with_few_rows(model)
        self.vocabulary = vocabulary
        self.config = text_config(model)
        self.limit: int | None = getattr(self.config, "max_position_embeddings", None)
        self._lender = cache
        self._own: RowCache | None = None
        kinds = set(getattr(self.config, "layer_types", None) or ())
        self._window: int | None = getattr(self.config, "sliding_window", None)
        self._mixed = len(kinds) > 1
        if kinds == {_FULL}:
            self._window = None  # a size that no layer uses
        self._head = None if vocabulary is None else _OwnHead(model, vocabulary)
        self.vocab_size = int(self.config.vocab_size)
        self.hidden_BH: Float[Tensor, "B H"] | None = None
        self._block_hidden: Float[Tensor, "B n H"] | None = None
        self._keeps_hidden = False

    def start(self, capacity: int) -> None:
        """Forget everything, and make room for `capacity` tokens per row."""
        self.hidden_BH = self._block_hidden = None
        self._keeps_hidden = False
        if self._lender is None:
            self._own = RowCache(len(model_layers(self.model)), capacity)

    def keep_hidden(self) -> None:
        """Keep hidden states, until the next start.

        Raises:
            ModelError: the output layer cannot be taken apart from the rest.
        """
        if self._head is None:
            self._head = _OwnHead(self.model, None)
        self._keeps_hidden = True

    @property
    def _cache(self) -> RowCache:
        own = self._own if self._lender is None else self._lender._own
        if own is None:
            raise RuntimeError("start() comes first")
        return own

    @property
    def lends(self) -> bool:
        """Whether the keys and values are another model's, which fills them."""
        return self._lender is not None

    def __call__(
        self,
        tokens_Bn: Int[Tensor, "B n"],
        starts: Sequence[int],
        ends: Sequence[int] | None = None,
        tree: Tree | None = None,
    ) -> Float[Tensor, "B m V"]:
        """The logits behind each token of a block, or behind one of each row (m = 1); [B, m, K] with a vocabulary.

        Args:
            tokens_Bn: token ids.
            starts: position of the first token of each row.
            ends: of each row, the place in the block of the only token behind which logits are asked for.
            tree: the tokens are its nodes, the root first. Their keys and values wait behind the text until `settle`.
        """
        length = tokens_Bn.shape[1]
        positions = self._cache.place(starts, length, tokens_Bn.device)
        masks = self._masks(positions, starts, tree)
        if tree is not None:
            positions = positions[:, :1] + torch.tensor(tree.depths, device=tokens_Bn.device)
        if self.limit is not None:
            # Of a row that ends before others, tokens may be drafted behind the context; none of them is kept.
            positions = positions.clamp_max(self.limit - 1)
        given: dict[str, Any] = {
            "input_ids": tokens_Bn,
            "attention_mask": masks,
            "position_ids": positions,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        if self._head is not None:
            hidden = inner_decoder(self._runs)(**given).last_hidden_state
            self._block_hidden = hidden if self._keeps_hidden else None
            return self._head(hidden if ends is None else hidden[list(range(len(ends))), list(ends)][:, None])
        if ends is None:
            logits: Tensor = self._runs(**given).logits
            return logits
        places = sorted(set(ends))
        logits = self._runs(**given, logits_to_keep=torch.tensor(places, device=tokens_Bn.device)).logits
        return logits[list(range(len(ends))), [places.index(end) for end in ends]][:, None]

    def settle(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep what stands of the last block, which has been judged.

        Args:
            paths: of each row, the places in the block of the tokens that stand behind the first one, in order.
        """
        if self._block_hidden is not None:
            ends = [path[-1] if path else 0 for path in paths]
            self.hidden_BH = self._block_hidden[list(range(len(ends))), ends]
            self._block_hidden = None
        starts = self._cache.block.starts
        moves = [
            (row, starts[row] + place, starts[row] + depth)
            for row, path in enumerate(paths)
            for depth, place in enumerate(path, 1)
            if place != depth
        ]
        if moves:
            rows, sources, targets = zip(*moves, strict=True)
            self._cache.move(rows, sources, targets)

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Drop all other rows."""
        if self.hidden_BH is not None:
            self.hidden_BH = self.hidden_BH[rows]
        if self._lender is None:
            self._cache.keep(rows)

    def _masks(self, slots_Bn: Tensor, starts: Sequence[int], tree: Tree | None) -> Any:
        """What each token of a block sees: itself and what is before it, additive; None where that is everything, or
        where the block begins all rows (the model's own causal mask)."""
        end, length = self._cache.block.end, slots_Bn.shape[1]
        windowed = self._window is not None and end > self._window
        alone = not any(starts) or (length == 1 and len(set(starts)) == 1)
        if not windowed and alone and not self._mixed and tree is None:
            return None
        slots = torch.arange(end, device=slots_Bn.device)
        behind = slots_Bn[:, None, :, None] - slots
        seen = behind >= 0
        if tree is not None:
            # Slots of nodes are no positions: which of them a node sees, and how far they are, is the tree's.
            node = slots - slots_Bn[:, :1]  # of each slot, below 0 for the text
            inside = (node >= 0) & (node < length)
            node = node.clamp(0, length - 1)
            depths = torch.tensor(tree.depths, device=slots.device)
            sees = tree.sees.to(slots.device)[:, node].transpose(0, 1)[:, None]  # [B, 1, n, slots]
            seen = torch.where(inside[:, None, None], sees, seen)
            at = torch.where(inside, slots_Bn[:, :1] + depths[node], slots)
            behind = (slots_Bn[:, :1] + depths)[:, None, :, None] - at[:, None, None]
        full = self._additive(seen)
        sliding = self._additive(seen & (behind < self._window)) if self._window is not None else full
        if self._mixed:
            return {_FULL: full, _SLIDING: sliding}
        return sliding

    def _additive(self, seen: Tensor) -> Tensor:
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device).masked_fill_(~seen, lowest)


class _OwnHead:
    """A model's output layer, or some rows of it, with its scale and soft cap."""

    def __init__(self, model: PreTrainedModel, vocabulary: Tensor | None) -> None:
        head = effective_head(model)
        if head is None:
            purpose = "taken apart from the layers" if vocabulary is None else "cut to frequent tokens"
            raise ModelError(
                f"the output layer cannot be {purpose}: {why_no_head(model)}", fix="use a draft of all tokens"
            )
        weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
        if vocabulary is not None:
            weight, bias = weight[vocabulary].contiguous(), None if bias is None else bias[vocabulary]
        self._weight, self._bias = weight, bias
        self._scale, self._softcap = head.scale, head.softcap

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = linear(hidden, self._weight, self._bias, [self._weight])
        if self._scale != 1.0:
            logits = logits * self._scale
        return logits if self._softcap is None else torch.tanh(logits / self._softcap) * self._softcap


def check_rollback(model: PreTrainedModel) -> None:
    """Check that tokens can be taken back from what a model keeps of its text, and that it takes our masks.

    Raises:
        ModelError: they cannot, or it does not.
    """
    inner = unwrap(model)
    name, config = type(inner).__name__, text_config(model)
    other = sorted(set(getattr(config, "layer_types", None) or ()) - {_FULL, _SLIDING})
    if other or getattr(inner, "_is_stateful", False):
        kind = other[0] if other else "recurrent state"
        raise ModelError(
            f"{name} cannot decode speculatively: the cache of its layers ({kind}) cannot be rolled back",
            fix="use a model whose layers are full or sliding attention",
        )
    if getattr(config, "num_kv_shared_layers", 0):
        raise ModelError(
            f"{name} cannot decode speculatively: its layers share keys and values",
            fix="use a model whose layers each have their own",
        )
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        raise ModelError(
            f"{name} cannot decode speculatively: it takes no positions", fix="use a model with `position_ids`"
        )
    if (attention := getattr(config, "_attn_implementation", "eager")) not in _MASKED_ATTENTION:
        raise ModelError(
            f"{name} cannot decode speculatively with attn_implementation: {attention}, which takes no masks",
            fix="open it with attn_implementation: sdpa",
        )


def first_layers(model: PreTrainedModel, count: int) -> PreTrainedModel:
    """A model of the first layers, and all that is before and behind them (embeddings, last norm, head): a view, whose
    weights are the model's own.

    Raises:
        ModelError: `count` is not between 1 and one less than the number of layers.
    """
    layers = model_layers(model)
    if not 1 <= count < len(layers):
        raise ModelError(
            f"an early exit after {count} layers of a model that has {len(layers)}",
            fix=f"choose 1 to {len(layers) - 1} layers",
        )
    inner = unwrap(model)
    path = next(name for name, module in inner.named_modules() if module is layers)
    config = copy.deepcopy(inner.config)
    config.get_text_config(decoder=True).num_hidden_layers = count
    view: PreTrainedModel = _shallow(inner, config)
    here: Any = view
    *parents, leaf = path.split(".")
    for name in parents:
        here._modules[name] = _shallow(here._modules[name], config)
        here = here._modules[name]
    here._modules[leaf] = nn.ModuleList(layers[:count])
    return view


def _shallow(module: Any, config: Any) -> Any:
    """A module with the same parameters and children, whose children can be replaced."""
    view = copy.copy(module)
    view._modules = dict(module._modules)
    if hasattr(view, "config"):
        view.config = config if type(view.config) is type(config) else config.get_text_config(decoder=True)
    return view

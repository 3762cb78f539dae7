"""The sizes of a model, from its configuration and the headers of its weights. No torch; no weights are read."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from potstill.errors import ModelError
from potstill.models.folder import is_module, read_config
from potstill.models.gguf_header import read_header
from potstill.models.tokenizers import read_template

_COMMON_NAMES: Mapping[str, tuple[str, ...]] = {
    "num_hidden_layers": ("n_layer", "num_layers", "n_layers"),
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_attention_heads": ("n_head", "n_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "hidden_dim"),
    "max_position_embeddings": ("n_positions",),
}
"""Other names of the sizes, in some families."""

_WITHOUT_GATE = frozenset({"bert", "roberta", "distilbert", "electra", "albert", "gpt2", "gpt_neo", "gpt_neox", "opt"})
"""Families whose feed-forward layer has two matrices instead of three."""


def size_in(config: Mapping[str, Any], name: str) -> int | None:
    """A size in a `config.json`, by its common name (`num_hidden_layers`)."""
    for key in (name, *_COMMON_NAMES.get(name, ())):
        if isinstance(value := config.get(key), int) and not isinstance(value, bool):
            return value
    return None


POSITION_TABLES = frozenset({"wpe", "position_embeddings", "embed_positions"})
"""Names of learned embeddings of positions, in all families."""


@dataclass(frozen=True)
class Conversion:
    """Estimated peak memory of a conversion, in bytes, and its duration, in seconds."""

    bytes: int
    seconds: float


@dataclass(frozen=True)
class ModelFacts:
    """The sizes of a model on disk.

    Attributes:
        config: its `config.json`; of a GGUF file the sizes in its header, by their common names.
        shapes: the shape of every weight, by its name in the file.
        stored_bytes: the size of its weight files.
        stored_as: how a GGUF file stores its weights (`Q4_K_M: 60 % Q4_K, …; 4.9 bits a weight`); empty for a folder.
        module: whether it is a module of the user's own; its layers are not counted.
        has_template: whether it has a chat template.
        conversion: the cost of converting a GGUF file; None for a folder.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    stored_bytes: int
    stored_as: str = ""
    module: bool = False
    has_template: bool = False
    conversion: Conversion | None = None

    @cached_property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def layers(self) -> int | None:
        """The number of layers; None where they are not counted (modules, convolutional nets)."""
        return None if self.module else size_in(self.config, "num_hidden_layers")

    @property
    def hidden(self) -> int | None:
        """The width of its hidden states."""
        return None if self.module else size_in(self.config, "hidden_size")

    @property
    def heads(self) -> int | None:
        """The number of attention heads (of queries)."""
        return None if self.module else size_in(self.config, "num_attention_heads")

    @property
    def context_length(self) -> int | None:
        """The maximum number of positions, if stated."""
        return None if self.module else size_in(self.config, "max_position_embeddings")

    @cached_property
    def learned_positions(self) -> int | None:
        """Rows of its learned embeddings of positions; None if it has none."""
        for name, shape in self.shapes.items():
            if name.rpartition(".")[0].rpartition(".")[2] in POSITION_TABLES and name.endswith(".weight"):
                return shape[0]
        return None

    def parameters_of_layers(self, layers: Sequence[int]) -> int | None:
        """The number of parameters with only these layers (0-based); None if layers are not found."""
        if self._layers_prefix is None:
            return None
        kept = {None, *layers}
        return sum(math.prod(shape) for name, shape in self.shapes.items() if self.layer_of(name) in kept)

    def layer_of(self, name: str) -> int | None:
        """The layer that a weight belongs to (0-based); None for weights outside the layers."""
        prefix = self._layers_prefix
        if prefix is None or not name.startswith(prefix):
            return None
        return int(name.removeprefix(prefix).partition(".")[0])

    @cached_property
    def _layers_prefix(self) -> str | None:
        """The common prefix of the names of layer weights (`model.layers.`)."""
        numbers: dict[str, set[int]] = {}
        for name in self.shapes:
            if found := re.match(r"((?:[^.]+\.)*?)(\d+)\.", name):
                numbers.setdefault(found[1], set()).add(int(found[2]))
        wanted = set(range(self.layers or 0))
        return next((prefix for prefix in sorted(numbers, key=len) if wanted and numbers[prefix] == wanted), None)


def facts_of_folder(path: Path) -> ModelFacts:
    """The sizes of a model in a folder, or of a module.

    Raises:
        ModelError: there is no `config.json`, or a header of weights cannot be read.
    """
    module = is_module(path)
    files = sorted(path.glob("*.safetensors"))
    shapes = {name: shape for file in files for name, shape in _shapes_in(file)}
    stored = sum(file.stat().st_size for file in files)
    return ModelFacts(
        {} if module else read_config(path), shapes, stored, module=module, has_template=bool(read_template(path))
    )


def facts_of_gguf(file: Path) -> ModelFacts:
    """The sizes of a GGUF file, from its header.

    Raises:
        ModelError: it cannot be read.
    """
    header = read_header(file)
    config: dict[str, Any] = {"model_type": header.architecture, "architectures": ["ForCausalLM"]}
    for name, key in _GGUF_KEYS.items():
        if isinstance(value := header.of_architecture(key), int):
            config[name] = value
    return ModelFacts(
        config,
        {tensor.name: tensor.shape for tensor in header.tensors},
        file.stat().st_size,
        stored_as=header.storage,
        has_template=header.has_template,
        conversion=Conversion(header.conversion_bytes, header.conversion_seconds),
    )


_GGUF_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}


def parameters_of_shape(config: Mapping[str, Any], *, tokens: int | None = None) -> int | None:
    """Estimated number of parameters of a transformer: its matrices, without norms and biases.

    Args:
        config: a `config.json`, or a part of one.
        tokens: the size of the vocabulary, if the configuration does not state it.

    Returns:
        None if it states no width or no number of layers.
    """
    layers, hidden, heads = (size_in(config, n) for n in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    vocabulary = size_in(config, "vocab_size") or tokens or 0
    if not layers or not hidden:
        return None
    inner = size_in(config, "intermediate_size") or 4 * hidden
    heads = heads or 1
    head_size = size_in(config, "head_dim") or hidden // heads
    keys = size_in(config, "num_key_value_heads") or heads
    attention = 2 * hidden * head_size * heads + 2 * hidden * head_size * keys
    feed_forward = (2 if config.get("model_type") in _WITHOUT_GATE else 3) * hidden * inner
    tied = config.get("tie_word_embeddings", True) or not _is_causal(config)
    return layers * (attention + feed_forward) + (1 if tied else 2) * vocabulary * hidden


def _is_causal(config: Mapping[str, Any]) -> bool:
    return any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in config.get("architectures") or [])


def _shapes_in(file: Path) -> Iterable[tuple[str, tuple[int, ...]]]:
    """The name and shape of every weight in the header of a safetensors file."""
    try:
        with file.open("rb") as content:
            (size,) = struct.unpack("<Q", content.read(8))
            header = json.loads(content.read(size)) if size <= file.stat().st_size else {}
        return [(name, tuple(entry["shape"])) for name, entry in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise ModelError("is no safetensors file", where=str(file), fix="fetch the model again") from error

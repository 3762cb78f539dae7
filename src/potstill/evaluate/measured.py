"""The models that are measured: where they lie, how they are opened, what they weigh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from potstill.models import ModelSource
from potstill.models.anatomy import text_config
from potstill.models.load import load_model
from potstill.recipe import LocalTeacher

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Measured:
    """A model by its name in the measures. `opened_with` goes to `load_model`: device, attention, quantisation."""

    name: str
    source: ModelSource
    opened_with: Mapping[str, Any] = field(default_factory=dict)

    @property
    def quantization(self) -> str:
        return str(self.opened_with.get("quantization", "none"))

    def open(self, dtype: Dtype) -> PreTrainedModel:
        """Load it, in evaluation mode. Flash attention, which has no fp32, is used in bf16 only."""
        asked = dict(self.opened_with)
        if dtype == "float32" and str(asked.get("attn_implementation")).startswith("flash"):
            asked["attn_implementation"] = None
        return load_model(self.source, dtype=dtype, **asked)


@dataclass(frozen=True)
class Size:
    """What a model weighs. Tied weights count once; `bytes` are those of its weight files as they lie on disk.
    `positions` is how many tokens a sequence may have (None: any number)."""

    parameters: int
    bytes: int
    layers: int
    positions: int | None = None


def size_of(model: nn.Module, folder: Path) -> Size:
    """The size of an open model and of its files."""
    config = text_config(model)
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        layers=int(config.num_hidden_layers),
        positions=getattr(config, "max_position_embeddings", None),
    )


def measured_teacher(settings: LocalTeacher, source: ModelSource) -> Measured:
    """A recipe's teacher, opened as the recipe says (but for the precision)."""
    asked = ("device", "device_map", "attn_implementation", "quantization", "trust_remote_code")
    return Measured("teacher", source, {name: getattr(settings, name) for name in asked})


def measured_folder(name: str, folder: Path, like: LocalTeacher | None, *, trust_remote_code: bool = False) -> Measured:
    """A student or a control, on the teacher's device and with the teacher's kind of attention."""
    asked: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if like is not None:
        asked |= {"device": like.device, "attn_implementation": like.attn_implementation}
        asked["trust_remote_code"] |= like.trust_remote_code
    return Measured(name, ModelSource(folder, name, revision="", digest="", licence=""), asked)

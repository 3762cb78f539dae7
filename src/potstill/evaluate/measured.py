"""The models that are measured: where they lie, how they are opened, what they weigh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from potstill.evaluate.members import Members
from potstill.models import ModelSource
from potstill.models.anatomy import dims
from potstill.models.load import load_model

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Measured:
    """A model by its name in the measures. `opened_with` goes to `load_model`: task, class names, device, attention,
    quantisation. An ensemble has `members` in place of a source of its own."""

    name: str
    source: ModelSource | None = None
    opened_with: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[Measured, ...] = ()
    average: Literal["logits", "probabilities"] = "logits"

    @property
    def bytes(self) -> int:
        """Of its weights as they lie on the user's disk: of a teacher that was converted, the file that was named."""
        own = 0 if self.source is None else self.source.weight_bytes
        return own + sum(member.bytes for member in self.members)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where its weights lie."""
        own = () if self.source is None else (self.source.path,)
        return (*own, *(folder for member in self.members for folder in member.folders))

    @property
    def quantization(self) -> str:
        """`none`, or how its weights are quantised while loading; of an ensemble, its first member's."""
        if self.members:
            return self.members[0].quantization
        return str(self.opened_with.get("quantization", "none"))

    def open(self, dtype: Dtype) -> nn.Module:
        """Load it, in evaluation mode. Flash attention, which has no fp32, is used in bf16 only."""
        if self.members:
            return Members([member.open(dtype) for member in self.members], self.average).eval()
        assert self.source is not None
        asked = dict(self.opened_with)
        if dtype == "float32" and str(asked.get("attn_implementation")).startswith("flash"):
            asked["attn_implementation"] = None
        return load_model(self.source, dtype=dtype, **asked)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for another process."""
        source = None if self.source is None else {**asdict(self.source), "path": str(self.source.path)}
        return {
            "name": self.name,
            "source": source,
            "opened_with": dict(self.opened_with),
            "members": [member.to_dict() for member in self.members],
            "average": self.average,
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Measured:
        """What `to_dict` gave."""
        source = raw["source"]
        if source is not None:
            source = ModelSource(**{**source, "path": Path(source["path"]), "notes": tuple(source["notes"])})
        members = tuple(map(cls.from_dict, raw["members"]))
        return cls(raw["name"], source, raw["opened_with"], members, raw["average"])


@dataclass(frozen=True)
class Size:
    """What a model weighs. Tied weights count once; `bytes` are those of its weights as the user has them on disk. An
    ensemble weighs as much as its members together. `layers` is 0 where a plain module has none that can be told.
    `positions` is how many tokens a sequence may have (None: any number)."""

    parameters: int
    bytes: int
    layers: int
    positions: int | None = None


def size_of(model: nn.Module, measured: Measured) -> Size:
    """The size of an open model and of its files."""
    parts = list(model.models) if isinstance(model, Members) else [model]
    config: Any = getattr(model, "config", None)
    text = getattr(config, "text_config", None) or config
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        bytes=measured.bytes,
        layers=sum(dims(part).layers for part in parts),
        positions=getattr(text, "max_position_embeddings", None),
    )

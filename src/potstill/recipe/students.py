"""Settings of students: how one is made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from potstill.errors import did_you_mean
from potstill.recipe.base import KindSettings, Settings


class Uniform(Settings):
    """`n` layers, evenly spread: round(linspace(0, L − 1, n))."""

    uniform: PositiveInt


class First(Settings):
    """The first `n` layers."""

    first: PositiveInt


class Last(Settings):
    """The last `n` layers."""

    last: PositiveInt


class ByInfluence(Settings):
    """The `n` layers that change the hidden state most, 1 − cos(in, out) over a few batches of the data."""

    by_influence: PositiveInt
    records: PositiveInt = 32


LayerChoice = (
    Literal["every_other"] | Uniform | First | Last | ByInfluence | Annotated[tuple[int, ...], Field(min_length=1)]
)
"""`every_other` is 0, 2, 4, …; a list gives the teacher's layers by index, 0-based, in order."""


class Lora(Settings):
    """A low-rank adapter on the student (peft). Merged at export."""

    r: PositiveInt = 16
    alpha: float = 32.0
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"


class StudentSettings(KindSettings):
    """Base of every student."""

    room: ClassVar[str] = "students"
    lora: Lora | None = None


_CHOICES: dict[str, type[Settings]] = {"uniform": Uniform, "first": First, "last": Last, "by_influence": ByInfluence}


class FromTeacher(StudentSettings):
    """The teacher's own layers, fewer of them; embeddings, norms and head copied; tied weights stay tied. Encoders too:
    a head that the teacher has is copied with them."""

    kind: Literal["from_teacher"] = "from_teacher"
    layers: LayerChoice = "every_other"

    @field_validator("layers", mode="before")
    @classmethod
    def _one_choice(cls, value: Any) -> Any:
        """Choose the form by looking, so that a slip gets one message and not one per form."""
        if isinstance(value, dict):
            name = str(next(iter(value), ""))
            if name not in _CHOICES:
                raise ValueError(f"unknown layer choice {name!r}{did_you_mean(name, ['every_other', *_CHOICES])}")
            return _CHOICES[name].model_validate(value)
        if isinstance(value, str) and value != "every_other":
            hint = (
                f"{{{value}: 6}}"
                if value in _CHOICES
                else f"every_other, a list of layers, or one of {', '.join(_CHOICES)} with a number"
            )
            raise ValueError(f"{value!r} is not a choice of layers; give {hint}")
        return value


class FromConfig(StudentSettings):
    """Random weights in a given shape. `config` is a folder or file with a `config.json`, or a mapping: one that names
    a `model_type` describes a model of that family (`{model_type: convnext, depths: [1, 1], …}`), any other changes the
    teacher's configuration (`{num_hidden_layers: 6}`). If it reads text, `tokenizer` is the folder of its tokenizer,
    by itself the teacher's."""

    kind: Literal["from_config"] = "from_config"
    config: Path | dict[str, Any]
    tokenizer: Path | None = None


class Existing(StudentSettings):
    """A model that is already there: a directory, a hub id, a name that potstill knows (`all-minilm-l6-v2`), or
    `run:<folder>`. An encoder without a head for the task gets a new one."""

    kind: Literal["existing"] = "existing"
    model: str
    revision: str | None = None
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _named(self) -> Existing:
        if not self.model.strip():
            raise ValueError("model is empty")
        return self


class ModuleStudent(StudentSettings):
    """Any `torch.nn.Module`: a class or function of a Python file, called with `arguments`, from random weights or from
    a safetensors file. It is the user's own code and runs as such. Its layers are reached by module paths."""

    kind: Literal["module"] = "module"
    source: str
    """`path/to/file.py:Name`, relative to the recipe."""
    arguments: dict[str, Any] = {}
    weights: Path | None = None

    @property
    def file(self) -> Path:
        """The Python file."""
        return Path(self.source.rpartition(":")[0])

    @model_validator(mode="after")
    def _a_file_and_a_name(self) -> ModuleStudent:
        if ".py:" not in self.source:
            raise ValueError(f"source is path/to/file.py:Name, not {self.source!r}")
        if self.lora is not None:
            raise ValueError("lora goes into models of transformers, not into a module of your own")
        return self

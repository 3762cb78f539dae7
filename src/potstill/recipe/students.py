"""Settings of students: how a student is built."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from potstill.errors import did_you_mean
from potstill.recipe.base import Content, Cosmetic, Count, KindSettings, NamesModel, PathText, Settings
from potstill.recipe.declared import callable_in, configuration, configuration_names, names_of_any_configuration
from potstill.recipe.policy import Licence


class Uniform(Settings):
    """`n` layers, evenly spread: round(linspace(0, L − 1, n))."""

    uniform: Count


class First(Settings):
    """The first `n` layers."""

    first: Count


class Last(Settings):
    """The last `n` layers."""

    last: Count


class ByInfluence(Settings):
    """The `n` layers that change the hidden state most: 1 − cos(in, out) over a few batches of the data."""

    by_influence: Count
    records: Count = 32


def check_configuration(config: Mapping[str, Any], family: str, also: Collection[str] = ()) -> None:
    """Refuse keys and values that a family's configuration does not accept.

    Args:
        config: keys and values, with or without `model_type`.
        family: the `model_type`.
        also: further known keys, such as those of the file that is changed.

    Raises:
        ValueError: names the key, with the nearest valid name or the type.
    """
    names = configuration_names()
    if names and family not in names:
        raise ValueError(f"config: transformers knows no model_type {family!r}{did_you_mean(family, names)}")
    declared = configuration(family)
    if declared is None:
        return
    for key, value in config.items():
        if key == "model_type":
            continue
        if key not in declared.names and key not in also:
            raise ValueError(f"config: a {family} configuration has no key {key!r}{did_you_mean(key, declared.names)}")
        if problem := declared.why_not(key, value) or _not_a_size(key, value):
            raise ValueError(f"config.{key} {problem}")


_SIZES = re.compile(r"^(num_|n_).*(layers?|heads?)$|^(hidden|intermediate|vocab)_size$|^max_position_embeddings$")


def _not_a_size(key: str, value: Any) -> str | None:
    return f"should be above 0, not {value}" if isinstance(value, int) and value <= 0 and _SIZES.match(key) else None


LayerChoice = (
    Literal["every_other"] | Uniform | First | Last | ByInfluence | Annotated[tuple[int, ...], Field(min_length=1)]
)
"""`every_other` is 0, 2, 4, …; a list gives the teacher's layers by index, 0-based, in order."""


class Lora(Settings):
    """A low-rank adapter on the student (peft). Merged at export."""

    r: Count = 16
    alpha: float = 32.0
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"


class StudentSettings(KindSettings):
    """Base of every student."""

    room: ClassVar[str] = "students"
    begins_with_teacher: ClassVar[bool] = False
    """Whether its first weights are the teacher's, or some of them."""
    lora: Lora | None = None


_CHOICES: dict[str, type[Settings]] = {"uniform": Uniform, "first": First, "last": Last, "by_influence": ByInfluence}


class FromTeacher(StudentSettings):
    """The teacher's layers, or some of them, with its embeddings, norms and head copied; tied weights stay tied. Also
    for encoders, with their head if they have one."""

    begins_with_teacher: ClassVar[bool] = True
    kind: Literal["from_teacher"] = "from_teacher"
    layers: LayerChoice = "every_other"

    @field_validator("layers", mode="before")
    @classmethod
    def _one_choice(cls, value: Any) -> Any:
        """Choose the form by its shape, so that a mistake gives one message and not one per form."""
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


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


def _number_of_parameters(value: Any) -> Any:
    """`60M`, `1.5B` or `60000000`, as a whole number."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*([\d_]+(?:\.\d+)?)\s*([KMB]?)\s*", value, re.IGNORECASE)
    if found is None:
        raise ValueError(f"{value!r} is no number of parameters; give one such as 60M, 1.5B or 60000000")
    return round(float(found[1].replace("_", "")) * _UNITS[found[2].upper()])


class Look(Settings):
    """A short look at each candidate: `steps` steps of `rows` training records by forward KL from the teacher (AdamW at
    `learning_rate`), then the KL on `measured` training records that these steps do not see. With 0 steps the KL is
    measured at once."""

    steps: int = Field(8, ge=0, le=100_000)
    rows: Count = 4
    measured: Count = 16
    learning_rate: float = Field(5e-4, gt=0)


class Pruned(StudentSettings):
    """The teacher, pruned to a number of `parameters`, in depth and (with `width`) in hidden width, heads and
    feed-forward channels. Activations on `records` training records say what is kept; of up to `candidates` shapes of
    that size, each with the layers of largest influence and with evenly spaced ones, the best after a short `look` is
    the student.
    Muralidharan et al. 2024 (Minitron, arXiv 2407.14679)."""

    begins_with_teacher: ClassVar[bool] = True
    kind: Literal["pruned"] = "pruned"
    parameters: Annotated[int, BeforeValidator(_number_of_parameters), Field(gt=0, le=10**13)]
    width: bool = True
    candidates: Count = 4
    records: Count = 32
    look: Look = Look()


class FromConfig(StudentSettings):
    """Random weights in a given shape. `config` is a folder or file with a `config.json`, or a mapping: with a
    `model_type` it describes a model of that family (`{model_type: convnext, depths: [1, 1], …}`); without, it changes
    the teacher's configuration (`{num_hidden_layers: 6}`). For text models, `tokenizer` is the folder of the
    tokenizer, by default the teacher's."""

    kind: Literal["from_config"] = "from_config"
    config: Annotated[Path | dict[str, Any], Content()]
    tokenizer: Annotated[Path | None, Content()] = None

    @model_validator(mode="after")
    def _has_keys_of_a_configuration(self) -> FromConfig:
        if isinstance(self.config, dict):
            family = self.config.get("model_type")
            if family is not None:
                check_configuration(self.config, str(family))
            elif unknown := [
                key for key in self.config if key not in (known := names_of_any_configuration()) and known
            ]:
                near = did_you_mean(unknown[0], known)
                raise ValueError(
                    f"config: no configuration of transformers has a key {unknown[0]!r}"
                    f"{near if 'did you mean' in near else ''}"
                )
        return self


class Existing(StudentSettings, NamesModel):
    """An existing model: a directory, a hub id, a name that potstill knows (`all-minilm-l6-v2`), or `run:<folder>`. An
    encoder without a head for the task gets a new one. `licence` states its licence where the gate does not find it."""

    kind: Literal["existing"] = "existing"
    revision: str | None = None
    trust_remote_code: bool = False
    licence: Annotated[Licence | None, Cosmetic()] = None

    @model_validator(mode="after")
    def _named(self) -> Existing:
        if not self.model.strip():
            raise ValueError("model is empty")
        return self


class ModuleStudent(StudentSettings):
    """Any `torch.nn.Module`: a class or function of a Python file, called with `arguments`, with random weights or
    those of a safetensors file. The file is the user's code and is run. Its layers are named by module paths."""

    kind: Literal["module"] = "module"
    source: Annotated[PathText, Content()]
    """`path/to/file.py:Name`, relative to the recipe."""
    arguments: dict[str, Any] = {}
    weights: Annotated[Path | None, Content()] = None
    licence: Annotated[Licence | None, Cosmetic()] = None

    @property
    def file(self) -> Path:
        """The Python file."""
        return Path(self.source.rpartition(":")[0])

    @model_validator(mode="after")
    def _takes_its_arguments(self) -> ModuleStudent:
        name = self.source.rpartition(":")[2]
        declared = callable_in(self.file, name) if ".py:" in self.source and self.file.is_file() else None
        if declared is None:
            return self
        for key, value in self.arguments.items():
            if key not in declared.names:
                raise ValueError(f"arguments: {name} takes no {key!r}{did_you_mean(key, declared.names)}")
            if problem := declared.why_not(key, value):
                raise ValueError(f"arguments.{key} {problem}")
        if missing := sorted(declared.required - set(self.arguments)):
            raise ValueError(f"arguments: {name} needs {missing[0]!r}")
        return self

    @model_validator(mode="after")
    def _a_file_and_a_name(self) -> ModuleStudent:
        if ".py:" not in self.source:
            raise ValueError(f"source is path/to/file.py:Name, not {self.source!r}")
        if self.lora is not None:
            raise ValueError("lora goes into models of transformers, not into a module of your own")
        return self

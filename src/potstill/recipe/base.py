"""The base of every settings class: strict, frozen, and chosen by `kind`. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PrivateAttr,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from potstill import registry
from potstill.artifacts import content_digest
from potstill.errors import RecipeError, did_you_mean_path


class Cosmetic:
    """Marks a field that does not affect results (intervals, batch logging …); it is left out of a stage's key.

    save_every_seconds: Annotated[float, Cosmetic()] = 300.0
    """


class Content:
    """Marks a field that names a file or folder whose content affects results: a stage's key contains its digest, so
    an edited file makes the stage stale. For `path/to/file.py:Name` it is the digest of the file; for a folder, of all
    files but weights. (Models and data sources need no mark: stages digest them by `models.model_digests` and
    `data.source_digests`.)

    tokenizer: Annotated[Path | None, Content()] = None
    """


class PartIfSet:
    """Marks an optional field that is left out of a stage's key while it is None, so that a new field of a settings
    class does not change the keys of existing runs.

    solve: Annotated[SolveSettings | None, PartIfSet()] = None
    """


COUNT_AT_MOST = 2**31 - 1
"""The largest count in a recipe."""

Count = Annotated[int, Field(gt=0, le=COUNT_AT_MOST)]
"""A whole number above 0."""

Tokens = Annotated[int, Field(gt=0, le=16_777_216)]
"""A length in tokens, above 0: of an answer, a text, a context."""

LONGEST_NAME = 100
"""Maximum length of the name of a recipe, a teacher or a stage, which become folder names."""

_LONGEST_FILE_NAME, _LONGEST_PATH = 255, 4095


P = TypeVar("P", str, Path)


def path_that_fits(path: P) -> P:
    """Check that a file system can hold the path.

    Raises:
        ValueError: a part of it is too long for a file name, or it has a NUL.
    """
    text = str(path)
    if "\0" in text:
        raise ValueError("a path has no NUL character")
    if len(text.encode(errors="surrogateescape")) > _LONGEST_PATH or any(
        len(part.encode(errors="surrogateescape")) > _LONGEST_FILE_NAME for part in text.split("/")
    ):
        raise ValueError(f"is too long for a path: {text[:60]}… ({len(text):,} characters)")
    return path


PathText = Annotated[str, Field(min_length=1), AfterValidator(path_that_fits)]
"""A path, or a name in place of one."""


def kinds_in(annotation: Any) -> Iterator[Any]:
    """The types in an annotation."""
    yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from kinds_in(inner)


class Settings(BaseModel):
    """Base of every section: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `samples: yes`, a slip that pydantic would read as 1."""
        if isinstance(value, bool) and info.field_name is not None and info.field_name in cls.model_fields:
            kinds = set(kinds_in(cls.model_fields[info.field_name].annotation))
            others = (
                bool in kinds or Any in kinds or any(isinstance(k, type) and issubclass(k, BaseModel) for k in kinds)
            )
            if kinds & {int, float} and not others:
                raise ValueError(f"should be a number, not {str(value).lower()}")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _paths_fit(cls, value: Any) -> Any:
        return path_that_fits(value) if isinstance(value, Path) else value

    def key_fields(self) -> dict[str, Any]:
        """The settings that affect results, as plain data: part of a stage's key."""
        return {
            name: _named_file(getattr(self, name))
            if any(isinstance(mark, Content) for mark in info.metadata)
            else _plain(getattr(self, name))
            for name, info in type(self).model_fields.items()
            if not any(
                isinstance(mark, Cosmetic) or (isinstance(mark, PartIfSet) and getattr(self, name) is None)
                for mark in info.metadata
            )
        }


class NamesModel(Settings):
    """Base of settings whose `model` is a path, or a name in place of one."""

    model: PathText
    _near: str = PrivateAttr("")

    @model_validator(mode="after")
    def _look_beside(self, info: ValidationInfo) -> Self:
        base = (info.context or {}).get("base")
        if base is not None and not self.model.startswith("run:") and not (base / self.model).exists():
            self._near = did_you_mean_path(base / self.model, base)
        return self

    @property
    def near(self) -> str:
        """If `model` is no path that exists: `"; did you mean 'models/x'?"` for the nearest one, if there is any."""
        return self._near


def _named_file(value: Any) -> Any:
    """The key entry of a `Content` field: the path, and the digest of its content. A model's name is no path."""
    path = Path(value.rpartition(":")[0] if ".py:" in value else value) if isinstance(value, str) else value
    if not isinstance(path, Path) or not path.is_absolute():
        return _plain(value)
    return {"path": str(value), "content": content_digest(path)}


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.key_fields()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


class KindSettings(Settings):
    """Settings of one variant. A direct subclass names its `room`; its subclasses name their `kind`, a `Literal`, and
    are registered by it."""

    room: ClassVar[str] = ""
    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        choices = getattr(cls.model_fields["kind"].annotation, "__args__", ())
        for kind in choices:
            registry.register_settings(cls.room, kind, cls)


class _OneOf:
    """Validates a mapping by the settings class of its `kind`, plug-ins included."""

    def __init__(self, room: str) -> None:
        self.room = room

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(self._validate)

    def _validate(self, value: Any, info: ValidationInfo) -> KindSettings:
        if isinstance(value, KindSettings):
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError(
                "kind_form", "should be a mapping with a 'kind', not {value}", {"value": repr(value)}
            )
        if "kind" not in value:
            known = ", ".join(sorted(registry._settings.get(self.room, {})))
            raise PydanticCustomError("kind_missing", "has no 'kind'; known: {known}", {"known": known})
        base = (info.context or {}).get("base")
        try:
            cls = registry.settings_class(self.room, str(value["kind"]), base)
        except RecipeError as error:
            raise PydanticCustomError("kind_unknown", "{why}", {"why": str(error)}) from error
        assert issubclass(cls, KindSettings)
        if ".py:" not in str(value["kind"]):
            return cls.model_validate(value, context=info.context)
        # The class holds the short name; the resolved recipe keeps the file, so that it can be read again.
        short = cls.model_fields["kind"].default
        made = cls.model_validate({**value, "kind": short}, context=info.context)
        filename, _, name = str(value["kind"]).rpartition(":")
        return made.model_copy(update={"kind": f"{((base or Path()) / filename).resolve()}:{name}"})


def one_of(base: type[KindSettings]) -> Any:
    """The annotated type of a field that holds any variant of a room."""
    return Annotated[base, _OneOf(base.room), SerializeAsAny()]  # type: ignore[type-arg]  # the instance is a mark


def room_of(annotation: Any) -> str | None:
    """The room of the variants that an annotated type holds (`one_of`, or a list or mapping of it); None if it holds
    none."""
    for kind in kinds_in(annotation):
        for mark in getattr(kind, "__metadata__", ()):
            if isinstance(mark, _OneOf):
                return mark.room
    return None

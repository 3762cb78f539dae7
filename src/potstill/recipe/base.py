"""What every settings class is made of: strict, frozen, and chosen by `kind`. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, SerializeAsAny, ValidationInfo
from pydantic_core import PydanticCustomError, core_schema

from potstill import registry
from potstill.errors import RecipeError


class Cosmetic:
    """Marks a field that does not affect results (intervals, batch logging …): it is left out of a stage's key.

    save_every_seconds: Annotated[float, Cosmetic()] = 300.0
    """


class PartIfSet:
    """Marks a field for something that is only done where it is asked for: where it is None, a stage's key says
    nothing of it.

    solve: Annotated[SolveSettings | None, PartIfSet()] = None
    """


class Settings(BaseModel):
    """Base of every section: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def key_fields(self) -> dict[str, Any]:
        """The settings that affect results, as plain data: what enters a stage's key."""
        return {
            name: _plain(getattr(self, name))
            for name, info in type(self).model_fields.items()
            if not any(
                isinstance(mark, Cosmetic) or (isinstance(mark, PartIfSet) and getattr(self, name) is None)
                for mark in info.metadata
            )
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.key_fields()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


class KindSettings(Settings):
    """Settings of one variant. A direct subclass names its `room`; its subclasses name their `kind`, a
    `Literal`, and are thereby registered."""

    room: ClassVar[str] = ""
    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        choices = getattr(cls.model_fields["kind"].annotation, "__args__", ())
        for kind in choices:
            registry.register_settings(cls.room, kind, cls)


class _OneOf:
    """Validates a mapping by the class that its `kind` names, a plug-in included."""

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
        # The class knows its short name; the resolved recipe keeps the file, so that it can be read back.
        short = cls.model_fields["kind"].default
        made = cls.model_validate({**value, "kind": short}, context=info.context)
        filename, _, name = str(value["kind"]).rpartition(":")
        return made.model_copy(update={"kind": f"{((base or Path()) / filename).resolve()}:{name}"})


def one_of(base: type[KindSettings]) -> Any:
    """The annotated type of a field that holds any variant of a room."""
    return Annotated[base, _OneOf(base.room), SerializeAsAny()]  # type: ignore[type-arg]  # the instance is a mark

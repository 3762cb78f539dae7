"""Settings of the gate: what the student is for, and what a person states or overrides."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from potstill.recipe.base import PathText, Settings

Purpose = Literal["research", "commercial", "publish"]
"""What the student is for: `research`, nothing leaves the house and nobody pays; `commercial`, it is shipped in a
product or served for money; `publish`, its weights are given to others."""

_REASON_AT_LEAST = 20
Text = Annotated[str, Field(min_length=1, max_length=2000)]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
"""A date, `2026-11-27`."""


class LicenceStatement(Settings):
    """A licence that a person states: its id, who says so, when, and how they know. It stands in the card."""

    id: Text
    attested_by: Text
    on: Day
    why: Text


Licence = str | LicenceStatement
"""An id (`apache-2.0`; `own` for work that you hold the rights in), or a full statement."""


def licence_id(licence: Licence | None) -> str:
    """The id of a licence in a recipe; empty if none is stated."""
    return licence.id if isinstance(licence, LicenceStatement) else licence or ""


class Override(Settings):
    """What a person allows although the gate blocks it. `source` is the id that the gate names (`llama-2`,
    `openai-api`). The reason stands in card, bill of materials and manifests of whatever is made under it."""

    source: Text
    reason: Text
    by: Text
    on: Day

    @field_validator("reason")
    @classmethod
    def _is_a_reason(cls, value: str) -> str:
        if len(value.strip()) < _REASON_AT_LEAST:
            raise ValueError(f"is a sentence that others can judge, of at least {_REASON_AT_LEAST} characters")
        return value


class PolicySettings(Settings):
    """Settings of the gate. `unknown` is the answer for a source whose licence is not found or not in the table.
    `texts` names files with the text of a licence, by its id, for licences whose copy must go along and that no
    model's folder holds."""

    purpose: Annotated[tuple[Purpose, ...], Field(min_length=1)] = ("research",)
    unknown: Literal["warn", "block"] = "warn"
    overrides: tuple[Override, ...] = ()
    texts: dict[str, PathText] = {}

    @field_validator("purpose", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

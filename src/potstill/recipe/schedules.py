"""Weights and temperatures that change during training."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeFloat, model_validator

from potstill.recipe.base import Settings


class Change(Settings):
    """A change from `start` to `end` while training progress (0 at the first step, 1 at the end) goes from `begin` to
    `until`; constant before and after.

    `linear` is a straight line, `cosine` half a cosine (slow at both ends), and `step` jumps at `until`.
    """

    shape: Literal["linear", "cosine", "step"] = "linear"
    start: NonNegativeFloat
    end: NonNegativeFloat
    begin: float = Field(0.0, ge=0, le=1)
    until: float = Field(1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _goes_forward(self) -> Change:
        if self.begin > self.until or (self.begin == self.until and self.shape != "step"):
            raise ValueError(f"begin ({self.begin:g}) must be before until ({self.until:g})")
        return self

    def at(self, progress: float) -> float:
        """The value at a progress in [0, 1]."""
        if progress >= self.until:
            return self.end
        if self.shape == "step" or progress <= self.begin:
            return self.start
        share = (progress - self.begin) / (self.until - self.begin)
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + (self.end - self.start) * share


def value_at(schedule: float | Change, progress: float) -> float:
    """The value of a schedule at a progress of training in [0, 1]."""
    return schedule.at(progress) if isinstance(schedule, Change) else float(schedule)


def may_be_positive(schedule: float | Change) -> bool:
    """Whether it is above 0 at any time."""
    return max(schedule.start, schedule.end) > 0 if isinstance(schedule, Change) else schedule > 0


def schedule_text(schedule: float | Change) -> str:
    """A schedule as short text: `2`, `1→0`."""
    return f"{schedule.start:g}→{schedule.end:g}" if isinstance(schedule, Change) else f"{schedule:g}"


def _number_or_change(value: Any) -> Any:
    """Choose the form by its shape, so that a mistake gives one message and not one per form."""
    if isinstance(value, dict):
        return Change.model_validate(value)
    if not isinstance(value, Change) and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ValueError(f"{value!r} is neither a number nor a change, such as {{start: 1, end: 0}}")
    if _least(value) < 0 or not math.isfinite(_least(value)):
        raise ValueError(f"{value!r} should be a number of 0 or more")
    return value


def _above_zero(value: float | Change) -> float | Change:
    if _least(value) == 0:
        raise ValueError("a temperature must be above 0 throughout")
    return value


def _least(value: float | Change) -> float:
    return min(value.start, value.end) if isinstance(value, Change) else float(value)


Schedule = Annotated[float | Change, BeforeValidator(_number_or_change)]
"""A weight: a number, or `{start: 1, end: 0, shape: linear, begin: 0, until: 0.5}`."""

PositiveSchedule = Annotated[float | Change, BeforeValidator(_number_or_change), AfterValidator(_above_zero)]
"""A temperature: a number or a change, never 0."""

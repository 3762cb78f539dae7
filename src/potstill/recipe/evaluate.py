"""Settings of evaluation and of the report."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from potstill.recipe.base import Settings


class EvaluateSettings(Settings):
    """What is measured on held-out records, and how surely.

    Intervals are paired bootstraps over groups: `resamples` of them at `confidence`. `speed` measures prefill and
    decode rates and peak memory of both models side by side.
    """

    resamples: PositiveInt = 2000
    confidence: float = Field(0.95, gt=0.5, lt=1)
    tokens_per_batch: PositiveInt = 4096
    speed: bool = True
    samples_shown: int = Field(8, ge=0)
    sample_tokens: PositiveInt = 64
    controls: tuple[Literal["untrained"], ...] = ("untrained",)


class ReportSettings(Settings):
    """The page that a person looks at."""

    title: str | None = None
    worst_documents: int = Field(6, ge=0)

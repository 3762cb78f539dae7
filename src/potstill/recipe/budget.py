"""Caps on what a generation may use of an endpoint. A stated limit is a hard limit."""

from __future__ import annotations

from pydantic import Field

from potstill.recipe.base import Count, Settings


class BudgetSettings(Settings):
    """The total that a stage may use of an endpoint, over all interruptions.

    `tokens` counts tokens read and written, `requests` everything that is sent (retries included), `money` is in US
    dollars and needs a known price. The worst case of each request is reserved before it is sent.
    """

    tokens: Count | None = None
    requests: Count | None = None
    money: float | None = Field(None, gt=0, allow_inf_nan=False)

    @property
    def stated(self) -> tuple[str, ...]:
        """The caps that are set, by name."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)

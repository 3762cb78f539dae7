"""The price of an endpoint: stated in the recipe, or from the table of `genai-prices`, without network access.

A model in neither has an unknown price, which never counts as zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from urllib.parse import urlsplit

from potstill.errors import RecipeError
from potstill.recipe import EndpointTeacher

UNITS_PER_DOLLAR = 10**11
"""Money is counted in billionths of a cent."""


@dataclass(frozen=True)
class Prices:
    """Units (`UNITS_PER_DOLLAR`) per token read and written, per request, and the source of the prices."""

    read: Decimal
    written: Decimal
    request: Decimal
    source: str

    def of(self, read: int, written: int, requests: int = 1) -> int:
        """The cost of a request, in units, rounded up."""
        return math.ceil(self.read * read + self.written * written + self.request * requests)


def prices_of(settings: EndpointTeacher) -> Prices | None:
    """The prices of an endpoint; None if unknown.

    If a price rises with the length of the prompt, the highest is used: a cap is then kept, and the reported cost may
    be too high. Discounts (cached prompts, batches) are ignored for the same reason.
    """
    per_token = Decimal(UNITS_PER_DOLLAR) / 1_000_000
    if settings.price is not None:
        stated = settings.price
        read, written = (Decimal(str(dollars)) * per_token for dollars in (stated.input, stated.output))
        return Prices(read, written, Decimal(0), "the recipe")
    import genai_prices

    usage = genai_prices.Usage(input_tokens=1, output_tokens=1)
    try:
        if settings.price_provider is not None:
            found = genai_prices.calc_price(usage, settings.model, provider_id=settings.price_provider)
        else:
            # By address only: a model of the same name on the user's own machine has another price.
            found = genai_prices.calc_price(usage, settings.model, provider_api_url=settings.base_url)
    except LookupError:
        return None
    price = found.model_price
    read_price, written_price = (_highest(getattr(price, name, None)) for name in ("input_mtok", "output_mtok"))
    if read_price is None or written_price is None:
        return None
    request = _highest(getattr(price, "requests_kcount", None)) or Decimal(0)
    units = request * UNITS_PER_DOLLAR / 1000
    return Prices(read_price * per_token, written_price * per_token, units, f"genai-prices, {found.provider.id}")


def check_price(settings: EndpointTeacher, *, capped: bool) -> Prices | None:
    """The prices, if known. `capped`: money is capped, so they must be known.

    Raises:
        RecipeError: money is capped, and the price is unknown.
    """
    prices = prices_of(settings)
    if capped and prices is None:
        server = urlsplit(settings.base_url).hostname
        raise RecipeError(
            f"money is capped, and nobody knows what {settings.model!r} at {server} costs",
            where="generate.budget.money",
            fix="state it, in dollars per million tokens: teacher.price: {input: …, output: …} (0 if it is your own "
            "machine), or name a provider of genai-prices by teacher.price_provider",
        )
    return prices


def dollars(units: int) -> float:
    """Units as dollars."""
    return units / UNITS_PER_DOLLAR


def _highest(price: object) -> Decimal | None:
    """A price per million, the highest of its tiers."""
    if price is None:
        return None
    if isinstance(price, Decimal):
        return price
    base = getattr(price, "base", None)
    tiers = [getattr(tier, "price", None) for tier in getattr(price, "tiers", ())]
    known = [p for p in (base, *tiers) if isinstance(p, Decimal)]
    return max(known) if known else None

"""Documentation and recipes that come with potstill: inside an installed wheel, or beside the sources of a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_INSTALLED = Path(__file__).parent / "shipped_files"
_CHECKOUT = Path(__file__).parents[2]


def shipped(what: Literal["docs", "recipes"]) -> Path | None:
    """The folder; None in an installation that has neither."""
    places = [_INSTALLED / what, _CHECKOUT / what]
    probe = {"docs": "train.md", "recipes": "demo.yaml"}[what]
    return next((place for place in places if (place / probe).is_file()), None)

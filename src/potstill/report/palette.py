"""The appearance of each model, the same in every chart: a colour, a dash, a shape and a name, each of which identifies
it.

The colours are those of Okabe and Ito (2008), which readers with colour blindness can distinguish, darkened or
lightened for contrast with the page. Charts are drawn with the stand-ins below; `svg.py` turns each into a class, and
`style.css` defines the class for light and dark mode.
"""

from __future__ import annotations

from dataclasses import dataclass

from potstill.measures import MODELS


@dataclass(frozen=True)
class Look:
    """`dash` and `shape` as Vega names them."""

    shown: str
    colour: str
    dash: tuple[int, ...]
    shape: str


LOOKS = {
    "teacher": Look("teacher", "#3b3b3b", (1, 0), "diamond"),
    "student": Look("student", "#0072b2", (1, 0), "circle"),
    "text_only": Look("text only", "#d55e00", (7, 4), "square"),
    "text_only_equal_seconds": Look("text only, equal seconds", "#b58900", (1, 3), "cross"),
    "rounded_afterwards": Look("rounded afterwards", "#00775a", (5, 2, 1, 2), "triangle-down"),
    "untrained": Look("untrained", "#aa4499", (2, 3), "triangle-up"),
}
assert tuple(LOOKS) == MODELS

INK, SOFT, GRID, RULE = "#111111", "#777777", "#dddddd", "#999999"

CLASSES = {look.colour: name.replace("_", "-") for name, look in LOOKS.items()} | {
    INK: "ink",
    SOFT: "soft",
    GRID: "grid",
    RULE: "rule",
}
"""The class of each stand-in colour: `fill-student`, `stroke-grid`."""


def shown(name: str) -> str:
    """The name of a model on the page."""
    return LOOKS[name].shown if name in LOOKS else name.replace("_", " ")

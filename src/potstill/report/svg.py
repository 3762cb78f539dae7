"""A chart as static SVG that is safe to embed in a page: drawn offline by vl-convert, then reduced to shapes and text.

The result has no script, style, link, font or reference of any kind: only the elements and attributes listed here pass.
Colours become classes, so that the page's style defines them for light and dark mode.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

from markupsafe import Markup

from potstill.report.palette import CLASSES

_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_SVG = "http://www.w3.org/2000/svg"
_ELEMENTS = frozenset({"svg", "g", "path", "line", "rect", "text", "tspan"})
_ATTRIBUTES = frozenset(
    "d transform x y x1 y1 x2 y2 dx dy width height viewBox opacity fill-opacity stroke-opacity stroke-width "
    "stroke-dasharray stroke-linecap stroke-linejoin stroke-miterlimit text-anchor font-size font-weight".split()
)
_COLOURLESS = frozenset({"none", "transparent"})


def draw(chart: Any, label: str) -> Markup:
    """Draw an altair chart.

    Args:
        chart: the chart, in colours of `palette.py` only.
        label: a description of the chart for screen readers.

    Returns:
        An `<svg>` element.
    """
    import vl_convert

    return as_inline(vl_convert.vegalite_to_svg(chart.to_dict()), label)


def as_inline(svg: str, label: str) -> Markup:
    """Reduce an SVG document to the elements that may be embedded.

    Raises:
        ValueError: it has a colour without a class.
    """
    root = _stripped(ElementTree.fromstring(svg))
    if root is None:
        raise ValueError("not an SVG document")
    root.set("role", "img")
    root.set("aria-label", label)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # built from allowed parts, escaped


def _stripped(element: ElementTree.Element) -> ElementTree.Element | None:
    name = element.tag.removeprefix(f"{{{_SVG}}}") if isinstance(element.tag, str) else ""
    if name not in _ELEMENTS or element.get("display") == "none":
        return None
    kept = ElementTree.Element(name, {k: v for k, v in element.attrib.items() if k in _ATTRIBUTES})
    classes = []
    for paint in ("fill", "stroke"):
        colour = element.get(paint)
        if colour is None:
            continue
        if colour in _COLOURLESS:
            kept.set(paint, "none")
        elif colour in CLASSES:
            classes.append(f"{paint}-{CLASSES[colour]}")
        else:
            raise ValueError(f"the colour {colour!r} stands for no class")
    if classes:
        kept.set("class", " ".join(classes))
    kept.text = element.text if name in ("text", "tspan") else None
    kept.extend([child for child in map(_stripped, element) if child is not None])
    if name == "g" and len(kept) == 0:
        return None
    return kept


def readable(value: Any) -> str:
    """Displayable text: control characters and lone surrogates become �."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", str(value))

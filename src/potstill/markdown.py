"""Escape foreign text for Markdown: model cards and data set cards. No torch."""

from __future__ import annotations

import re
from typing import Any

_SYNTAX = re.compile(r"([\\`*_{}\[\]<>|#~!$&])")
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def escape_markdown(value: Any) -> str:
    """Text that stays plain text in Markdown, in a paragraph or a table cell: no link, image, code, HTML or formula.
    Control characters and lone surrogates become U+FFFD."""
    return _SYNTAX.sub(r"\\\1", " ".join(_UNSEEN.sub("\N{REPLACEMENT CHARACTER}", str(value)).split()))


def code_span(value: Any) -> str:
    """A text as code, on one line; nothing for an empty text."""
    line = " ".join(_UNSEEN.sub("\N{REPLACEMENT CHARACTER}", str(value)).replace("|", "\\|").replace("`", "'").split())
    return f"`{line}`" if line else ""

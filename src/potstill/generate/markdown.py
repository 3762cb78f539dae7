"""HTML of chat windows as Markdown. Code keeps every character, in a fence with its language."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

from potstill.errors import MissingExtra

_TAGS = "div|p|ol|ul|li|pre|h[1-6]|table|blockquote|span|strong|em|code|br|b|i|u|s|del|a|hr|section|html|body"
_BEGINS = re.compile(rf"\s*<(?:!doctype\b|(?:{_TAGS})(?:\s[^<>]*)?/?>)", re.IGNORECASE)
_COPY = re.compile(r"\A\s*([\w+#.-]*?)\s*Copy code\s*")
_CONTROL = re.compile(r"\d+ / \d+|(?:Copy)?\d+ chars / \d+ words")
_ANSWER = ".markdown, .prose"
"""The element that holds an answer in a chat window."""


def is_html(text: str) -> bool:
    """Whether a text begins with an HTML tag, as the turns of a chat window do."""
    return _BEGINS.match(text) is not None


class Markdown:
    """Turns HTML into Markdown.

    Raises:
        MissingExtra: markdownify is not installed.
    """

    def __init__(self) -> None:
        if find_spec("markdownify") is None:
            raise MissingExtra("markdownify", "generate", "turning HTML into Markdown")
        self._converter = _converter()

    def of(self, html: str) -> str:
        """The Markdown of a piece of HTML. Raises `ValueError` where it cannot be parsed."""
        from bs4 import BeautifulSoup
        from bs4.exceptions import ParserRejectedMarkup

        try:
            soup = BeautifulSoup(html, "html.parser")
        except (ParserRejectedMarkup, AssertionError) as error:
            raise ValueError("HTML that cannot be parsed") from error
        for nothing in soup(["script", "style", "button", "svg", "noscript"]):
            nothing.decompose()
        _drop_controls(soup)
        for formula in soup.select(".katex"):
            _plain_formula(formula)
        try:
            return str(self._converter.convert_soup(soup)).strip()
        except RecursionError as error:
            raise ValueError("HTML that is nested too deeply") from error


def _drop_controls(soup: Any) -> None:
    """Remove the window's own counters: "2 / 3" beside a regenerated answer, "Copy123 chars / 45 words" below it.

    Each is an element beside the one that holds the answer. If no element is known to hold the answer, nothing is
    removed: "3 / 4" may be the answer.
    """
    answers = soup.select(_ANSWER)
    if not answers:
        return
    inside = {id(part) for answer in answers for part in (answer, *answer.find_all(True), *answer.parents)}
    for element in soup(["div", "span"]):
        text = "" if id(element) in inside or element.decomposed else " ".join(element.get_text().split())
        if _CONTROL.fullmatch(text):
            element.decompose()


def _plain_formula(formula: Any) -> None:
    """A page contains a formula three times: as TeX, as MathML, and drawn. Keep the TeX."""
    tex = formula.find("annotation")
    if tex is None:
        return
    display = formula.find_parent(class_="katex-display")
    written = tex.get_text().strip()
    (display or formula).replace_with(f"$${written}$$" if display is not None else f"${written}$")


def _converter() -> Any:
    from markdownify import ATX, MarkdownConverter

    class Converter(MarkdownConverter):
        def convert_pre(self, el: Any, text: str, parent_tags: Any) -> str:
            code = el.find("code")
            source, language = (code or el).get_text(), ""
            if code is not None:
                named = (c for c in code.get("class") or () if c.startswith(("language-", "lang-")))
                language = next(named, "").partition("-")[2]
            elif (copy := _COPY.match(source)) is not None:
                source, language = source[copy.end() :], copy[1]
            source = source.strip("\n")
            if not source.strip():
                return ""
            longest = max((len(run) for run in re.findall(r"`+", source)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"\n\n{fence}{language}\n{source}\n{fence}\n\n"

    # No escapes: a model would learn to write them.
    return Converter(heading_style=ATX, bullets="-", escape_asterisks=False, escape_underscores=False, autolinks=False)

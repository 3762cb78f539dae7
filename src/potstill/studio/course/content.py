"""The texts of the course, read from the package: lessons, figures, questions, bibliography, labs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from potstill.studio import charts

LESSONS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Choice:
    """One answer to a question, and why it is right or wrong."""

    text: str
    right: bool
    why: str


@dataclass(frozen=True)
class Question:
    """A question with one right choice. `key` is stable as long as the question's words are."""

    key: str
    lesson: int
    ask: str
    choices: tuple[Choice, ...]
    source: tuple[str, ...]
    why: str = ""

    @property
    def right(self) -> int:
        """The number of the right choice."""
        return next(number for number, choice in enumerate(self.choices) if choice.right)


@dataclass(frozen=True)
class Field:
    """What a reader may set for a step."""

    name: str
    label: str
    default: str


@dataclass(frozen=True)
class StepText:
    """One step of a lab: what it does, what it takes, and the parts of potstill without which it is not there."""

    key: str
    title: str
    text: str
    seconds: int
    fields: tuple[Field, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabText:
    """One lab."""

    lesson: int
    title: str
    intro: str
    steps: tuple[StepText, ...]
    opening: str

    def step(self, key: str) -> StepText:
        """A step by its key. Raises: KeyError."""
        return {step.key: step for step in self.steps}[key]


def _read(name: str) -> str:
    return files("potstill.studio.course").joinpath(*name.split("/")).read_text(encoding="utf-8")


@cache
def lesson(number: int) -> str:
    """The Markdown of a lesson."""
    return _read(f"lessons/lesson-{number}.md")


def lesson_title(number: int) -> str:
    """The title of a lesson."""
    return lesson(number).split("\n", 1)[0].removeprefix("# ")


def minutes(number: int) -> int:
    """How long a lesson takes to read, at 220 words a minute."""
    return max(1, round(len(lesson(number).split()) / 220))


@cache
def bibliography() -> Mapping[str, Mapping[str, str]]:
    """What is cited: text and link, by key."""
    found: Mapping[str, Mapping[str, str]] = yaml.safe_load(_read("bibliography.yaml"))
    return found


@cache
def figures() -> Mapping[str, Mapping[str, Any]]:
    """The figures of the lessons by name."""
    found: Mapping[str, Mapping[str, Any]] = yaml.safe_load(_read("figures.yaml"))
    return found


@cache
def quiz(number: int) -> tuple[Question, ...]:
    """The three questions of a lesson."""
    made: list[Question] = []
    for row in yaml.safe_load(_read("quiz.yaml")):
        if row["lesson"] == number:
            choices = tuple(Choice(c["text"], bool(c.get("right")), c["why"]) for c in row["choices"])
            made.append(Question(f"{number}-{len(made) + 1}", number, row["ask"], choices, tuple(row["source"])))
    return tuple(made)


@cache
def bank() -> tuple[Question, ...]:
    """All questions of the test."""
    made = []
    for number, row in enumerate(yaml.safe_load(_read("bank.yaml")), 1):
        choices = (Choice(row["right"], True, row["why"]), *(Choice(text, False, row["why"]) for text in row["wrong"]))
        made.append(Question(f"b{number}", row["lesson"], row["ask"], choices, tuple(row["source"]), row["why"]))
    return tuple(made)


@cache
def lab(number: int) -> LabText:
    """The lab of a lesson."""
    raw = yaml.safe_load(_read("labs.yaml"))[number]
    steps = tuple(
        StepText(
            step["key"],
            step["title"],
            step["text"],
            step["seconds"],
            tuple(Field(**field) for field in step.get("fields", ())),
            tuple(step.get("needs", ())),
        )
        for step in raw["steps"]
    )
    return LabText(number, raw["title"], raw["intro"], steps, raw["opening"])


# ---- from Markdown to a page -------------------------------------------------------------------------------------

_CITED = re.compile(r"\[([a-z0-9]+)\](?!\()")
_FIGURE = re.compile(r"```figure\n(\w+)\n```")


def slug(heading: str) -> str:
    """The anchor of a heading: `Temperature and T squared` is `temperature-and-t-squared`."""
    return re.sub(r"[^a-z0-9]+", "-", heading.lower().replace("`", "")).strip("-")


def lesson_html(number: int, url_of_sources: str) -> tuple[Markup, list[tuple[str, str]]]:
    """A lesson as HTML without its title, and its headings as (anchor, text). Citations are links to the sources."""
    body = lesson(number).split("\n", 1)[1]
    numbers = {key: place for place, key in enumerate(bibliography(), 1)}
    body = _CITED.sub(lambda m: f"[[{numbers[m[1]]}]]({url_of_sources}#{m[1]})" if m[1] in numbers else m[0], body)
    parts = _FIGURE.split(body)
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    made, headings = Markup(""), []
    for place, part in enumerate(parts):
        if place % 2:
            made += figure_html(part)
            continue
        tokens = markdown.parse(part)
        for index, token in enumerate(tokens):
            if token.type == "heading_open":
                text = tokens[index + 1].content
                token.attrSet("id", slug(text))
                headings.append((slug(text), text))
        rendered = markdown.renderer.render(tokens, markdown.options, {})
        made += Markup(
            rendered.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace(
                "</table>", "</table></div>"
            )
        )
    return made, headings


def _scrolled(html: str) -> str:
    """Tables that are wider than a phone scroll by themselves."""
    opening = '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>'
    return html.replace("<table>", opening).replace("</table>", "</table></div>")


def figure_html(name: str) -> Markup:
    """A figure of a lesson, with its caption and where its numbers are from."""
    raw = figures()[name]
    if raw["kind"] == "bars":
        made = charts.bars([(str(n), float(v)) for n, v in raw["values"]], title=raw["title"], unit=raw.get("unit", ""))
    else:
        curves = {str(n): [(float(x), float(y)) for x, y in points] for n, points in raw["curves"].items()}
        made = charts.lines(curves, x=raw["x"], y=raw["y"], title=raw["title"])
    source = f'<span class="from">From: {escape(raw["source"])}.</span>'
    note = f'<p class="note">{escape(raw["caption"])} {source}</p></figure>'
    return Markup(str(made).removesuffix("</figure>") + note)

"""The table as a page, docs/sources.md: `python -m potstill.policy.page > docs/sources.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from potstill.console import emit
from potstill.markdown import escape_markdown
from potstill.policy.table import Answer, Do, Route, Source, decide, table
from potstill.policy.terms import DUTIES_IN_WORDS
from potstill.recipe.policy import Purpose

_HEAD = """# Licences and terms: the table

What each text says of making a student from it. Written from `src/potstill/policy/sources.toml` by
`python -m potstill.policy.page`; the page [Licences and terms](policy.md) explains the words. It is one reading of the
texts, with the clause and the digest of the text beside it so that you can check it, and it is not legal advice.

Columns are routes: **outputs**, training on text that a model wrote; **logits**, on its distributions or hidden states;
**weights**, starting from them; **data**, training on a data set. In a cell stand the answers for research, commercial
use and publishing the weights, in this order. Where a text distinguishes students that start from its own weights,
those stand in brackets.
"""
_SHORT: dict[Answer, str] = {"allow": "yes", "duties": "duties", "warn": "?", "block": "no"}


def table_page() -> str:
    """The page."""
    sources = list(table().sources.values())
    groups = (
        ("Licences of models and data", [s for s in sources if "provider" not in s.kinds and s.was_read]),
        ("Terms of providers", [s for s in sources if "provider" in s.kinds and s.was_read]),
    )
    lines = [_HEAD]
    for title, members in groups:
        lines += [f"## {title}", "", *_answers(members), ""]
    lines += ["## Not read", "", "Their texts could not be read. Every answer is `warn`: read them yourself.", ""]
    lines += [f"- {_linked(source)}, `{source.id}`" for source in sources if not source.was_read]
    lines += ["", "## Clauses, duties and texts", ""]
    for source in (source for source in sources if source.was_read):
        lines += [*_details(source), ""]
    return "\n".join(lines).rstrip() + "\n"


def _answers(sources: list[Source]) -> Iterator[str]:
    routes: tuple[Route, ...] = get_args(Route)
    yield f"| Source | {' | '.join(routes)} |"
    yield f"| --- |{' --- |' * len(routes)}"
    for source in sources:
        cells = [_cell(source, route) if route in source.routes else "" for route in routes]
        yield f"| [{escape_markdown(source.name)}](#{source.id.replace('.', '')}) | {' | '.join(cells)} |"


def _cell(source: Source, route: Route) -> str:
    others, own = (
        ", ".join(_SHORT[decide(source.id, route, purpose, of).answer] for purpose in get_args(Purpose))
        for of in (None, source.id)
    )
    return others if others == own else f"{others} ({own})"


def _details(source: Source) -> Iterator[str]:
    yield f"### {source.id}"
    yield ""
    text = f"[this text]({source.text})" if "://" in source.text else f"`{source.text}` of scancode-toolkit-mini 32.5.0"
    read = f"Read on {source.read_on}: {text}, SHA-256 `{source.sha256}`." if source.text else ""
    yield f"{_linked(source)}. {read}".rstrip()
    if source.note:
        yield f"{escape_markdown(source.note)}"
    yield ""
    for rule in source.rules:
        of = {"any": "", "same": ", for students of its own weights", "other": ", for students of other weights"}[
            rule.of
        ]
        duties = "; ".join(_duty(duty.do, duty.text) for duty in rule.duties)
        what = f"{', '.join(rule.routes)}, for {', '.join(rule.purposes)}{of}"
        yield f"- {escape_markdown(rule.clause)}: {what}: **{rule.answer}**{f' ({duties})' if duties else ''}"


def _duty(do: Do, text: str) -> str:
    return f"{DUTIES_IN_WORDS[do]}: {escape_markdown(text)}" if text else DUTIES_IN_WORDS[do]


def _linked(source: Source) -> str:
    name = escape_markdown(source.name)
    return f"[{name}]({source.address})" if source.address else name


if __name__ == "__main__":
    emit(table_page().rstrip("\n"))

"""Licences and terms as a section of a card: of a student, and of a data set. Markdown; text of others is escaped."""

from __future__ import annotations

from collections.abc import Iterator

from potstill.markdown import code_span, escape_markdown
from potstill.policy.gate import PURPOSES_IN_WORDS, ROUTES_IN_WORDS, UNKNOWN, Ruling, Rulings
from potstill.policy.table import Duty, table

ANSWERS_IN_WORDS = {
    "allow": "allowed",
    "duties": "allowed, with duties",
    "warn": "not known",
    "block": "not allowed",
}

DUTIES_IN_WORDS = {
    "copy_licence": "a copy of the licence goes along",
    "notice": "a notice goes along",
    "attribution": "its makers are named",
    "changed": "it is said that it was changed",
    "display": "is displayed with the model or product",
    "name_prefix": "is the beginning of the model's name",
    "restrictions": "its use restrictions bind whoever gets the student",
    "share_alike": "the student is under the same licence",
    "noncommercial": "no commercial use",
    "use_policy": "its use policy is followed",
    "condition": "it holds only for some",
}


def terms_section(rulings: Rulings) -> list[str]:
    """Lines: every source with its answers, the duties, what was overridden, and what nobody was asked about."""
    purposes = rulings.purposes
    lines = [
        f"| What | Used for | Licence or terms | {' | '.join(PURPOSES_IN_WORDS[p].capitalize() for p in purposes)} |",
        f"| --- | --- | --- |{' --- |' * len(purposes)}",
    ]
    for rows in _by_source(rulings):
        answers = " | ".join(_answer(ruling) for ruling in rows)
        lines.append(f"| {_used(rows[0])} | {ROUTES_IN_WORDS[rows[0].use.route]} | {_licence(rows[0])} | {answers} |")
    if rulings.duties:
        lines += ["", "Duties:", "", *(f"- {duty_text(duty)}" for duty in rulings.duties)]
    for override in rulings.provenance.overrides:
        what = f"**Overridden**: {code_span(override.source)}, by {escape_markdown(override.by)} on {override.on}"
        lines += ["", f"{what}: {escape_markdown(override.reason)}"]
    others = [words for purpose, words in PURPOSES_IN_WORDS.items() if purpose not in purposes]
    if others:
        lines += ["", f"Not asked for this student: {' and '.join(others)}."]
    lines += ["", "The answers are a table's reading of the texts. They are not legal advice."]
    return lines


def duty_text(duty: Duty) -> str:
    """A duty as a line of Markdown."""
    name = escape_markdown(table().sources[duty.source].name)
    text = f"“{escape_markdown(duty.text)}” " if duty.do in ("display", "name_prefix", "notice") else ""
    after = f": {escape_markdown(duty.text)}" if duty.text and not text else ""
    return f"{name}, {escape_markdown(duty.clause)}: {text}{DUTIES_IN_WORDS[duty.do]}{after}"


def _by_source(rulings: Rulings) -> Iterator[tuple[Ruling, ...]]:
    """The rulings of one use under one licence, one a purpose."""
    step = len(rulings.purposes)
    for first in range(0, len(rulings.rulings), step):
        yield rulings.rulings[first : first + step]


def _used(ruling: Ruling) -> str:
    through = ", ".join(map(escape_markdown, ruling.use.through))
    return escape_markdown(ruling.use.name) + (f" (through {through})" if through else "")


def _licence(ruling: Ruling) -> str:
    """The licence, and how it is known."""
    signs = [evidence for evidence in ruling.use.evidence if evidence.source == ruling.source]
    shown = "; ".join(f"{e.how}: {e.stated}" if e.stated else e.how for e in signs)
    known = table().sources.get(ruling.source)
    if known is None:
        return f"{UNKNOWN} ({escape_markdown(shown)})"
    name = escape_markdown(known.name)
    return f"{f'[{name}]({known.address})' if known.address else name} ({escape_markdown(shown)})"


def _answer(ruling: Ruling) -> str:
    text = ANSWERS_IN_WORDS[ruling.answer]
    where = ruling.decision.clause or ruling.decision.why
    overridden = "; overridden" if ruling.override is not None else ""
    return f"{text} ({escape_markdown(where)}{overridden})"

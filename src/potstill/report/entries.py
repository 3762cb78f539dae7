"""The worst documents and examples of the page, ready for the template: texts, images, and the models' answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.report import figures
from potstill.report.findings import Findings
from potstill.report.palette import LOOKS
from potstill.report.terminology import Words, words_of
from potstill.tasks import SPECS

TEXT_SHOWN = 4000
"""Maximum characters of a text; the page says how many were cut."""

_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True)
class Text:
    """One of several texts shown side by side: its model, how it ended, and the number of characters cut."""

    model: str
    label: str
    note: str
    text: str
    left_out: int


@dataclass(frozen=True)
class Entry:
    """A held-out document or example, and the models' answers to it. `image` is a PNG in base64. `short` says that the
    texts are class names."""

    heading: str
    losses: str
    prompt: Text | None
    texts: Sequence[Text]
    image: str | None = None
    short: bool = False


def entries_of(findings: Findings) -> list[Entry]:
    """The worst documents or examples, with their texts side by side."""
    limit = findings.recipe.evaluate.sample_tokens if findings.recipe.evaluate is not None else 0
    words = words_of(findings.measures)
    worst = findings.documents[: findings.recipe.report.worst_documents]
    task = SPECS[findings.measures.task]
    if task.writes:
        return [_document(raw, words, limit) for raw in worst]
    if task.masks:
        return [_masked(raw, words) for raw in worst]
    return [(_example if task.has_response else _neighbours)(raw, words) for raw in worst]


def worst_of(findings: Findings) -> str:
    """The criterion by which the worst are chosen, in words."""
    student, task = findings.student, SPECS[findings.measures.task]
    if task.has_vocabulary:
        return "the student is " + ("farthest from its teacher" if student.get("kl") else "least sure of the text")
    if task.has_response:
        return "the student finds the right class least likely"
    if student.get("top1_agreement"):
        return "the student’s nearest neighbour is least like the text in its teacher’s eyes"
    return "the student’s nearest neighbour has another label"


def _document(raw: Mapping[str, Any], words: Words, limit: int) -> Entry:
    answers = raw.get("answers") or {}
    finished = raw.get("finished") or {}
    ended = {name: _ended(finished.get(name), limit) for name in answers}
    return Entry(
        heading=_heading(raw, words),
        losses=_losses(raw),
        prompt=_text("", "Prompt", "", raw["prompt"]),
        texts=[
            _text("", "Held-out text", "what the figures are measured on", raw["reference"]),
            *(_text(n, f"{words.shown(n)} writes", ended[n], answers[n]) for n in LOOKS if n in answers),
        ],
    )


def _masked(raw: Mapping[str, Any], words: Words) -> Entry:
    return Entry(
        heading=_heading(raw, words),
        losses=_losses(raw),
        prompt=None,
        texts=[
            _text("", "As the models see it", "blanks are what they are asked for", raw["prompt"]),
            _text("", "Held-out text", "", raw["reference"]),
        ],
    )


def _heading(raw: Mapping[str, Any], words: Words) -> str:
    kl = raw.get("kl")
    worst = f"KL {figures.number(kl)}" if kl is not None else f"NLL {figures.number(raw['nll_student'])}"
    return f"{worst} nats per {words.unit}, over {figures.count(raw['targets'])} {words.units}"


def _losses(raw: Mapping[str, Any]) -> str:
    losses = [f"NLL of the student {figures.number(raw['nll_student'])}"]
    if raw.get("nll_teacher") is not None:
        losses.append(f"of the teacher {figures.number(raw['nll_teacher'])}")
    return ", ".join(losses)


def _example(raw: Mapping[str, Any], words: Words) -> Entry:
    said = raw["predictions"]
    image = raw.get("image")
    return Entry(
        heading=f"Labelled {raw['label']}, and the student says {_or_so(said['student']['class'], raw['label'])}",
        losses=_losses(raw) + " nats",
        prompt=None if raw.get("text") is None else _text("", "Text", "", raw["text"]),
        texts=[
            _text(
                name,
                f"{words.shown(name)} says",
                f"with probability {figures.percent(said[name]['probability'], 1)}",
                said[name]["class"],
            )
            for name in LOOKS
            if name in said and name != "untrained"
        ],
        short=True,
        # Only base64, whatever the file contains.
        image=image if isinstance(image, str) and _BASE64.fullmatch(image) else None,
    )


def _or_so(said: str, label: str) -> str:
    return "so, unsurely" if said == label else said


def _neighbours(raw: Mapping[str, Any], words: Words) -> Entry:
    found = raw["neighbours"]
    regret = raw.get("regret")
    labelled = f"Labelled {raw['label']}" if raw["label"] else "Text"
    losses = (
        f"cosine of the student’s neighbour {figures.number(found['student']['cosine'])}"
        if regret is None
        else f"to the teacher, the student’s neighbour is less like it than its own by {figures.number(regret, 3)}"
    )
    return Entry(
        heading=labelled,
        losses=losses,
        prompt=_text("", "Text", "", raw["text"]),
        texts=[
            _text(
                name,
                f"{words.shown(name)} finds",
                f"cosine {figures.number(found[name]['cosine'], 3)}"
                + (f", labelled {found[name]['label']}" if found[name]["label"] else ""),
                found[name]["text"],
            )
            for name in LOOKS
            if name in found and name != "untrained"
        ],
    )


def _ended(finished: bool | None, limit: int) -> str:
    if finished is None:
        return ""
    return "stopped by itself" if finished else f"cut at {limit} tokens"


def _text(model: str, label: str, note: str, text: str) -> Text:
    return Text(model, label[:1].upper() + label[1:], note, text[:TEXT_SHOWN], max(0, len(text) - TEXT_SHOWN))

"""Preview before spending: the first few requests as rendered, and the teacher's answers as parsed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from potstill.answering.base import NO_JUDGES, Answered, Answering, PassingOn, SideOf
from potstill.answering.journal import FILE_NAME, Journal
from potstill.artifacts import Work
from potstill.console import Console
from potstill.data.read import split_of
from potstill.generate.stage import advice, asked_rows, open_answering, open_program, read_counted
from potstill.recipe import Recipe
from potstill.types import Record, Request

_ROWS_READ = 1000
"""A preview looks for requests in at most this many rows."""


class Watched(PassingOn):
    """Passes on the first few requests, records their outcomes, and then stops. No other teacher is used."""

    def __init__(self, inner: Answering, most: int) -> None:
        super().__init__(inner)
        self.judges = NO_JUDGES
        self._left = most
        self.came: list[Answered] = []

    def answers(self, requests: Iterable[Request], *, side_of: SideOf | None = None) -> Iterator[Answered]:
        asked = list(islice(requests, self._left))
        self._left -= len(asked)
        for answered in self.inner.answers(asked, side_of=side_of):
            self.came.append(answered)
            yield answered


def preview(recipe: Recipe, run: Path, count: int, console: Console) -> dict[str, Any]:
    """Answer only the first `count` requests of a recipe. The answers go into the run's journal, where the run itself
    finds those of an endpoint. No artifact is written.

    Returns:
        `requests` (the rendered prompt, or the messages if the server renders; the raw answer, and answer, reasoning
        or failure as parsed), `kept` and `rejected` (by reason), `judged` (the verdict on each answer that a verifier
        judged or a filter removed), `advice` (what to change so that more is kept; empty if all is) and `facts`.
    """
    program = open_program(recipe)
    side_of = split_of(recipe.data).side_of
    work = Work(run, resumed=False)
    kept, rejected, judged = 0, dict[str, int](), list[str]()
    with (
        Journal(run / FILE_NAME) as journal,
        open_answering(recipe, journal, scope="preview", console=console, judges=False) as answering,
    ):
        watched = Watched(answering, count)
        rows = asked_rows(islice(read_counted(recipe, work), _ROWS_READ), recipe, side_of)
        for item in program.write(rows, watched, side_of=side_of, work=work):
            if isinstance(item, Record):
                kept += 1
                judged += [f"row {item.row}, sample {item.sample}: {v.outcome}, {v.reason}" for v in item.verdicts]
            else:
                rejected[item.reason] = rejected.get(item.reason, 0) + 1
                judged += [f"row {item.row}, {item.detail} ({item.reason})"] if item.detail else []
            if len(watched.came) >= count and kept + sum(rejected.values()) >= count:
                break
        requests = [_shown(answered, answering) for answered in watched.came]
    return {
        "requests": requests,
        "kept": kept,
        "rejected": rejected,
        "judged": judged,
        "advice": advice(recipe.required_generate, rejected) if rejected and not kept else "",
        "facts": answering.facts(),
    }


def preview_text(found: Mapping[str, Any]) -> str:
    """The preview as text for a person."""
    lines: list[str] = []
    total = len(found["requests"])
    for number, shown in enumerate(found["requests"], 1):
        where = "from the journal" if shown["from_journal"] else "asked now"
        lines.append(
            f"──── {number} of {total}, {where}" + (f", seed {shown['seed']}" if shown["seed"] is not None else "")
        )
        if shown["continued"]:
            lines.append("── the prompt is continued as plain text: the teacher is not asked in turns")
        if shown["rendered"] is not None:
            lines.append(shown["rendered"])
        else:
            lines += [f"{message['role']}: {message.get('content', '')}" for message in shown["messages"]]
        if shown["failure"] is not None:
            lines.append(f"── no answer: {shown['failure']}")
            if shown["raw"]:
                lines.append(shown["raw"]["text"])
            continue
        if shown["reasoning"] is not None:
            lines += ["── reasoning", shown["reasoning"]]
        tokens = f"{shown['raw']['prompt_tokens']} tokens read, {shown['raw']['completion_tokens']} written"
        ended = "" if shown["raw"]["finish"] == "stop" else ", cut short"
        lines += [f"── answer ({tokens}{ended})", shown["text"]]
    lines += ["──── what became of them", *found["judged"]] if found["judged"] else []
    rejected = "".join(f"; {count} rejected: {reason}" for reason, count in sorted(found["rejected"].items()))
    lines.append(f"──── {found['kept']} kept{rejected}. Nothing further was asked.")
    if not found["requests"] and found["rejected"]:
        lines.append("──── no row of the data could be asked")
    if found["advice"]:
        lines.append(f"fix: {found['advice']}")
    return "\n".join(lines)


def _shown(answered: Answered, answering: Answering) -> dict[str, Any]:
    request, answer = answered.request, answered.answer
    messages = request.messages if request.messages is not None else ({"role": "prompt", "content": request.prompt},)
    failure = answered.failure
    return {
        "rendered": answering.rendered(request),
        "continued": request.messages is None and not answering.turns,
        "messages": [dict(message) for message in messages],
        "sample": request.sample,
        "seed": answered.seed,
        "from_journal": answered.from_journal,
        "raw": asdict(answered.raw) if answered.raw is not None else None,
        "text": answer.text if answer is not None else None,
        "reasoning": answer.reasoning if answer is not None else None,
        "failure": None
        if failure is None
        else f"{failure.reason}: {failure.detail}"
        if failure.detail
        else failure.reason,
    }

"""The tutor's page of a lab: a question, an answer that is written while one watches, and a way to stop it."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from potstill.studio.course import content
from potstill.studio.live import Broadcast
from potstill.studio.pages.learn import lesson_number
from potstill.studio.render import form_of, page, redirect, text
from potstill.studio.tutor import Conversation


def _conversation(request: Request, number: int) -> Conversation:
    studio = request.app.state.studio
    if number not in studio.conversations:
        studio.conversations[number] = Conversation.load(studio.workspace.own / "tutor" / f"{number}.jsonl")
    found: Conversation = studio.conversations[number]
    return found


def _live(request: Request, number: int) -> str:
    conversation = _conversation(request, number)
    return text(request.app.state.studio.token, "_tutor.html.jinja", number=number, turns=conversation.turns[-30:],
                busy=conversation.busy)  # fmt: skip


async def show(request: Request) -> Response:
    """The conversation of a lab, and a form."""
    number = lesson_number(request)
    return page(request, "tutor.html.jinja", number=number, live=_live(request, number),
                model=request.app.state.studio.tutor, opening=content.lab(number).opening)  # fmt: skip


async def ask(request: Request) -> Response:
    """Ask, or stop what is being answered."""
    number, form, studio = lesson_number(request), await form_of(request), request.app.state.studio
    conversation = _conversation(request, number)
    if form.get("do") == "stop":
        conversation.stop()
    elif form.get("question", "").strip() and not conversation.busy:
        answering = conversation.ask(form["question"], studio.workspace, number, studio.tutor)
        conversation.task = asyncio.create_task(answering)
        await asyncio.sleep(0)  # the question is on the page that follows
    return redirect(request, "learn", str(number), "tutor")


async def events(request: Request) -> Response:
    """The conversation, as it is written."""
    number, studio = lesson_number(request), request.app.state.studio
    new = Broadcast(lambda: _live(request, number), every=0.25)
    broadcast: Broadcast = studio.broadcasts.setdefault(f"tutor {number}", new)
    return StreamingResponse(broadcast.listen(), media_type="text/event-stream")


ROUTES = [
    Route("/learn/{number}/tutor", show),
    Route("/learn/{number}/tutor", ask, methods=["POST"]),
    Route("/learn/{number}/tutor/events", events),
]

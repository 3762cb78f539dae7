"""The playground: one prompt to several models side by side, streamed, with every distribution to look at."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from potstill.errors import PotstillError
from potstill.recipe import Recipe
from potstill.studio import charts
from potstill.studio.control import parsed
from potstill.studio.live import Broadcast
from potstill.studio.render import form_of, page, place_in, problem, redirect, text
from potstill.studio.session import Session
from potstill.studio.workspace import Workspace
from potstill.tasks import SPECS

COLOURS = {
    "kl": "KL to the teacher",
    "surer": "who was surer",
    "draft": "who wrote it: the student drafts for the teacher",
}
"""What the colour of a token may show."""


def choices(workspace: Workspace) -> list[dict[str, Any]]:
    """The runs whose models can be put side by side: causal students, with their teacher and their control."""
    found = []
    for name in workspace.names():
        run = workspace.folder / name
        recipe = parsed(run)
        task = SPECS.get(recipe.get("task", Recipe.model_fields["task"].default))
        if task is None or not task.writes or not _model(run / "train"):
            continue
        models = {"student": f"run:{run}"}
        teachers = recipe.get("teachers")
        teacher = teachers.get("main") if isinstance(teachers, dict) else recipe.get("teacher")
        if isinstance(teacher, dict) and teacher.get("kind") == "local" and isinstance(teacher.get("model"), str):
            models = {"teacher": teacher["model"], **models}
        if _model(run / "train.text_only"):
            models["control"] = str(run / "train.text_only" / "model")
        found.append({"run": name, "models": models})
    return found


def _model(stage: Path) -> bool:
    return (stage / "manifest.json").is_file() and (stage / "model" / "config.json").is_file()


async def show(request: Request) -> Response:
    """The form, and what was written last."""
    return await _show(request)


async def _show(request: Request, error: PotstillError | None = None) -> Response:
    studio = request.app.state.studio
    found = await asyncio.to_thread(choices, studio.workspace)
    return page(request, "playground.html.jinja", 400 if error else 200, choices=found, session=studio.session,
                colours=COLOURS, live=_live(request), problem=None if error is None else problem(error))  # fmt: skip


def _live(request: Request) -> str:
    studio = request.app.state.studio
    session: Session = studio.session
    columns = [
        {"role": role, "model": session.models.get(role, ""), "tokens": [_token(session, role, t) for t in tokens]}
        for role, tokens in session.columns.items()
    ]
    return text(studio.token, "_playground.html.jinja", session=session, columns=columns)


def _token(session: Session, writer: str, said: dict[str, Any]) -> dict[str, Any]:
    """One token as it is shown: its class by KL, by which of teacher and student was surer, or by who wrote it."""
    first = next(iter(session.models))
    other = next((role for role in session.models if role != first), first)
    seen = writer if writer != first else other
    if session.colour == "surer":
        gap = said["p"].get(first, 0.0) - said["p"].get(seen, 0.0)
        name = ("t" if gap > 0 else "s") + str(min(9, int(10 * abs(gap))))
        title = f"{first} {said['p'].get(first, 0):.2f}, {seen} {said['p'].get(seen, 0):.2f}"
    elif session.colour == "draft":
        name, title = ("s7" if said["by"] != first else "t0"), f"by the {said['by']}"
    else:
        far = said["kl"].get(seen, 0.0)
        name, title = f"k{min(9, int(3 * far))}", f"KL {far:.2f} nats"
    return {"text": "⟂" if said["end"] else said["text"], "class": name, "title": title}


async def begin(request: Request) -> Response:
    """Write, or stop."""
    studio, form = request.app.state.studio, await form_of(request)
    session: Session = studio.session
    if form.get("do") == "stop":
        await session.send(stop=True)
        return redirect(request, "playground")
    found = await asyncio.to_thread(choices, studio.workspace)
    chosen = next((c for c in found if c["run"] == form.get("run")), None)
    prompt = form.get("prompt", "").strip()[:4000]
    if chosen is None or not prompt:
        what = "no run is chosen" if chosen is None else "there is no prompt"
        return await _show(request, PotstillError(what, fix="choose a run and write a prompt"))
    colour = form.get("colour", "")
    if colour == "draft" and "teacher" not in chosen["models"]:
        what = "this run's teacher is not a model of this machine, so nothing can be drafted for it"
        return await _show(request, PotstillError(what, fix="choose another run, or another colour"))
    session.colour = colour if colour in COLOURS else "kl"
    temperature, tokens = _number(form, "temperature", 0.7, 0.0, 4.0), int(_number(form, "tokens", 40, 1, 120))
    draft = "student" if session.colour == "draft" else None
    await session.write(chosen["models"], prompt, temperature, tokens, draft=draft)
    return redirect(request, "playground")


def _number(form: dict[str, str], name: str, default: float, low: float, high: float) -> float:
    try:
        return min(max(float(form.get(name, default)), low), high)
    except ValueError:
        return default


async def events(request: Request) -> Response:
    """What is written, as it is written."""
    studio = request.app.state.studio
    broadcast = studio.broadcasts.setdefault("playground", Broadcast(lambda: _live(request), every=0.25))
    return StreamingResponse(broadcast.listen(), media_type="text/event-stream")


async def at(request: Request) -> Response:
    """The distributions at one token."""
    session: Session = request.app.state.studio.session
    asked = dict(request.query_params)
    of = asked.get("of", "")
    place = place_in(asked.get("place", "0"), len(session.columns.get(of, ())))
    if place is None:
        return page(request, "_at.html.jinja", 404, shown=None, of=of, place=0, temperature=1.0)
    temperature = _number(asked, "temperature", 1.0, 0.1, 10.0)
    said = await session.at(of, place, temperature)
    most = 100 * max(p[role] for _, p in said["tokens"] for role in p)
    shown = []
    for role, entropy in said["entropy"].items():
        values = [(token.strip() or repr(token)[1:-1], 100 * p[role]) for token, p in said["tokens"]]
        shown.append({"bars": charts.bars(values, title=role, unit=" %", most=most), "entropy": entropy})
    return page(request, "_at.html.jinja", shown=shown, of=of, place=place, temperature=temperature,
                written=said["written"])  # fmt: skip


ROUTES = [
    Route("/playground", show),
    Route("/playground", begin, methods=["POST"]),
    Route("/playground/events", events),
    Route("/playground/at", at),
]

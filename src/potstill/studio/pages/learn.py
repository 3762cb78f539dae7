"""The course: lessons, quizzes, labs, the test, the certificate and the sources."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from potstill.errors import PotstillError
from potstill.studio import charts
from potstill.studio.course import content, labs, takeaway
from potstill.studio.course.progress import PASS_SHARE, QUESTIONS, Progress
from potstill.studio.live import Broadcast, Reader, time_left
from potstill.studio.render import form_of, page, place_in, problem, redirect, text
from potstill.studio.workspace import OUTPUT, Workspace, tail


def _progress(request: Request) -> Progress:
    return Progress.load(request.app.state.studio.workspace.own / "course.json")


def lesson_number(request: Request) -> int:
    """The lesson that the address names."""
    number = str(request.path_params["number"])
    if number not in map(str, content.LESSONS):
        raise HTTPException(404)
    return int(number)


async def index(request: Request) -> Response:
    """The way through the course, with what is done."""
    progress, workspace = _progress(request), request.app.state.studio.workspace
    rows = [
        {
            "number": number, "title": content.lesson_title(number), "minutes": content.minutes(number),
            "lab": content.lab(number), "read": number in progress.read, "quiz": progress.quiz_done(number),
            "steps": labs.steps_done(workspace, number),
        }
        for number in content.LESSONS
    ]  # fmt: skip
    return page(request, "learn.html.jinja", rows=rows, progress=progress)


async def lesson(request: Request) -> Response:
    """One lesson, with its quiz at the end."""
    number, progress = lesson_number(request), _progress(request)
    if number not in progress.read:
        progress.read.append(number)
        progress.save()
    sources = f"/{request.app.state.studio.token}/learn/sources"
    body, headings = content.lesson_html(number, sources)
    return page(request, "lesson.html.jinja", number=number, title=content.lesson_title(number), body=body,
                headings=headings, quiz=content.quiz(number), answers=progress.quiz, progress=progress)  # fmt: skip


async def answer(request: Request) -> Response:
    """One question of a quiz, answered. It may be answered again."""
    number, form = lesson_number(request), await form_of(request)
    progress = _progress(request)  # read after the wait for the form, so that nothing is kept from between
    for question in content.quiz(number):
        given = place_in(form.get(question.key, ""), len(question.choices))
        if given is not None:
            progress.quiz[question.key] = given
    progress.save()
    if request.headers.get("hx-request"):
        return await lesson(request)
    return redirect(request, "learn", str(number))


async def lab(request: Request) -> Response:
    """One lab: its steps, what came of them, and what is being done."""
    return await _lab(request)


async def _lab(request: Request, error: PotstillError | None = None) -> Response:
    number = lesson_number(request)
    live = await asyncio.to_thread(_maker(request, number))
    return page(request, "lab.html.jinja", 400 if error else 200, number=number, lab=content.lab(number), live=live,
                problem=None if error is None else problem(error))  # fmt: skip


async def do_step(request: Request) -> Response:
    """Start or stop a step."""
    number, form = lesson_number(request), await form_of(request)
    workspace = request.app.state.studio.workspace
    try:
        if form.get("do") == "stop":
            await asyncio.to_thread(labs.stop_step, workspace, number)
        else:
            await asyncio.to_thread(labs.start_step, workspace, number, form.get("step", ""), form)
    except PotstillError as error:
        return await _lab(request, error)
    return redirect(request, "learn", str(number), "lab")


async def recipes(request: Request) -> Response:
    """What the lab trained, as recipes in an archive."""
    number, workspace = lesson_number(request), request.app.state.studio.workspace
    try:
        archive = await asyncio.to_thread(takeaway.packed, workspace, number)
    except PotstillError as error:
        return await _lab(request, error)
    disposition = f'attachment; filename="lab-{number}.zip"'
    return Response(archive, media_type="application/zip", headers={"content-disposition": disposition})


async def lab_events(request: Request) -> Response:
    """The steps of a lab, whenever they change."""
    number, studio = lesson_number(request), request.app.state.studio
    broadcast = studio.broadcasts.setdefault(f"lab {number}", Broadcast(_maker(request, number)))
    return StreamingResponse(broadcast.listen(), media_type="text/event-stream")


def _maker(request: Request, number: int) -> Callable[[], str]:
    workspace: Workspace = request.app.state.studio.workspace
    folder, token = labs.lab_folder(workspace, number), request.app.state.studio.token
    reader, runs = Reader(folder), dict[str, Reader]()

    def make() -> str:
        story, working, came = reader.read(), labs.at_work(workspace, number), labs.outcomes(workspace, number)
        steps = []
        for step in content.lab(number).steps:
            outcome, now = came.get(step.key), working and story.step == step.key
            steps.append({"text": step, "outcome": outcome, "now": now, "missing": labs.missing(step),
                          "failed": story.end if story.step == step.key and not working and _bad(story.end) else None,
                          "blocks": [] if outcome is None else [block(b, folder) for b in outcome.blocks]})  # fmt: skip
        followed = _follow(workspace, story.run, runs) if working else None
        task = (followed.task if followed is not None else None) or (story.task if working else None)
        curves = {} if followed is None else {n or "train": c.points for n, c in sorted(followed.curves.items())}
        output = tail(folder / OUTPUT).strip() if story.step is None and not working else ""
        return text(token, "_lab.html.jinja", number=number, steps=steps, working=working, task=task,
                    left=time_left(task or {}), run=story.run if followed is not None else None, output=output,
                    losses=charts.lines(curves, x="step", y="loss per step", title="Training loss"))  # fmt: skip

    return make


def _bad(end: Mapping[str, Any] | None) -> bool:
    return end is not None and end.get("state") == "failed"


def _follow(workspace: Workspace, name: str | None, readers: dict[str, Reader]) -> Any:
    """The story of the run that a step is making."""
    path = workspace.path(name) if name else None
    return None if path is None else readers.setdefault(path.name, Reader(path)).read()


def block(made: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A block of an outcome, with its chart drawn."""
    kind = made["kind"]
    if kind == "bars":
        values = [(str(name), float(value)) for name, value in made["values"]]
        return {"kind": "html", "html": charts.bars(values, title=made["title"], unit=made["unit"], most=made["most"])}
    if kind == "lines":
        return {"kind": "html", "html": charts.lines(made["curves"], x=made["x"], y=made["y"], title=made["title"])}
    if kind == "digit":
        values = [(str(name), float(value)) for name, value in made["values"]]
        return {**made, "image": charts.pixels(made["pixels"], made["title"]),
                "bars": charts.bars(values, title=made["title"], unit=" %", most=100.0)}  # fmt: skip
    if kind == "distribution":
        return {**made, "shown": distribution_at(made, folder, 1.0)}
    return dict(made)


def distribution_at(made: Mapping[str, Any], folder: Path, temperature: float) -> dict[str, Any]:
    """A kept distribution at a temperature: bars of its likeliest tokens, what is left for all others, the entropy."""
    logits = np.load(folder / "distribution.npy", allow_pickle=False).astype(np.float64) / temperature
    weights = np.exp(logits - logits.max())
    p = weights / weights.sum()
    values = [(token, 100 * float(p[i])) for token, i in zip(made["tokens"], made["ids"], strict=True)]
    rest = 100 - sum(value for _, value in values)
    entropy = float(-(p * np.log(np.maximum(p, 1e-300))).sum())
    title = f"Next token at T = {temperature:g}"
    return {"bars": charts.bars([*values, ("all others", rest)], title=title, unit=" %"), "entropy": entropy,
            "words": float(np.exp(entropy)), "temperature": temperature}  # fmt: skip


async def distribution(request: Request) -> Response:
    """The kept distribution of a lab at another temperature."""
    number, asked = lesson_number(request), request.query_params.get("temperature", "1")
    try:
        temperature = min(max(float(asked), 0.1), 20.0)
    except ValueError:
        temperature = 1.0
    workspace = request.app.state.studio.workspace
    outcome = labs.outcomes(workspace, number).get("distribution")
    if outcome is None:
        raise HTTPException(404)
    made = next(b for b in outcome.blocks if b["kind"] == "distribution")
    shown = await asyncio.to_thread(distribution_at, made, labs.lab_folder(workspace, number), temperature)
    return page(request, "_distribution.html.jinja", shown=shown)


async def test(request: Request) -> Response:
    """The test under way, or the last one with explanations, or the way into one."""
    progress = _progress(request)
    return page(request, "test.html.jinja", progress=progress, test=progress.test, questions=QUESTIONS,
                share=PASS_SHARE, bibliography=content.bibliography())  # fmt: skip


async def take_test(request: Request) -> Response:
    """Draw a new test, or hand one in."""
    form = await form_of(request)
    progress = _progress(request)
    if form.get("do") == "begin":
        progress.begin_test()
    elif progress.test is not None and not progress.test.ended:
        given = {key: form[key] for key in progress.test.questions if form.get(key, "").isdecimal()}
        progress.end_test({key: int(value) for key, value in given.items() if len(value) < 3})
    progress.save()
    return redirect(request, "learn", "test")


async def certificate(request: Request) -> Response:
    """What was learned and run, to print."""
    progress, workspace = _progress(request), request.app.state.studio.workspace
    done = [
        {"lab": content.lab(number), "steps": [
            {"title": content.lab(number).step(key).title, "says": outcome.says}
            for key, outcome in labs.outcomes(workspace, number).items() if outcome.passed
        ]}
        for number in content.LESSONS
    ]  # fmt: skip
    return page(request, "certificate.html.jinja", progress=progress, done=done)


async def name(request: Request) -> Response:
    """The name on the certificate."""
    form = await form_of(request)
    progress = _progress(request)
    progress.name = form.get("name", "").strip()[:80]
    progress.save()
    return redirect(request, "learn", "certificate")


async def sources(request: Request) -> Response:
    """The bibliography."""
    return page(request, "sources.html.jinja", bibliography=content.bibliography())


ROUTES = [
    Route("/learn", index),
    Route("/learn/test", test),
    Route("/learn/test", take_test, methods=["POST"]),
    Route("/learn/certificate", certificate),
    Route("/learn/certificate", name, methods=["POST"]),
    Route("/learn/sources", sources),
    Route("/learn/{number}", lesson),
    Route("/learn/{number}", answer, methods=["POST"]),
    Route("/learn/{number}/lab", lab),
    Route("/learn/{number}/lab", do_step, methods=["POST"]),
    Route("/learn/{number}/lab/recipes", recipes),
    Route("/learn/{number}/lab/events", lab_events),
    Route("/learn/{number}/lab/distribution", distribution),
]

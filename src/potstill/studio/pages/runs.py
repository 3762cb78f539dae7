"""Runs: the list, one run live, its report, records and recipe, and runs side by side."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from potstill.errors import PotstillError
from potstill.studio import charts, control
from potstill.studio.live import HELD_OUT, Broadcast, Reader, time_left
from potstill.studio.records import Found, find_records, find_rejects
from potstill.studio.render import form_of, page, problem, redirect, run_folder, run_of, text
from potstill.studio.workspace import OUTPUT, Run, read_measures, read_run, tail


async def index(request: Request) -> Response:
    """All runs with state and verdict."""
    return await _index(request)


async def _index(request: Request, error: PotstillError | None = None) -> Response:
    workspace = request.app.state.studio.workspace

    def rows() -> list[dict[str, Any]]:
        return [{"run": run, **_facts(run)} for run in workspace.runs()]

    found = None if error is None else problem(error)
    return page(request, "runs.html.jinja", 400 if error else 200, rows=await asyncio.to_thread(rows), problem=found,
                folder=str(workspace.folder))  # fmt: skip


def _facts(run: Run) -> dict[str, Any]:
    measures, verdict, unread = read_measures(run.path)
    columns: list[tuple[str, str]] = []
    if measures is not None:
        columns = [(spec.term, spec.name) for spec in measures.metrics.values() if spec.charted]
    return {"measures": measures, "verdict": verdict, "unread": unread, "columns": columns}


async def show(request: Request) -> Response:
    """One run, live."""
    run = await asyncio.to_thread(run_of, request)
    live = await asyncio.to_thread(_maker(request, run.path))
    facts = await asyncio.to_thread(_facts, run)
    return page(request, "run.html.jinja", run=run, live=live, tab="run", **facts)


async def events(request: Request) -> Response:
    """The live part of a run's page, whenever it changes."""
    path, studio = run_folder(request), request.app.state.studio
    broadcast = studio.broadcasts.setdefault(f"run {path.name}", Broadcast(_maker(request, path)))
    return StreamingResponse(broadcast.listen(), media_type="text/event-stream")


def _maker(request: Request, path: Path) -> Callable[[], str]:
    """Makes the live part; keeps what it has read of the run's files."""
    reader, token = Reader(path), request.app.state.studio.token

    def make() -> str:
        run, story = read_run(path), reader.read()
        if run.state in ("not started", "failed", "interrupted", "not finished") and control.starting(path):
            run = replace(run, state="at work")
        task = story.task if run.at_work else None
        share = None
        if task is not None and isinstance(task.get("total"), int | float) and task["total"] > 0:
            share = min(float(task["done"]) / float(task["total"]), 1.0)
        losses = {stage or "train": curve.points for stage, curve in sorted(story.curves.items())}
        upto = max((float(curve.steps) for curve in story.curves.values()), default=0.0)
        held_out = _held_out(story.held_out)
        ended = story.end if story.end and story.end.get("state") == "failed" and not run.at_work else None
        output = tail(path / OUTPUT) if run.state in ("failed", "not started") else ""
        return text(
            token, "_live.html.jinja", run=run, story=story, task=task, share=share, left=time_left(task or {}),
            losses=charts.lines(losses, x="step", y="loss per step", title="Training loss", upto=upto),
            held_out=held_out, rejects=reader.rejects(run.rejects).most_common(12), ended=ended, output=output.strip(),
        )  # fmt: skip

    return make


def _held_out(told: dict[str, list[tuple[float, Any]]]) -> list[Any]:
    """A chart for each thing that is measured on held-out records while training."""
    made = []
    for name, shown in HELD_OUT.items():
        curves = {stage or "train": [(s, f[name]) for s, f in series if name in f] for stage, series in told.items()}
        if not any(len(points) > 1 for points in curves.values()):
            continue  # one value is no curve; the measures have it
        title, _, unit = shown.partition(", ")
        made.append(charts.lines(curves, x="step", y=unit or "share", title=f"Held out: {title}"))
    return made


async def report(request: Request) -> Response:
    """The report as it was written, made inert: no script, no form, nothing loaded."""
    file = run_folder(request) / "report" / "report.html"
    if not file.is_file():
        return page(request, "problem.html.jinja", 404, problem={"what": "This run has no report yet.", "where": "",
                    "fix": "a report is made once the student is measured"})  # fmt: skip
    html = await asyncio.to_thread(file.read_text, encoding="utf-8", errors="replace")
    hashes = {base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() for style in _STYLE.findall(html)}
    styles = " ".join(f"'sha256-{found}'" for found in sorted(hashes)) or "'none'"
    policy = f"sandbox; default-src 'none'; style-src {styles}; img-src data:; base-uri 'none'; form-action 'none'"
    return HTMLResponse(html, headers={"content-security-policy": policy})


_STYLE = re.compile(r"<style[^>]*>(.*?)</style>", re.DOTALL | re.IGNORECASE)


async def records(request: Request) -> Response:
    """Records or rejects, filtered and searched."""
    run, asked = await asyncio.to_thread(run_of, request), request.query_params
    kind = "rejects" if asked.get("kind") == "rejects" else "records"
    words, choice = asked.get("words", "")[:200], asked.get("choice", "")[:200]
    number = int(asked["page"]) if asked.get("page", "").isdecimal() and len(asked["page"]) < 9 else 1
    find = find_rejects if kind == "rejects" else find_records
    found: Found = await asyncio.to_thread(find, run, words, choice, number)
    return page(request, "records.html.jinja", run=run, kind=kind, words=words, choice=choice, found=found,
                tab="records")  # fmt: skip


async def recipe(request: Request) -> Response:
    """The recipe of a run, to read, check and edit."""
    run = await asyncio.to_thread(run_of, request)
    shown = await asyncio.to_thread((run.path / "recipe.yaml").read_text, encoding="utf-8", errors="replace")
    return page(
        request, "recipe.html.jinja", run=run, text=shown, findings=None, problem=None, saved=False, tab="recipe"
    )


async def change_recipe(request: Request) -> Response:
    """Check a recipe's text, and save it where that is asked for. What is wrong is said as by `potstill check`."""
    run, form = await asyncio.to_thread(run_of, request), await form_of(request)
    given = form.get("recipe", "").replace("\r\n", "\n")
    findings, wrong, saved = None, None, False
    try:
        if form.get("do") == "save":
            await asyncio.to_thread(control.save_recipe, given, run.path)
            saved = True
        findings = await asyncio.to_thread(control.check_text, given, run.path)
    except PotstillError as error:
        wrong = problem(error)
    return page(request, "recipe.html.jinja", run=run, text=given, findings=findings, problem=wrong, saved=saved,
                tab="recipe")  # fmt: skip


async def act(request: Request) -> Response:
    """Start, continue or stop a run."""
    path, form = run_folder(request), await form_of(request)
    act = control.stop if form.get("do") == "stop" else control.start
    await asyncio.to_thread(act, path)
    return redirect(request, "runs", path.name)


async def new(request: Request) -> Response:
    """A run's folder with a recipe to edit."""
    form, workspace = await form_of(request), request.app.state.studio.workspace
    source = workspace.path(form["copy_of"]) if form.get("copy_of") else None
    try:
        made = await asyncio.to_thread(control.new_run, form.get("name", "").strip(), workspace.folder, source)
    except PotstillError as error:
        return await _index(request, error)
    return redirect(request, "runs", made.name, "recipe")


async def compare(request: Request) -> Response:
    """Runs side by side."""
    studio = request.app.state.studio
    names = await asyncio.to_thread(studio.workspace.names)
    chosen = [name for name in dict.fromkeys(request.query_params.getlist("run")) if name in names][:6]

    def read() -> tuple[list[dict[str, Any]], Any, list[dict[str, Any]]]:
        columns, curves = [], {}
        for name in chosen:
            run = read_run(studio.workspace.folder / name)
            columns.append({"run": run, **_facts(run)})
            story = Reader(run.path).read()
            for stage, curve in story.curves.items():
                if stage in ("train", ""):
                    curves[name] = curve.points
        chart = charts.lines(curves, x="step", y="loss per step", title="Training loss")
        return columns, chart, _differences(columns)

    columns, chart, differences = await asyncio.to_thread(read)
    return page(request, "compare.html.jinja", names=names, chosen=chosen, columns=columns, chart=chart,
                differences=differences)  # fmt: skip


def _differences(columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The keys of the recipes that differ between runs."""
    flat = [dict(_leaves(control.parsed(column["run"].path))) for column in columns]
    keys = list(dict.fromkeys(key for recipe in flat for key in recipe))
    rows = [{"key": key, "values": [str(recipe.get(key, "–")) for recipe in flat]} for key in keys if key != "name"]
    return [row for row in rows if len(set(row["values"])) > 1][:60]


def _leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        return [(name, value)]
    return [leaf for key, inner in items for leaf in _leaves(inner, f"{name}.{key}" if name else str(key))]


ROUTES = [
    Route("/", index),
    Route("/runs", new, methods=["POST"]),
    Route("/runs/{run}", show),
    Route("/runs/{run}", act, methods=["POST"]),
    Route("/runs/{run}/events", events),
    Route("/runs/{run}/report", report),
    Route("/runs/{run}/records", records),
    Route("/runs/{run}/recipe", recipe),
    Route("/runs/{run}/recipe", change_recipe, methods=["POST"]),
    Route("/compare", compare),
]

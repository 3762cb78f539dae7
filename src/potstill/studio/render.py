"""From facts to pages: the templates, and the small filters that they use. Everything is escaped by default."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse

from potstill.errors import PotstillError, RunError
from potstill.measures import Interval
from potstill.report.svg import readable
from potstill.studio.workspace import Run, read_run


def page(request: Request, template: str, status: int = 200, **facts: Any) -> HTMLResponse:
    """A page of the site."""
    return HTMLResponse(text(request.app.state.studio.token, template, path=request.url.path, **facts), status)


def text(token: str, template: str, **facts: Any) -> str:
    """A template, filled. `url` makes addresses with the token in them."""
    facts.setdefault("path", "")

    def url(*parts: str) -> str:
        return f"/{token}/" + "/".join(quote(str(part), safe="") for part in parts)

    return environment().get_template(template).render(url=url, **facts)


def redirect(request: Request, *parts: str) -> RedirectResponse:
    """To another page of the site, as the answer to a form."""
    to = "/".join(quote(part, safe="") for part in parts)
    return RedirectResponse(f"/{request.app.state.studio.token}/{to}", status_code=303)


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form; of repeated ones the last."""
    body = (await request.body()).decode("utf-8", "replace")
    try:
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=200))
    except ValueError:
        raise HTTPException(400, "too many fields") from None


def place_in(text: str, count: int) -> int | None:
    """The place from 0 that a form or an address names, of `count`; None if it names none."""
    return int(text) if text.isdecimal() and len(text) < 9 and int(text) < count else None


def run_folder(request: Request) -> Path:
    """The folder of the run that the address names. Raises: RunError."""
    name = str(request.path_params["run"])
    path: Path | None = request.app.state.studio.workspace.path(name)
    if path is None:
        raise NoSuchRun(f"there is no run {name[:40]!r} here", fix="the list of runs shows those that there are")
    return path


def run_of(request: Request) -> Run:
    """The run that the address names. Raises: RunError."""
    return read_run(run_folder(request))


class NoSuchRun(RunError):
    """Shown with status 404."""


def problem(error: PotstillError) -> dict[str, str]:
    """An error as a page shows it."""
    return {"what": error.what, "where": error.where or "", "fix": error.fix or ""}


_markdown = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable("table").disable("image")


def markdown(source: str) -> Markup:
    """Markdown as HTML. HTML in it is shown as text, pictures are links, and no link leads to a script."""
    return Markup(_markdown.render(readable(source)))


def duration(seconds: float | None) -> str:
    """`48 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not rest and minutes < 60:
        return f"{minutes} min"
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def ago(moment: float) -> str:
    """When something was, in words."""
    past = time.time() - moment
    if past < 60:
        return "just now"
    for most, unit, size in ((3600, "minute", 60), (86400, "hour", 3600), (86400 * 14, "day", 86400)):
        if past < most:
            count = int(past // size)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return time.strftime("%Y-%m-%d", time.localtime(moment))


def interval(value: Interval | None, scale: float = 1.0, digits: int = 3) -> str:
    """`0.412 [0.380, 0.447]`."""
    if value is None:
        return "–"
    low, middle, high = (f"{scale * x:.{digits}f}" for x in (value.low, value.value, value.high))
    return f"{middle} [{low}, {high}]"


def count(value: float) -> str:
    """A number with separators."""
    return f"{value:,.0f}"


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("potstill.studio"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else readable(value),
    )
    made.filters |= {
        "markdown": markdown,
        "duration": duration,
        "ago": ago,
        "interval": interval,
        "count": count,
        "pretty": lambda value: json.dumps(value, indent=1, ensure_ascii=False, default=str),
    }
    return made

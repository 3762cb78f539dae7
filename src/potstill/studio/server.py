"""The web application: what its pages share, its addresses, how mistakes are shown; and serving it on the loopback
interface alone, on a free port."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from potstill.console import emit
from potstill.errors import PotstillError, RunError
from potstill.studio.guard import Guard
from potstill.studio.live import Broadcast
from potstill.studio.pages import learn, playground, runs
from potstill.studio.pages import tutor as tutor_pages
from potstill.studio.render import NoSuchRun, page, problem
from potstill.studio.session import Session
from potstill.studio.tutor import Conversation, LocalModel, Model
from potstill.studio.workspace import Workspace


class Studio:
    """What the pages share. `tutor` is the tutor's model; without one it answers by templates."""

    def __init__(self, folder: Path, tutor: Model | None = None) -> None:
        self.tutor = tutor
        self.session = Session()
        self.conversations: dict[int, Conversation] = {}
        self.workspace = Workspace(folder)
        self.token = self.workspace.token()
        self.broadcasts: dict[str, Broadcast] = {}


def make_app(studio: Studio, port: int | None = None) -> Guard:
    """The application behind its guard. `port` is the one that is served (see `Guard`)."""
    routes = [Route("/static/{name}", _static), *runs.ROUTES, *tutor_pages.ROUTES, *learn.ROUTES, *playground.ROUTES]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await studio.session.close()
        if isinstance(studio.tutor, LocalModel):
            await studio.tutor.session.close()

    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={PotstillError: _mistake, HTTPException: _http_error},  # type: ignore[dict-item]
    )
    app.state.studio = studio
    return Guard(app, studio.token, port)


async def _mistake(request: Request, error: PotstillError) -> Response:
    status = 404 if isinstance(error, NoSuchRun) else 400
    return page(request, "problem.html.jinja", status, problem=problem(error))


async def _http_error(request: Request, error: HTTPException) -> Response:
    found = {"what": "There is no such page.", "where": "", "fix": ""}
    if error.status_code != 404:
        found["what"] = error.detail
    return page(request, "problem.html.jinja", error.status_code, problem=found)


_STATIC = {
    "studio.css": "text/css",
    "studio.js": "text/javascript",
    "htmx-4.0.1.min.js": "text/javascript",
    "htmx-LICENSE.txt": "text/plain",
}


async def _static(request: Request) -> Response:
    name = str(request.path_params["name"])
    if name not in _STATIC:
        raise HTTPException(404)
    content = files("potstill.studio").joinpath("static", name).read_bytes()
    return Response(content, media_type=_STATIC[name], headers={"cache-control": "max-age=3600"})


# ---- serving ---------------------------------------------------------------------------------------------------------


HOST = "127.0.0.1"
_TRIES = 50


def free_socket(port: int) -> socket.socket:
    """A listening socket on this machine's own address: the port asked for, or the next one that is free.

    Raises:
        RunError: none of fifty is.
    """
    for number in range(port, min(port + _TRIES, 65536)):
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((HOST, number))
            found.listen(256)
        except OSError:
            found.close()
            continue
        return found
    raise RunError(f"no port from {port} on is free", fix="name another with --port")


class Server(uvicorn.Server):
    """A server of a studio, which ends the live pages' streams before it ends: open tabs are no reason to wait."""

    def __init__(self, studio: Studio, port: int) -> None:
        app = make_app(studio, port)
        super().__init__(
            uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=1)
        )
        self._studio = studio

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then what is left."""
        for broadcast in self._studio.broadcasts.values():
            await broadcast.close()
        await super().shutdown(sockets)


def serve(folder: Path, port: int, first_page: str, *, open_browser: bool, tutor: Model | None = None) -> None:
    """Serve until interrupted. `first_page` is the path whose address is printed (and opened).

    Raises:
        RunError: no port is free, or the folder cannot be used.
    """
    studio = Studio(folder, tutor)
    with free_socket(port) as listening:
        taken = listening.getsockname()[1]
        if taken != port:
            emit(f"port {port} is in use; {taken} is used instead")
        address = f"http://{HOST}:{taken}/{studio.token}/{first_page}"
        emit(f"open {address}")
        emit("Ctrl-C ends it; runs that it started go on")
        if open_browser:
            import webbrowser

            webbrowser.open(address)
        Server(studio, taken).run(sockets=[listening])

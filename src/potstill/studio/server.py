"""Serving the application on this machine alone: a free port, the address printed, nothing else open."""

from __future__ import annotations

import socket
from pathlib import Path

import uvicorn

from potstill.console import emit
from potstill.errors import RunError
from potstill.studio.app import Studio, make_app
from potstill.studio.tutor import Endpoint

HOST = "127.0.0.1"
PORT = 8765
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


def serve(folder: Path, port: int, first_page: str, *, open_browser: bool, endpoint: Endpoint | None = None) -> None:
    """Serve until interrupted. `first_page` is the path whose address is printed (and opened).

    Raises:
        RunError: no port is free, or the folder cannot be used.
    """
    studio = Studio(folder, endpoint)
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
        app = make_app(studio, taken)
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=1
        )
        uvicorn.Server(settings).run(sockets=[listening])

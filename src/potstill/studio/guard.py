"""What every request passes before a page sees it: who asks, from where, and how much they send.

A page in the same browser can send requests to any port of this machine. It cannot know the token, which is the first
part of every address; it cannot set `Host` or `Origin`; and where it makes a name of its own point here (DNS
rebinding), `Host` is that name. Each of the three is checked, and each alone would be enough against most attacks.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY_BYTES = 1_000_000
"""The longest form: a recipe. Anything longer is refused, whether or not its length was announced."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with none at all, browsers send `Origin: null` with forms
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_LOCAL = ("127.0.0.1", "localhost", "[::1]")
_UNCHANGING = ("GET", "HEAD")


@dataclass(frozen=True)
class Guard:
    """The application behind a token. The token is taken off the path: pages see addresses without it.

    Args:
        app: what answers.
        token: the first part of every address.
        port: the port that is served; None accepts any (tests without a socket).
    """

    app: ASGIApp
    token: str
    port: int | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await self._refuse(refusal, scope, receive, send)
            return
        path = scope["path"][len(self.token) + 1 :]
        inner = {**scope, "path": path or "/", "raw_path": (path or "/").encode(), "root_path": ""}

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(inner, _limited(receive), guarded_send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Why a request is refused: status and text."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host not in self._hosts(host):
            return 421, "this address is not served here"
        origin = headers.get("origin")
        own = f"http://{host}"
        if (origin is not None and origin != own) or (origin is None and scope["method"] not in _UNCHANGING):
            return 403, "requests of other pages are refused"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "requests of other pages are refused"
        first = scope["path"].split("/", 2)[1] if scope["path"].startswith("/") else ""
        if not secrets.compare_digest(first.encode(), self.token.encode()):
            return 403, "open the whole address that `potstill studio` printed: it holds a token"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BODY_BYTES:
            return 413, "too long"
        return None

    def _hosts(self, host: str) -> set[str]:
        if self.port is None:
            return {host} if host.rpartition(":")[0] in _LOCAL or host in _LOCAL else set()
        return {f"{name}:{self.port}" for name in _LOCAL}

    async def _refuse(self, refusal: tuple[int, str], scope: Scope, receive: Receive, send: Send) -> None:
        status, text = refusal
        answer = PlainTextResponse(f"{text}\n", status_code=status, headers={**_HEADERS, "connection": "close"})
        await answer(scope, receive, send)


def _limited(receive: Receive) -> Receive:
    """Receive at most `MOST_BODY_BYTES` of body."""
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            if taken > MOST_BODY_BYTES:
                raise HTTPException(413, "too long")
        return message

    return counted

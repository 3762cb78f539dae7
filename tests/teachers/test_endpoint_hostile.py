"""Servers that answer with anything but an answer: nothing raises, nothing grows without bound, no key leaves."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from teachers.simulated import GOOD, Kept

from potstill.recipe import EndpointTeacher
from potstill.teachers.endpoint_client import Body, Call, EndpointClient
from potstill.teachers.endpoint_wire import Trouble
from potstill.types import Answer, Reason

KEY = "sk-potstill-0123456789-ABCDEFGHIJ-never-to-be-seen"
Writer = asyncio.StreamWriter
Handler = Callable[[Writer], Awaitable[None]]


class Server:
    """Answers each request with what `handler` writes; `sent` counts bytes, `heads` holds what came."""

    def __init__(self, handler: Handler) -> None:
        self.handler, self.heads = handler, list[str]()
        self.loop = asyncio.new_event_loop()
        self.port = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = next(int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:"))
            await reader.readexactly(length)
            self.heads.append(head)
            await self.handler(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def open(self) -> None:
        """Listen at `port`."""
        self.listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.listening.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """End every connection."""
        self.listening.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


@contextmanager
def serving(handler: Handler) -> Iterator[Server]:
    server = Server(handler)
    thread = threading.Thread(target=server.loop.run_forever, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.open(), server.loop).result(10)
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), server.loop).result(10)
        server.loop.call_soon_threadsafe(server.loop.stop)
        thread.join(10)
        server.loop.close()


def ask(server: Server, *, tokens: int = 64, count: int = 1, **settings: Any) -> list[Answer | Trouble]:
    """What becomes of some requests, each tried once; a run that would end is not one here: answers came before."""
    url = f"http://127.0.0.1:{server.port}/v1"
    teacher = EndpointTeacher(**{"base_url": url, "model": "m", "retries": 0, "timeout_seconds": 20.0} | settings)
    calls = [Call({"messages": [{"role": "user", "content": str(n)}], "max_tokens": tokens}, 100) for n in range(count)]
    with EndpointClient(teacher, KEY, Kept(has_answers=True)) as client:
        stream = client.stream()
        stream.submit(calls)
        left = count
        while left:
            left -= len(stream.take(0.1))
    assert all(call.outcome is not None for call in calls)
    return [call.outcome for call in calls if call.outcome is not None]


def response(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/json", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def writes(*pieces: bytes) -> Handler:
    async def handler(writer: Writer) -> None:
        for piece in pieces:
            writer.write(piece)
        await writer.drain()

    return handler


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (response(b"<html><h1>Sign in</h1></html>"), "a page of HTML"),
        (response(b'data: {"choices": [{"delta": {"content": "\xe2\x82'), "a stream of events"),
        (response(b"\x00\x00\x00"), "not valid JSON"),
        (response(b"", "204 No Content"), "status 204"),
        (response(GOOD, "206 Partial Content"), "status 206"),
        (response(b'{"a":' * 5_000), "nested too deeply"),
        (response(gzip.compress(GOOD)[:-9], "200 OK", "Content-Encoding: gzip"), "not valid JSON"),
        (response(GOOD, "200 OK", "Content-Encoding: gzip"), "cannot be decompressed"),
        (response(GOOD, "200 OK", "Content-Encoding: br"), "cannot be decompressed"),
        (response(gzip.compress(b" " * 20_000_000), "200 OK", "Content-Encoding: gzip"), "longer than max_new_tokens"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 900\r\n\r\nhello", ""),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", ""),
        (b"HTTP/1.1 999999 X\r\n\r\n", ""),
        (b"nonsense\r\n\r\n", ""),
        (b"\x16\x03\x01\x02", ""),
        (CHUNKED + b"ZZZ\r\n", ""),
        (CHUNKED + b"5\r\nhello", "a broken connection"),
    ],
)
def test_whatever_a_server_writes_is_one_attempts_trouble(wire: bytes, reason: str) -> None:
    with serving(writes(wire)) as server:
        (found,) = ask(server)
    assert isinstance(found, Trouble) and found.action == "reject" and reason in found.detail


@pytest.mark.parametrize("packed", ["gzip", "deflate", "raw deflate", ""])
def test_an_answer_is_read_through_every_compression_that_is_asked_for(packed: str) -> None:
    raw = zlib.compressobj(wbits=-15)
    body = {
        "gzip": gzip.compress(GOOD),
        "deflate": zlib.compress(GOOD),
        "raw deflate": raw.compress(GOOD) + raw.flush(),
        "": GOOD,
    }[packed]
    headers = [f"Content-Encoding: {packed.removeprefix('raw ')}"] if packed else []
    with serving(writes(response(body, "200 OK", *headers))) as server:
        (found,) = ask(server)
    assert isinstance(found, Answer) and found.text == "Yes."
    assert "Accept-Encoding: gzip, deflate" in server.heads[0]


def test_a_body_without_an_end_is_read_up_to_a_bound_that_follows_from_the_request() -> None:
    sent = 0

    async def endless(writer: Writer) -> None:
        nonlocal sent
        writer.write(CHUNKED)
        piece = b"10000\r\n" + b" " * 65_536 + b"\r\n"
        while True:
            writer.write(piece)
            await writer.drain()
            sent += 65_536

    with serving(endless) as server:
        found = ask(server, count=8)
    assert all(isinstance(one, Trouble) and "longer than max_new_tokens allows" in one.detail for one in found)
    assert sent < 8 * 16_000_000  # what the kernel's buffers hold beside the bound


def test_an_error_without_an_end_is_read_up_to_a_bound() -> None:
    async def endless(writer: Writer) -> None:
        writer.write(b"HTTP/1.1 400 X\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            await writer.drain()

    with serving(endless) as server:
        (found,) = ask(server)
    assert isinstance(found, Trouble) and found.reason == Reason.REFUSED and len(found.detail) < 500


def test_a_bomb_is_unpacked_no_further_than_the_bound() -> None:
    bomb = gzip.compress(b"\0" * 60_000_000)
    body = Body(10_000, "gzip")
    tracemalloc.start()
    try:
        while bomb and body.add(bomb[:65_536]):
            bomb = bomb[65_536:]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert body.over and len(body.data) == 10_000 and peak < 1_000_000


def test_a_body_that_comes_byte_by_byte_is_no_answer_in_time() -> None:
    async def drip(writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    with serving(drip) as server:
        (found,) = ask(server, timeout_seconds=0.4)
    assert isinstance(found, Trouble) and "no answer in time" in found.detail


def test_interim_responses_without_an_end_are_no_answer_in_time() -> None:
    async def interim(writer: Writer) -> None:
        while True:
            writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.005)

    with serving(interim) as server:
        (found,) = ask(server, timeout_seconds=0.4)
    assert isinstance(found, Trouble) and found.action == "reject"


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
def test_a_redirect_is_not_followed_so_the_key_goes_to_no_other_host(status: str) -> None:
    with serving(writes(response(GOOD))) as other:
        location = f"Location: http://localhost:{other.port}/v1/chat/completions"
        with serving(writes(response(b"", status, location))) as server:
            (found,) = ask(server)
    assert isinstance(found, Trouble) and "redirects to another address" in found.detail
    assert "Authorization: Bearer" in server.heads[0] and other.heads == []


@pytest.mark.parametrize("padding", [0, 380, 395, 1590, 4000])
def test_no_part_of_the_key_is_in_what_is_said_of_an_error_wherever_it_is_cut(padding: int) -> None:
    said = json.dumps({"error": {"message": f"{'x' * padding} key {KEY} is wrong"}}).encode()
    bodies = [response(said, "400 Bad"), response(f"{'x' * padding}{KEY}".encode(), "500 X"), response(said)]
    for body in (*bodies, response(f"{'y' * padding}{KEY}".encode())):
        with serving(writes(body)) as server:
            (found,) = ask(server)
        assert isinstance(found, Trouble)
        assert not any(KEY[at : at + 8] in f"{found.reason} {found.detail}" for at in range(len(KEY) - 7))


def test_the_key_is_taken_out_of_an_answer() -> None:
    text = f"Your header was Bearer {KEY}, backwards {KEY[::-1]}."
    document = {"choices": [{"message": {"content": text, "reasoning": KEY}, "finish_reason": "stop"}]}
    with serving(writes(response(json.dumps(document).encode()))) as server:
        (found,) = ask(server)
    assert isinstance(found, Answer)
    assert (found.text, found.reasoning) == ("Your header was Bearer …, backwards ….", "…")

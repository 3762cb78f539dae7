"""An OpenAI-compatible server that is not one: deterministic answers, and faults by flag. A process of its own.

python mock_server.py [--latency-seconds 0.01] [--rate 500] [--fail 0.05] …

It prints its port as the first line, and serves on 127.0.0.1 until its standard input closes. What a request is
answered depends on its content alone (model, messages or prompt, sampling fields, seed). Whether it meets a fault
depends on the seed of the faults, its content, and how often it came before. `GET /stats` tells what was seen:

- `requests`, `answers` (bodies written whole), `statuses`;
- `repeats`: answers given again to a content that had been answered whole before;
- `violations`: requests that came while a Retry-After was running, more than `--grace-seconds` after it was sent;
- `peak`: the most under way at once; `rate_used`: of the tokens that came into the bucket, from the first request to
  the last, the share that did not run over unused;
- `tokens`: prompt and completion tokens of all answers that were worked out, whether or not they arrived.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from typing import Any

WORDS = tuple("copper still spirit cask barley malt peat water yeast wash feints heart swan neck worm tub oak".split())


def text_for(asked: Mapping[str, Any], words: int = 24) -> str:
    """What a request is answered, before it is cut: fewer than `words` words, which follow from what is asked."""
    relevant = {k: asked.get(k) for k in ("model", "messages", "prompt", "temperature", "top_p", "top_k", "seed")}
    drawn = random.Random(json.dumps(relevant, sort_keys=True))
    return " ".join(drawn.choice(WORDS) for _ in range(drawn.randrange(4, words)))


class Bucket:
    """Tokens come at `rate` a second, up to `capacity`; who finds none is told when one second's worth is back."""

    def __init__(self, rate: float, capacity: float) -> None:
        self.rate, self.capacity = rate, capacity
        self.level, self.at = capacity, 0.0
        self.passed, self.lost = 0, 0.0

    def take(self) -> float | None:
        """None if there was a token, else the whole seconds after which there are some."""
        now = time.monotonic()
        full = self.level + (now - self.at) * self.rate if self.at else self.level
        self.level, self.at = min(self.capacity, full), now
        self.lost += full - self.level
        if self.level >= 1:
            self.level -= 1
            self.passed += 1
            return None
        return float(max(1, math.ceil((1 - self.level) / self.rate)))


class Server:
    """Counts, faults and answers; connections are `Connection`s."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.bucket = Bucket(options.rate, options.burst or options.rate) if options.rate else None
        self.luck = random.Random(options.fault_seed)
        self.statuses: Counter[str] = Counter()
        self.seen: Counter[bytes] = Counter()
        self.answered: Counter[bytes] = Counter()
        self.requests = self.answers = self.repeats = self.violations = 0
        self.under_way = self.peak = self.tokens = self.prompt_tokens = 0
        self.first = self.last = 0.0
        self.wait_told_at = self.wait_until = 0.0
        self.keys: set[str] = set()
        self.connections: set[Connection] = set()
        self.fields: Counter[str] = Counter()

    def stats(self) -> dict[str, Any]:
        seconds, bucket = self.last - self.first, self.bucket
        return {
            "requests": self.requests,
            "answers": self.answers,
            "repeats": self.repeats,
            "distinct": len(self.answered),
            "violations": self.violations,
            "peak": self.peak,
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "seconds": seconds,
            "rate_used": bucket.passed / (bucket.passed + bucket.lost) if bucket and bucket.passed else None,
            "statuses": dict(self.statuses),
            "keys": sorted(self.keys),
            "fields": dict(self.fields),
        }

    async def respond(self, connection: Connection, body: bytes, headers: dict[str, str]) -> None:
        options = self.options
        now = time.monotonic()
        self.requests += 1
        self.first = self.first or now
        self.last = now
        if self.wait_told_at + options.grace_seconds < now < self.wait_until:
            self.violations += 1
        asked = json.loads(body)
        self.fields.update(asked.keys())
        if "authorization" in headers:
            self.keys.add(hashlib.sha256(headers["authorization"].encode()).hexdigest())
        content = hashlib.sha256(body).digest()
        self.seen[content] += 1
        if options.require_key and headers.get("authorization") != f"Bearer {options.require_key}":
            said = f"Incorrect API key provided: {headers.get('authorization', '').removeprefix('Bearer ')}"
            return connection.send(401, {"error": {"message": said, "code": "invalid_api_key"}})
        if 0 < options.forbid_after <= self.answers:
            return connection.send(403, {"error": {"message": "no longer"}})
        for field in options.refuse or ():
            if field in asked:
                said = f"Unrecognized request argument supplied: {field}"
                return connection.send(400, {"error": {"message": said, "param": None}})
        if options.refuse_prompts and options.refuse_prompts in body.decode():
            said = "This model's maximum context length is 10 tokens; your messages have more"
            return connection.send(400, {"error": {"message": said, "code": "context_length_exceeded"}})
        if options.fail_prompts and f'"{options.fail_prompts}"' in body.decode():
            return connection.send(500, {"error": {"message": "something broke"}})
        wait = self.bucket.take() if self.bucket is not None else None
        if wait is None and self.luck.random() < options.crowded:
            wait = 1.0
        if wait is not None:
            told = f"{wait:g}"
            if options.dates:  # whole seconds of the calendar
                at = math.ceil(time.time() + wait)
                told, wait = formatdate(at, usegmt=True), at - time.time()
            self.wait_told_at, self.wait_until = time.monotonic(), max(self.wait_until, time.monotonic() + wait)
            return connection.send(429, {"error": {"message": "slow down"}}, {"Retry-After": told})
        self.under_way += 1
        self.peak = max(self.peak, self.under_way)
        try:
            draw = random.Random(content + bytes([self.seen[content] % 256, options.fault_seed % 256]))
            fault = draw.random()
            if options.latency_seconds:
                await asyncio.sleep(options.latency_seconds * draw.uniform(0.5, 1.5))
            for name in ("fail", "truncate", "hang", "reset"):
                share = getattr(options, name)
                if fault < share:
                    return await self._fault(name, connection, asked)
                fault -= share
            document = self.document(asked)
            self.tokens += document["usage"]["total_tokens"]
            self.prompt_tokens += document["usage"]["prompt_tokens"]
            # What cannot be written was not answered.
            if connection.send(200, document):
                self.answers += 1
                self.repeats += self.answered[content] > 0
                self.answered[content] += 1
        finally:
            self.under_way -= 1

    async def _fault(self, name: str, connection: Connection, asked: dict[str, Any]) -> None:
        self.statuses[name] += 1
        if name == "fail":
            connection.send(500, {"error": {"message": "something broke"}})
        elif name == "truncate":
            document = self.document(asked)
            self.tokens += document["usage"]["total_tokens"]
            self.prompt_tokens += document["usage"]["prompt_tokens"]
            whole = json.dumps(document).encode()
            connection.send_bytes(200, whole[: len(whole) // 2])
        elif name == "hang":
            await asyncio.sleep(self.options.hang_seconds)
            connection.abort()
        else:
            connection.abort()

    def document(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request: it follows from what is asked."""
        text = text_for(asked, self.options.words)
        if self.options.marks and "Mark: N" in str(asked.get("messages")):
            text = f"Well. \nMark: {1 + len(text) % 5}"
        most = asked.get("max_tokens") or asked.get("max_completion_tokens") or 16
        words = text.split(" ")
        finish = "stop" if len(words) <= most else "length"
        text = " ".join(words[:most]) + (" \ud83d" if self.options.halves else "")
        prompt = asked["prompt"] if "prompt" in asked else "\n".join(str(m["content"]) for m in asked["messages"])
        read, written = len(prompt.split()) + 4, min(len(words), most)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if asked.get("logprobs") and self.options.logprobs:
            each = [-0.5 * (index % 3) for index in range(written)]
            choice["logprobs"] = (
                {"token_logprobs": each} if "prompt" in asked else {"content": [{"logprob": one} for one in each]}
            )
        if "prompt" in asked:
            choice["text"] = text
        else:
            choice["message"] = self.message(text)
        choices = [choice] * self.options.choices
        return {"id": "mock", "object": "chat.completion", "model": asked["model"], "choices": choices, "usage": usage}

    def message(self, text: str) -> dict[str, Any]:
        way = self.options.reasoning
        if way in ("reasoning_content", "reasoning"):
            return {"role": "assistant", "content": text, way: "Let me think."}
        if way == "think":
            return {"role": "assistant", "content": f"<think>\nLet me think.\n</think>\n\n{text}"}
        if way == "bare":
            return {"role": "assistant", "content": f"Let me think.\n</think>\n\n{text}"}
        if way == "unclosed":
            return {"role": "assistant", "content": f"<think>\nLet me think: {text}"}
        return {"role": "assistant", "content": text}


class Connection(asyncio.Protocol):
    """One client's connection: requests one after the other, each with a Content-Length."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.buffer = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            request, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            length = int(headers.get("content-length", 0))
            if len(rest) < length:
                return
            body, self.buffer = rest[:length], rest[length:]
            if request.startswith("GET /stats"):
                self.send(200, self.server.stats())
            elif request.startswith("POST /v1/"):
                task = asyncio.get_running_loop().create_task(self.server.respond(self, body, headers))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            else:
                self.send(404, {"detail": "Not Found"})

    def send(self, status: int, document: Any, headers: dict[str, str] | None = None) -> bool:
        return self.send_bytes(status, json.dumps(document).encode(), headers)

    def send_bytes(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> bool:
        if self.transport is None or self.transport.is_closing():
            return False
        self.server.statuses[str(status)] += 1
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        self.transport.write(head.encode() + body)
        return True

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


tasks: set[asyncio.Task[None]] = set()


async def serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    server = Server(options)
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", options.port, backlog=1024)
    port = listening.sockets[0].getsockname()[1]
    print(port, flush=True)

    async def die() -> None:
        """After so many answers: gone, with every connection, for a while."""
        while server.answers < options.die_after:
            await asyncio.sleep(0.01)
        nonlocal listening
        listening.close()
        for connection in list(server.connections):
            connection.abort()
        server.statuses["died"] += 1
        await asyncio.sleep(options.dead_seconds)
        listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", port, backlog=1024)

    dying = loop.create_task(die()) if options.die_after else None
    ended = loop.run_in_executor(None, sys.stdin.read)
    await ended
    if dying is not None:
        dying.cancel()
    listening.close()


class Mock:
    """A server in a process of its own: `url` is its base address."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port
        self.url = f"http://127.0.0.1:{port}/v1"

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=10) as response:
            found: dict[str, Any] = json.load(response)
        return found


@contextlib.contextmanager
def mock(**flags: Any) -> Iterator[Mock]:
    """Start one, by flags (`fail=0.05`, `dates=True`), and end it."""
    command = [sys.executable, __file__]
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if value is False:
            continue
        command += [flag] if value is True else [flag, *(value if isinstance(value, list) else [str(value)])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Mock(process, int(process.stdout.readline()))
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-seconds", type=float, default=0.0)
    parser.add_argument("--words", type=int, default=24, help="fewer than so many an answer")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: no limit")
    parser.add_argument("--burst", type=float, default=0.0, help="what the bucket holds; 0: one second's worth")
    parser.add_argument("--crowded", type=float, default=0.0, help="share of requests with a 429, whoever sends them")
    parser.add_argument("--dates", action="store_true", help="Retry-After as a date")
    parser.add_argument("--grace-seconds", type=float, default=0.25)
    parser.add_argument("--fail", type=float, default=0.0, help="share of requests with status 500")
    parser.add_argument("--truncate", type=float, default=0.0)
    parser.add_argument("--hang", type=float, default=0.0)
    parser.add_argument("--hang-seconds", type=float, default=3600.0)
    parser.add_argument("--reset", type=float, default=0.0)
    parser.add_argument("--fault-seed", type=int, default=0)
    parser.add_argument("--die-after", type=int, default=0)
    parser.add_argument("--dead-seconds", type=float, default=2.0)
    parser.add_argument("--require-key", default="")
    parser.add_argument("--refuse", nargs="*", help="fields of a request that are refused by name")
    parser.add_argument("--refuse-prompts", default="", help="requests that hold this text are refused")
    parser.add_argument("--fail-prompts", default="", help="requests of this very text have status 500")
    parser.add_argument("--choices", type=int, default=1)
    parser.add_argument("--forbid-after", type=int, default=0, help="status 403 after so many answers")
    parser.add_argument("--logprobs", action="store_true", help="give them where they are asked for")
    parser.add_argument("--marks", action="store_true", help="who asks for a mark is given one, from 1 to 5")
    parser.add_argument("--halves", action="store_true", help="answers end in half a surrogate pair")
    parser.add_argument("--reasoning", default="", help="reasoning_content, reasoning, think, bare or unclosed")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()

"""Following a run by its files, for any number of pages: one reader a run, its findings sent to all who watch.

A run is read once a second while somebody watches, whether one page or two hundred; every watcher gets the same bytes,
and only when they changed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.pipeline import EVENTS
from potstill.studio.workspace import read_events

EVERY_SECONDS = 1.0
MOST_POINTS = 400
"""Maximum points of a curve; beyond it, every second point is dropped."""
_KEEP_ALIVE_SECONDS = 15.0
_STILL_HERE = b": still here\n\n"
HELD_OUT = {
    "kl": "KL to the teacher, nats",
    "nll": "NLL, nats",
    "top1_agreement": "agreement with the teacher",
    "accuracy": "accuracy",
    "objectives": "loss",
}
"""What training measures on held-out records now and then, and how it is called."""


@dataclass
class Curve:
    """The losses of one stage: (step, loss), thinned out evenly."""

    steps: int = 0
    points: list[tuple[float, float]] = field(default_factory=list)
    every: int = 1
    _seen: int = 0

    def add(self, step: float, loss: float) -> None:
        if self.points and step <= self.points[-1][0]:  # continued from a checkpoint
            self.points = [point for point in self.points if point[0] < step]
        if self._seen % self.every == 0:
            self.points.append((step, loss))
        self._seen += 1
        if len(self.points) > MOST_POINTS:
            self.points, self.every = self.points[::2], self.every * 2


@dataclass
class Story:
    """What the events of a run tell. `task` is the one under way: label, done, total, unit, rate, note."""

    stage: str = ""
    task: Mapping[str, Any] | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    held_out: dict[str, list[tuple[float, Mapping[str, float]]]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    end: Mapping[str, Any] | None = None
    step: str | None = None
    run: str | None = None
    began: float | None = None
    last: float | None = None

    def add(self, event: Mapping[str, Any]) -> None:
        """Take one event in. Of events that a newer version writes, the unknown ones are passed over."""
        kind, moment = event.get("event"), event.get("time")
        self.last = float(moment) if isinstance(moment, int | float) else self.last
        if kind == "begin":
            self.began, self.end, self.task, self.warnings = self.last, None, None, []
            if isinstance(event.get("step"), str):  # of a lab
                self.step, self.run = event["step"], None
        elif kind == "end":
            self.end, self.task = event, None
        elif kind == "task" and isinstance(event.get("task"), str) and _numbers(event, "done"):
            # What is no number is not shown: a bar without its end, a rate without its time.
            wrong = {n for n in ("total", "per_second", "time") if n in event and not _numbers(event, n)}
            self.task = {name: None if name in wrong else value for name, value in event.items()}
        elif kind == "log" and _numbers(event, "step", "loss"):
            curve = self.curves.setdefault(self.stage, Curve())
            curve.steps = int(event.get("steps") or 0)
            curve.add(float(event["step"]), float(event["loss"]))
        elif kind == "say":
            self._say(event)

    def _say(self, event: Mapping[str, Any]) -> None:
        text = str(event.get("text", ""))
        if isinstance(event.get("run"), str):
            self.run = event["run"]
        if isinstance(event.get("stage"), str) and event["stage"] != self.stage:
            self.stage, self.task = event["stage"], None
        if event.get("level") == "warning":
            self.warnings = [*self.warnings, text.removeprefix("warning: ")][-50:]
            return
        if _numbers(event, "step"):
            facts = {n: float(event[n]) for n in HELD_OUT if _numbers(event, n)}
            self.held_out.setdefault(self.stage, []).append((float(event["step"]), facts))
        self.said = [*self.said, text][-12:]


def _numbers(event: Mapping[str, Any], *names: str) -> bool:
    """Whether all are there, and finite."""
    return all(isinstance(value := event.get(name), int | float) and abs(value) < 1e300 for name in names)


class Reader:
    """The story of one run, read on from where it was read last."""

    def __init__(self, run: Path) -> None:
        self.run, self.story, self._offset = run, Story(), 0
        self._histories: dict[str, float] = {}
        self._rejects: Counter[str] = Counter()
        self._rejects_of: tuple[str, int] = ("", 0)

    def read(self) -> Story:
        """Take in what was written since. The file is read on where it was left."""
        events, self._offset = read_events(self.run, EVENTS, self._offset)
        for event in events:
            with suppress(TypeError, ValueError, OverflowError):  # numbers that are none: the rest is told
                self.story.add(event)
        for file in self.run.glob("train*/history.jsonl"):
            self._read_history(file)
        return self.story

    def _read_history(self, file: Path) -> None:
        """What a whole training left behind replaces what was noted meanwhile, and is there where nothing was."""
        stamp = file.stat().st_mtime
        if self._histories.get(file.parent.name) == stamp:
            return
        self._histories[file.parent.name] = stamp
        curve = Curve()
        measured: list[tuple[float, Mapping[str, float]]] = []
        for row in read_events(file.parent, file.name, 0, most=50_000_000)[0]:
            if _numbers(row, "step", "loss"):
                curve.add(float(row["step"]), float(row["loss"]))
            elif _numbers(row, "step"):
                facts = {name: float(row[f"eval_{name}"]) for name in HELD_OUT if _numbers(row, f"eval_{name}")}
                measured.append((float(row["step"]), facts))
        self.story.curves[file.parent.name] = curve
        self.story.held_out[file.parent.name] = measured

    def rejects(self, ledger: Path | None) -> Counter[str]:
        """The reject ledger's reasons, counted on from where it was read last."""
        if ledger is None:
            return Counter()
        of, offset = self._rejects_of
        if of != str(ledger) or ledger.stat().st_size < offset:
            self._rejects, offset = Counter(), 0
        rows, offset = read_events(ledger.parent, ledger.name, offset, most=50_000_000)
        self._rejects.update(str(row.get("reason", "?")) for row in rows)
        self._rejects_of = (str(ledger), offset)
        return self._rejects


class Broadcast:
    """One text that is made anew once a second while somebody listens, and sent to all who do as server-sent events.

    Args:
        make: makes the text; runs in a thread, since it reads files.
        every: seconds between two looks.
    """

    def __init__(self, make: Callable[[], str], every: float = EVERY_SECONDS) -> None:
        self._make, self._every = make, every
        self._listeners, self._closed = 0, False
        self._text, self._event, self._version = "", b"", 0
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def listen(self) -> AsyncIterator[bytes]:
        """The text as it is now, and again whenever it changes, as an event that is encoded once for all; a comment now
        and then, so that a connection whose other end is gone is noticed."""
        self._listeners += 1
        if self._task is None:
            self._task = asyncio.create_task(self._follow())
        seen = 0
        try:
            while not self._closed:
                async with self._changed:
                    if self._version == seen and not self._closed:
                        with suppress(TimeoutError):
                            await asyncio.wait_for(self._changed.wait(), _KEEP_ALIVE_SECONDS)
                    event = self._event if self._version > seen else _STILL_HERE
                    seen = self._version
                yield event
        finally:
            self._listeners -= 1

    async def close(self) -> None:
        """End all streams, so that the server can end without cutting them."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def _follow(self) -> None:
        try:
            while self._listeners and not self._closed:
                try:
                    text = await asyncio.to_thread(self._make)
                except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
                    text = self._text  # a file is written anew, or was removed: the next look may be better
                if text != self._text:
                    async with self._changed:
                        self._text, self._event, self._version = text, sse(text), self._version + 1
                        self._changed.notify_all()
                await asyncio.sleep(self._every)
        finally:
            self._task = None


def sse(data: str) -> bytes:
    """A text as one server-sent event."""
    lines = "".join(f"data: {line}\n" for line in data.splitlines())
    return f"event: message\n{lines}\n".encode()


def time_left(task: Mapping[str, Any], now: float | None = None) -> float | None:
    """Seconds that a task will still take, by its rate; None if it cannot be told."""
    rate, total, done = task.get("per_second"), task.get("total"), task.get("done")
    if not isinstance(rate, int | float) or not isinstance(total, int | float) or rate <= 0:
        return None
    since = max((now or time.time()) - float(task.get("time", 0) or 0), 0.0)
    return max((total - float(done or 0)) / rate - since, 0.0)

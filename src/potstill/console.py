"""Everything that potstill prints.

While a stage works: progress bars on a terminal, plain lines elsewhere (both on standard error), or one JSON object
per line with `--json` (on standard output). Results go to standard output through `emit`. All text is cleaned here
(`errors.printable`), since it may quote a model, a server or a file.

Within `Console.events_to` the same events are also appended to a file in every mode, one JSON object a line with `time`
(seconds since the epoch): other programs follow a run by it, and it outlives the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from potstill.errors import OutputClosed, OutputError, printable

PLAIN_LINE_EVERY_SECONDS = 10.0
TASK_EVENT_EVERY_SECONDS = 1.0


def emit(text: str) -> None:
    """Print a result on standard output, cleaned, and flush it.

    Raises:
        OutputClosed: nobody reads standard output any more.
        OutputError: it cannot be written otherwise, e.g. the disk is full.
    """
    _print(printable(text))


def emit_piece(text: str) -> None:
    """Print a piece of a line on standard output, cleaned, and flush it. Raises: as `emit`."""
    _print(printable(text), end="")


def emit_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on one line. JSON escapes control characters by itself. Raises: as `emit`."""
    _print(json.dumps(value, default=str))


def emit_styled(text: str) -> None:
    """Print text with styles of our own; the caller cleans what it quotes. Raises: as `emit`."""
    _print(text)


def _print(text: str, end: str = "\n") -> None:
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        raise _output_error(error) from error


def _discard_standard_error() -> None:
    """Python flushes what is left of standard error as it exits, and would end with code 120 for it."""
    with suppress(OSError, ValueError):  # a stream without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class GuardedOutput:
    """A text stream that raises `OutputError` or `OutputClosed`, so that a failure of standard output is not mistaken
    for one of the run's folder.

    The command line puts it in place of standard output, for what click prints.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text. Raises: as `emit`."""
        try:
            return self._stream.write(text)
        except OSError as error:
            raise _output_error(error) from error

    def flush(self) -> None:
        """Flush. Raises: as `emit`."""
        try:
            self._stream.flush()
        except OSError as error:
            raise _output_error(error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _output_error(error: OSError) -> OutputError | OutputClosed:
    if isinstance(error, BrokenPipeError):
        return OutputClosed("standard output was closed")
    return OutputError(
        f"standard output cannot be written: {error.strerror}", fix="send it to a place with room, e.g. another disk"
    )


class Progress(Protocol):
    """Progress of one piece of work."""

    def advance(self, amount: float = 1.0, note: str = "", total: float | None = None) -> None:
        """Add `amount` to the work done. `note` is shown beside the bar; `total` replaces the estimate of the
        total."""
        ...


class Console:
    """Progress and messages of stages. `mode` defaults to `bars` on a terminal and `lines` elsewhere."""

    def __init__(self, mode: Literal["bars", "lines", "json", "quiet"] | None = None) -> None:
        self.mode = mode or ("bars" if sys.stderr.isatty() else "lines")
        self._rich: Any = None
        self._events: TextIO | None = None

    @contextmanager
    def events_to(self, path: Path) -> Iterator[None]:
        """Append what happens meanwhile to a file of events. A file that cannot be written ends nothing."""
        before = self._events
        try:
            self._events = path.open("a", encoding="utf-8")
        except OSError:
            self._events = None
        try:
            yield
        finally:
            events, self._events = self._events, before
            if events is not None:
                with suppress(OSError):
                    events.close()

    def note(self, event: str, **facts: Any) -> None:
        """Append one event to the file of events, and print nothing."""
        if self._events is None:
            return
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}, default=str)
        try:
            print(line, file=self._events, flush=True)
        except OSError:
            self._events = None  # a full disk is reported by the stage that needs it

    def say(self, text: str, **facts: Any) -> None:
        """Print one line; in mode `json` one event, with the facts."""
        if "task" not in facts:  # a task notes its own progress
            self.note("say", text=text, **facts)
        if self.mode == "json":
            emit_json({"event": "say", "text": text, **facts})
        elif self.mode == "bars":
            self._terminal().print(printable(text), markup=False, highlight=False)
        elif self.mode == "lines":
            try:
                print(printable(text), file=sys.stderr, flush=True)
            except OSError:
                self.mode = "quiet"  # a closed terminal must not end the run
                _discard_standard_error()

    def warn(self, text: str) -> None:
        """Print a warning; the work goes on."""
        self.say(f"warning: {text}", level="warning")

    @contextmanager
    def task(self, label: str, total: float | None, unit: str = "") -> Iterator[Progress]:
        """Show progress through `total` units, with rate and time left.

        with console.task("generating", total=4800, unit="tokens") as task:
            task.advance(128)
        """
        if self.mode == "bars":
            with self._bar(label, total, unit) as bar:
                yield _NotedProgress(self, bar, label, total, unit)
        else:
            lines = _LineProgress(self, label, total, unit)
            yield _NotedProgress(self, lines, label, total, unit)
            lines.close()

    def _terminal(self) -> Any:
        if self._rich is None:
            from rich.console import Console as RichConsole

            self._rich = RichConsole(stderr=True)
        return self._rich

    @contextmanager
    def _bar(self, label: str, total: float | None, unit: str) -> Iterator[Progress]:
        from rich.markup import escape
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f}/{task.fields[goal]} " + unit),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        ]
        with Progress(*columns, console=self._terminal(), transient=False, expand=True) as progress:
            goal = f"{total:,.0f}" if total is not None else "?"
            task_id = progress.add_task(escape(printable(label)), total=total, note="", goal=goal, rate="")
            started, done = time.monotonic(), 0.0

            class Bar:
                def advance(self, amount: float = 1.0, note: str = "", total: float | None = None) -> None:
                    nonlocal done
                    done += amount
                    rate = done / max(time.monotonic() - started, 1e-9)
                    if total is not None:
                        progress.update(task_id, total=total, goal=f"{total:,.0f}")
                    progress.update(task_id, advance=amount, note=escape(printable(note)), rate=f"{rate:,.1f}/s")

            yield Bar()


def _amount(amount: float, unit: str) -> str:
    """`4,800 tokens`, `1 model`. Units that are no plurals (MB) stay as they are."""
    shown = f"{amount:,.0f}"
    return f"{shown} {unit.removesuffix('s') if shown == '1' else unit}".rstrip()


class _LineProgress:
    """Progress as plain lines: at the start, every ten seconds, and at the end."""

    def __init__(self, console: Console, label: str, total: float | None, unit: str) -> None:
        self.console, self.label, self.total, self.unit = console, label, total, unit
        self.done, self.started = 0.0, time.monotonic()
        self.last = self.started
        console.say(f"{label}: {self._goal()}", task=label, done=0, total=total)

    def _goal(self) -> str:
        return _amount(self.total, self.unit) if self.total is not None else "started"

    def advance(self, amount: float = 1.0, note: str = "", total: float | None = None) -> None:
        self.done += amount
        self.total = total if total is not None else self.total
        now = time.monotonic()
        if now - self.last >= PLAIN_LINE_EVERY_SECONDS:
            self.last = now
            rate = self.done / (now - self.started)
            left = f", {(self.total - self.done) / rate:,.0f} s left" if self.total and rate > 0 else ""
            text = f"{self.label}: {self.done:,.0f} of {self._goal()}, {rate:,.1f} {self.unit}/s{left} {note}".rstrip()
            self.console.say(text, task=self.label, done=self.done, total=self.total, per_second=rate)

    def close(self) -> None:
        seconds = time.monotonic() - self.started
        done = _amount(self.done, self.unit) if self.unit else "done"
        text = f"{self.label}: {done} in {seconds:,.1f} s"
        self.console.say(text, task=self.label, done=self.done, seconds=seconds)


class _NotedProgress:
    """A task whose progress is also noted as events, at most one a second."""

    def __init__(self, console: Console, shown: Progress, label: str, total: float | None, unit: str) -> None:
        self.console, self.shown, self.label, self.total, self.unit = console, shown, label, total, unit
        self.done, self.started, self.last = 0.0, time.monotonic(), -TASK_EVENT_EVERY_SECONDS
        self._note("")

    def advance(self, amount: float = 1.0, note: str = "", total: float | None = None) -> None:
        self.shown.advance(amount, note, total)
        self.done += amount
        self.total = total if total is not None else self.total
        self._note(note)

    def _note(self, note: str) -> None:
        now = time.monotonic()
        over = self.total is not None and self.done >= self.total
        if now - self.last < TASK_EVENT_EVERY_SECONDS and not over:
            return
        self.last = now
        rate = self.done / max(now - self.started, 1e-9)
        facts = {"task": self.label, "done": self.done, "total": self.total, "unit": self.unit, "note": note}
        self.console.note("task", **facts, per_second=round(rate, 3))

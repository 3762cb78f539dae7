"""What the person sees while a stage works: progress bars on a terminal, plain lines elsewhere, one JSON object
per line with `--json`. Always on standard error, but for JSON, so that standard output holds results alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

PLAIN_LINE_EVERY_SECONDS = 10.0


class Task(Protocol):
    """A piece of work under way."""

    def advance(self, amount: float = 1.0, note: str = "", total: float | None = None) -> None:
        """Say that `amount` more is done; `note` is shown beside the bar, `total` is a better estimate of the whole."""
        ...


class Console:
    """Where stages say what they do. `mode` is found by looking: `bars` on a terminal, else `lines`."""

    def __init__(self, mode: Literal["bars", "lines", "json", "quiet"] | None = None) -> None:
        self.mode = mode or ("bars" if sys.stderr.isatty() else "lines")
        self._rich: Any = None

    def say(self, text: str, **facts: Any) -> None:
        """One line for the person (or one event for a machine, with the facts)."""
        if self.mode == "json":
            print(json.dumps({"event": "say", "text": text, **facts}, default=str), flush=True)
        elif self.mode == "bars":
            self._terminal().print(text, markup=False, highlight=False)
        elif self.mode == "lines":
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """A warning: something the person should know, though the work goes on."""
        self.say(f"warning: {text}", level="warning")

    @contextmanager
    def task(self, label: str, total: float | None, unit: str = "") -> Iterator[Task]:
        """A task of `total` units, with rate and time left.

        with console.task("generating", total=4800, unit="tokens") as task:
            task.advance(128)
        """
        if self.mode == "bars":
            with self._bar(label, total, unit) as bar:
                yield bar
        else:
            lines = _LineTask(self, label, total, unit)
            yield lines
            lines.close()

    def _terminal(self) -> Any:
        if self._rich is None:
            from rich.console import Console as RichConsole

            self._rich = RichConsole(stderr=True)
        return self._rich

    @contextmanager
    def _bar(self, label: str, total: float | None, unit: str) -> Iterator[Task]:
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
            task_id = progress.add_task(label, total=total, note="", goal=goal, rate="")
            started, done = time.monotonic(), 0.0

            class Bar:
                def advance(self, amount: float = 1.0, note: str = "", total: float | None = None) -> None:
                    nonlocal done
                    done += amount
                    rate = done / max(time.monotonic() - started, 1e-9)
                    if total is not None:
                        progress.update(task_id, total=total, goal=f"{total:,.0f}")
                    progress.update(task_id, advance=amount, note=note, rate=f"{rate:,.1f}/s")

            yield Bar()


class _LineTask:
    """Plain lines: at the start, every ten seconds, and at the end."""

    def __init__(self, console: Console, label: str, total: float | None, unit: str) -> None:
        self.console, self.label, self.total, self.unit = console, label, total, unit
        self.done, self.started = 0.0, time.monotonic()
        self.last = self.started
        console.say(f"{label}: {self._goal()}", task=label, done=0, total=total)

    def _goal(self) -> str:
        return f"{self.total:,.0f} {self.unit}".rstrip() if self.total is not None else "started"

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
        text = f"{self.label}: {self.done:,.0f} {self.unit} in {seconds:,.1f} s"
        self.console.say(text, task=self.label, done=self.done, seconds=seconds)

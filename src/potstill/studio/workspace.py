"""The folder of runs: which there are, and how each stands, by its files alone.

Nothing here holds a run open or writes into it. A name is one plain part of a path, so that no address leads outside.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from potstill.artifacts import Attempt, disk_error, parse_json, read_artifact, read_attempts
from potstill.errors import PotstillError, RunError
from potstill.measures import Measures
from potstill.pipeline import process_at_work
from potstill.recipe import load_recipe
from potstill.report.verdict import Verdict, judge
from potstill.stage import stage_names

State = Literal["at work", "done", "failed", "interrupted", "not finished", "not started", "unreadable"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
OUTPUT = "studio.log"
"""What a run that the studio started printed."""


@dataclass(frozen=True)
class StageState:
    """One stage of a run: `seconds` of its last whole artifact, what it counted and warned of."""

    name: str
    state: Literal["done", "at work", "failed", "interrupted", "waiting", "unreadable"]
    seconds: float | None = None
    counts: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    attempt: Attempt | None = None
    problem: str = ""


@dataclass(frozen=True)
class Run:
    """How a run stands. `problem` is why it cannot be read (whole): a damaged file, or one of a newer version."""

    name: str
    path: Path
    state: State
    stages: tuple[StageState, ...]
    changed: float
    pid: int | None = None
    problem: str = ""

    @property
    def at_work(self) -> bool:
        return self.state == "at work"

    @property
    def has_report(self) -> bool:
        return (self.path / "report" / "report.html").is_file()

    @property
    def has_records(self) -> bool:
        return (self.path / "generate" / "records.parquet").is_file() or bool(self.rejects)

    @property
    def rejects(self) -> Path | None:
        """The reject ledger: that of the whole artifact, else that of the attempt under way."""
        places = [self.path / "generate", *sorted(self.path.glob(".partial-generate-*"))]
        return next((f for place in places if (f := place / "rejects.jsonl").is_file()), None)


class Workspace:
    """A folder that holds runs, and `.studio/` with the token of its address.

    Raises:
        RunError: it is a file, or cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = folder / ".studio"
        try:
            self.own.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, folder) from error

    def names(self) -> list[str]:
        """The runs' names: folders with a recipe."""
        return sorted(p.name for p in self.folder.iterdir() if self.path(p.name) is not None)

    def path(self, name: str) -> Path | None:
        """The folder of a run, or None if there is no such run here. A link that leads elsewhere is none."""
        if not NAME.fullmatch(name):
            return None
        path = self.folder / name
        if not (path / "recipe.yaml").is_file():
            return None
        return path if path.resolve().is_relative_to(self.folder.resolve()) else None

    def runs(self) -> list[Run]:
        """All runs, the last changed first."""
        return sorted((read_run(self.folder / name) for name in self.names()), key=lambda run: -run.changed)

    def token(self) -> str:
        """The token of this folder's address, kept so that an open tab outlives a restart; readable by its owner."""
        file = self.own / "token"
        try:
            kept = file.read_text(encoding="ascii").strip()
            if re.fullmatch(r"[A-Za-z0-9_-]{43}", kept):
                return kept
        except (OSError, UnicodeDecodeError):
            pass
        token = secrets.token_urlsafe(32)
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(token)
        return token


def read_run(path: Path) -> Run:
    """How the run in a folder stands. Never raises: what cannot be read is said."""
    pid = process_at_work(path)
    try:
        expected, problem = list(_stages(path / "recipe.yaml", _mtime(path / "recipe.yaml"))), ""
    except PotstillError as error:
        expected, problem = [], str(error)
    attempts = {str(attempt.stage): attempt for attempt in _attempts(path)}
    there = [p.parent.name for p in sorted(path.glob("*/manifest.json")) if not p.parent.name.startswith(".")]
    order = [*expected, *(name for name in there if name not in expected)]
    stages = tuple(_stage(path / name, attempts.get(name), pid is not None) for name in order)
    unread = next((stage.problem for stage in stages if stage.problem), "")
    return Run(path.name, path, _state(stages, pid, problem), stages, _changed(path), pid, problem or unread)


def _state(stages: Sequence[StageState], pid: int | None, problem: str) -> State:
    states = {stage.state for stage in stages}
    if pid is not None:
        return "at work"
    if problem or "unreadable" in states:
        return "unreadable"
    if "failed" in states:
        return "failed"
    if "interrupted" in states:
        return "interrupted"
    if states == {"waiting"} or not states:
        return "not started"
    return "not finished" if "waiting" in states else "done"


def _stage(path: Path, attempt: Attempt | None, at_work: bool) -> StageState:
    try:
        artifact = read_artifact(path)
        found = dict(artifact.manifest) if artifact is not None else None
        if found is not None:
            warnings = [str(warning) for warning in found["warnings"]]
            found = {"seconds": float(found["seconds"]), "counts": dict(found["counts"]), "warnings": warnings}
    except (PotstillError, KeyError, TypeError, ValueError, OSError) as error:
        text = str(error) if isinstance(error, PotstillError) else f"its manifest lacks {error}"
        return StageState(path.name, "unreadable", problem=f"{path.name}: {text}")
    if attempt is not None:
        # `running` is also what a killed process leaves behind: whether it is at work, the lock says.
        state = attempt.state if attempt.state != "running" else "at work" if at_work else "interrupted"
        return StageState(path.name, state, attempt=attempt)
    if found is None:
        return StageState(path.name, "waiting")
    return StageState(path.name, "done", **found)


def _attempts(path: Path) -> list[Attempt]:
    try:
        return read_attempts(path)
    except (KeyError, TypeError, AttributeError, OSError):
        return []


@lru_cache(maxsize=512)
def _stages(recipe: Path, mtime: float) -> tuple[str, ...]:
    """The stages of a recipe, read once for a time of change."""
    return tuple(stage_names(load_recipe(recipe)))


def read_measures(run: Path) -> tuple[Measures | None, Verdict | None, str]:
    """The measures of a run and the verdict on them, if there are any; and why they cannot be read."""
    file = run / "evaluate" / "measures.json"
    if not file.is_file():
        return None, None, ""
    try:
        return _measures(file, _mtime(file))
    except (PotstillError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, None, f"{file.parent.name}/{file.name} cannot be read by this version of potstill ({error})"


@lru_cache(maxsize=512)
def _measures(file: Path, mtime: float) -> tuple[Measures, Verdict, str]:
    measures = Measures.load(file)
    return measures, judge(measures), ""


def read_events(run: Path, file: str, offset: int, most: int = 4_000_000) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a file of JSON lines behind an offset, and the offset behind them. At most the last `most`
    bytes are read; a line that is no JSON object is passed over."""
    try:
        with (run / file).open("rb") as lines:
            size = lines.seek(0, os.SEEK_END)
            if size < offset:
                offset = 0  # begun anew
            lines.seek(max(offset, size - most))
            text = lines.read()
    except OSError:
        return [], 0
    whole = text[: text.rfind(b"\n") + 1]
    found = []
    for line in whole.splitlines():
        try:
            event = parse_json(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            found.append(event)
    return found, max(offset, size - most) + len(whole)


def tail(path: Path, most: int = 4000) -> str:
    """The end of a text file; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _changed(path: Path) -> float:
    return max([_mtime(path), *map(_mtime, (path / "events.jsonl", path / "recipe.yaml"))])


def check_name(name: str, folder: Path) -> Path:
    """The folder of a new run.

    Raises:
        RunError: the name cannot be one, or is taken.
    """
    if not NAME.fullmatch(name):
        raise RunError(f"{name[:40]!r} cannot be a run's name", fix="letters, digits, dots, dashes and underscores")
    if (folder / name).exists():
        raise RunError(f"there is a run {name!r} already", fix="choose another name")
    return folder / name

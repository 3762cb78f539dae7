"""Running the steps of labs: in a process of their own, the same from the page and from the command line.

A step leaves `<step>.json` in the lab's folder: its blocks (tables, charts, links to runs), whether what it was to show
is there (`passed`), a sentence, and how long it took. Runs that it makes are ordinary ones of the workspace.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from potstill.artifacts import parse_json, read_artifact, write_atomically
from potstill.console import Console
from potstill.errors import PotstillError, RunError, UserError
from potstill.measures import Measures
from potstill.pipeline import EVENTS, process_at_work, run_recipe
from potstill.recipe import load_recipe
from potstill.studio.course.content import LabText, StepText, lab
from potstill.studio.workspace import OUTPUT, Workspace, read_measures

Block = dict[str, Any]
HERE = Path(__file__).parent
DRAFT = "lab.yaml"
"""The recipe of a run that a lab made, as it was written: paths still relative to the run's folder."""


@dataclass
class Outcome:
    """What came of a step."""

    passed: bool
    says: str
    blocks: list[Block] = field(default_factory=list)
    seconds: float = 0.0
    fields: Mapping[str, str] = field(default_factory=dict)


_OUTCOME = TypeAdapter(Outcome)


@dataclass(frozen=True)
class Bench:
    """What a step works with: its fields, the lab's folder, the workspace, and the console that is followed."""

    number: int
    fields: Mapping[str, str]
    folder: Path
    workspace: Workspace
    console: Console

    def run(self, name: str, recipe: str, overrides: Sequence[str] = ()) -> Path:
        """Make (or continue) a run of the workspace from a recipe's text. What is fresh is not done again."""
        folder = self.workspace.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        text = recipe.replace("{here}", str(HERE)).replace("{name}", name)
        draft = folder / DRAFT
        draft.write_text(text, encoding="utf-8")
        self.console.note("say", text=f"run {name}", run=name)
        run_recipe(load_recipe(draft, overrides), folder, console=self.console)
        return folder

    def measures(self, run: Path) -> Measures:
        """The measures of a run that was made. Raises: RunError."""
        measures, _, problem = read_measures(run)
        if measures is None:
            raise RunError(problem or "the run was not measured", where=run.name)
        return measures

    def seconds(self, run: Path, stage: str) -> float:
        """How long a stage of a run took, as its manifest says."""
        artifact = read_artifact(run / stage)
        return 0.0 if artifact is None else float(artifact.manifest["seconds"])


Step = Callable[[Bench], Outcome]


def table(head: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> Block:
    """A table."""
    return {"kind": "table", "title": title, "head": list(head), "rows": [[str(c) for c in row] for row in rows]}


def bars(title: str, values: Sequence[tuple[str, float]], unit: str = "", most: float | None = None) -> Block:
    """Horizontal bars."""
    return {"kind": "bars", "title": title, "values": [list(v) for v in values], "unit": unit, "most": most}


def run_link(name: str, what: str) -> Block:
    """A link to a run that the step made."""
    return {"kind": "run", "run": name, "what": what}


def step_of(number: int, key: str) -> Step:
    """The function of a step."""
    found: Step = getattr(import_module(f"potstill.studio.course.lab{number}"), key)
    return found


def missing(step: StepText) -> str:
    """Why a step cannot be done in this version; empty if it can."""
    for need in step.needs:
        try:
            import_module(need)
        except ModuleNotFoundError as error:
            if need.startswith(error.name or need):
                return f"This step needs `{need}`, which this version of potstill does not have."
            return f"This step needs the package {error.name!r}, which is not installed."
    return ""


def lab_folder(workspace: Workspace, number: int) -> Path:
    """Where a lab keeps what came of its steps."""
    return workspace.own / "labs" / str(number)


def outcomes(workspace: Workspace, number: int) -> dict[str, Outcome]:
    """What came of the steps of a lab so far, by key."""
    found = {}
    for step in lab(number).steps:
        try:
            text = (lab_folder(workspace, number) / f"{step.key}.json").read_text(encoding="utf-8")
            found[step.key] = _OUTCOME.validate_python(parse_json(text))
        except (OSError, ValueError, TypeError):
            continue
    return found


def steps_done(workspace: Workspace, number: int) -> tuple[int, int]:
    """How many steps of a lab are done, of how many that this version can do."""
    came = outcomes(workspace, number)
    doable = [step.key for step in lab(number).steps if not missing(step)]
    return sum(key in came and came[key].passed for key in doable), len(doable)


def run_steps(
    workspace: Workspace, number: int, keys: Sequence[str], fields: Mapping[str, str], console: Console
) -> dict[str, Outcome]:
    """Run steps of a lab, one after the other.

    Raises:
        RunError: the lab is at work already.
        PotstillError: what a step says is wrong.
    """
    text, folder = lab(number), lab_folder(workspace, number)
    folder.mkdir(parents=True, exist_ok=True)
    came = {}
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"lab {number} is at work already", fix="wait for it, or stop it") from error
        lock.truncate(0)
        print(os.getpid(), file=lock, flush=True)
        with console.events_to(folder / EVENTS):
            for key in keys:
                came[key] = _run_step(text, key, fields, workspace, console)
    return came


def _run_step(text: LabText, key: str, fields: Mapping[str, str], workspace: Workspace, console: Console) -> Outcome:
    step, folder = text.step(key), lab_folder(workspace, text.lesson)
    given = {f.name: fields.get(f.name) or f.default for f in step.fields}
    console.note("begin", step=key, pid=None)
    console.say(f"lab {text.lesson}, {step.title}", stage=key)
    started = time.monotonic()
    if why := missing(step):
        outcome = Outcome(False, why)
    else:
        try:
            outcome = step_of(text.lesson, key)(Bench(text.lesson, given, folder, workspace, console))
        except PotstillError as error:
            console.note("end", state="failed", error=error.what, where=error.where, fix=error.fix)
            raise
    outcome.seconds, outcome.fields = round(time.monotonic() - started, 1), given
    facts = {name: getattr(outcome, name) for name in ("passed", "says", "blocks", "seconds", "fields")}
    write_atomically(folder / f"{key}.json", json.dumps(facts, indent=1))
    console.note("end", state="done")
    console.say(f"{'done' if outcome.passed else 'not done'}: {outcome.says}")
    return outcome


def start_step(workspace: Workspace, number: int, key: str, fields: Mapping[str, str]) -> None:
    """Start one step of a lab in a process of its own.

    Raises:
        RunError: the lab is at work already.
        UserError: there is no such step.
    """
    if key not in {step.key for step in lab(number).steps}:
        raise UserError(f"lab {number} has no step {key[:40]!r}")
    folder = lab_folder(workspace, number)
    if process_at_work(folder) is not None:
        raise RunError(f"lab {number} is at work already", fix="wait for it, or stop it")
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "potstill.cli", "learn", "--runs", str(workspace.folder), "run", str(number)]
    command += ["--yes", "--step", key]
    for name in (f.name for f in lab(number).step(key).fields):
        command += ["--set", f"{name}={fields.get(name, '')[:500]}"]
    with (folder / OUTPUT).open("wb") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    _started[:] = [(n, c) for n, c in _started if c.poll() is None]
    _started.append((number, child))


_started: list[tuple[int, subprocess.Popen[bytes]]] = []


def at_work(workspace: Workspace, number: int) -> bool:
    """Whether a step of a lab is being done, or about to be."""
    starting = any(n == number and child.poll() is None for n, child in _started)
    return starting or process_at_work(lab_folder(workspace, number)) is not None


def stop_step(workspace: Workspace, number: int) -> None:
    """Interrupt the step of a lab that is being done; what it had done is continued next time."""
    pid = process_at_work(lab_folder(workspace, number))
    if pid is None:
        pid = next((child.pid for n, child in _started if n == number and child.poll() is None), None)
    if pid:
        os.kill(pid, signal.SIGINT)

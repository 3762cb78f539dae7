"""Starting, stopping and editing runs from the page, as `potstill run` in processes of their own.

A process that was started here belongs to nobody: it goes on when the studio ends, and any studio can stop it, since
the number of whoever holds a run stands in the run's lock file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from potstill.artifacts import disk_error, write_atomically
from potstill.check import check_recipe
from potstill.check.findings import Findings
from potstill.errors import RecipeError, RunError
from potstill.init import PROMPTS, RECIPE
from potstill.pipeline import process_at_work
from potstill.recipe.load import parse_recipe
from potstill.recipe.reading import parse_yaml
from potstill.studio.workspace import OUTPUT, check_name

_WITH_INTERRUPTS = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from potstill.cli import main; main(sys.argv[1:])"
)
"""A studio that a shell has put into the background ignores interrupts, and so would what it starts: it could not be
stopped."""
_children: list[subprocess.Popen[bytes]] = []


def start(run: Path) -> int:
    """Run (or continue) the recipe in a run's folder; returns the number of the process.

    Raises:
        RunError: it is at work already, or its folder cannot be written.
    """
    if process_at_work(run) is not None:
        raise RunError("this run is at work already", where=run.name, fix="wait for it, or stop it")
    command = [sys.executable, "-c", _WITH_INTERRUPTS, "run", str(run / "recipe.yaml"), "--run", str(run)]
    try:
        with (run / OUTPUT).open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
    except OSError as error:
        raise disk_error(error, run) from error
    _children[:] = [child for child in _children if child.poll() is None]  # reaps those that have ended
    _children.append(process)
    return process.pid


def starting(run: Path) -> bool:
    """Whether a process that was started here for this run has not ended (it may not hold the run yet)."""
    wanted = str(run / "recipe.yaml")
    return any(child.poll() is None and wanted in map(str, _args(child)) for child in _children)


def _args(child: subprocess.Popen[bytes]) -> list[Any]:
    return list(child.args) if isinstance(child.args, list | tuple) else []


def stop(run: Path) -> None:
    """Interrupt whoever is at work in a run, as Ctrl-C would: it keeps its last checkpoint and can be continued.

    Raises:
        RunError: nobody is, or it is not known who.
    """
    pid = process_at_work(run)
    if pid is None and starting(run):
        pid = next(c.pid for c in _children if c.poll() is None and str(run / "recipe.yaml") in map(str, _args(c)))
    if not pid:
        raise RunError("this run is not at work", where=run.name, fix="start it first")
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)


def check_text(text: str, run: Path) -> Findings:
    """What `potstill check` says of a recipe's text, its paths relative to the run's folder.

    Raises:
        RecipeError: it is no recipe, by the words of `check`; or it would run code that the recipe on disk does not
            name, which a page must not bring in.
    """
    return check_recipe(parse_recipe(_document(text, run), base=run.resolve(), where="recipe"))


def _document(text: str, run: Path) -> dict[str, Any]:
    document = _parse(text)
    if new := sorted(set(_code(document)) - set(_code(parsed(run)))):
        raise RecipeError(
            f"names code to run: {', '.join(new)[:200]}",
            where="recipe",
            fix="put it into the recipe with an editor, and start it by `potstill run`: pages bring in no code",
        )
    return document


def _parse(text: str) -> dict[str, Any]:
    try:
        document = parse_yaml(text)
    except ValueError as error:
        raise RecipeError(f"not valid YAML: {error}", where="recipe") from error
    if not isinstance(document, dict):
        raise RecipeError("a recipe is a mapping of sections", where="recipe")
    return document


def _code(value: Any, key: str = "") -> Iterator[str]:
    """Everything in a recipe that names code: files of plug-ins and models' own code."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _code(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _code(inner, key)
    elif key == "trust_remote_code" and value:
        yield "trust_remote_code"
    elif isinstance(value, str) and ".py" in value.lower():
        yield value


def save_recipe(text: str, run: Path) -> None:
    """Write a recipe that `potstill check` can read (whatever it then says of it) into its run's folder.

    Raises:
        RecipeError: as `check_text`.
        RunError: the run is at work, or its folder cannot be written.
    """
    recipe = parse_recipe(_document(text, run), base=run.resolve(), where="recipe")
    named = parsed(run).get("name")
    if named is not None and named != recipe.name and any(run.glob("*/manifest.json")):
        raise RunError(
            f"this run's folder belongs to the recipe {named!r}", where=run.name, fix="keep its name, or make a new run"
        )
    if process_at_work(run) is not None:
        raise RunError("this run is at work", where=run.name, fix="stop it before its recipe is changed")
    try:
        write_atomically(run / "recipe.yaml", text)
    except OSError as error:
        raise disk_error(error, run) from error


def new_run(name: str, workspace: Path, copy_of: Path | None = None) -> Path:
    """A run's folder with a recipe to edit: the starter's, or that of another run.

    Raises:
        RunError: the name cannot be one or is taken, or the folder cannot be written.
    """
    folder = check_name(name, workspace)
    try:
        text = RECIPE if copy_of is None else (copy_of / "recipe.yaml").read_text(encoding="utf-8")
        folder.mkdir(parents=True)
        if copy_of is None:
            lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
            (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
        write_atomically(folder / "recipe.yaml", _renamed(text, name))
    except OSError as error:
        raise disk_error(error, folder) from error
    return folder


def _renamed(text: str, name: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(f"name: {name}\n" if line.startswith("name:") else line for line in lines)


def parsed(run: Path) -> dict[str, Any]:
    """The recipe of a run as plain data; empty if it cannot be read."""
    with suppress(OSError, RecipeError):
        return _parse((run / "recipe.yaml").read_text(encoding="utf-8"))
    return {}

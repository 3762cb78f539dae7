"""What a lab trained, to take along: its recipes in the order in which they run, with the files that they name."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

from potstill.errors import RunError, UserError
from potstill.studio.course.content import lab
from potstill.studio.course.labs import DRAFT, HERE, outcomes
from potstill.studio.workspace import Workspace

_RUN = re.compile(r"run:\.\./([A-Za-z0-9._-]+)")
_COURSE = "course"
"""The folder for what recipes take from this package: the nets, the sums and their tokenizer."""


def runs_of(workspace: Workspace, number: int) -> list[str]:
    """The runs that a lab has made, each after those that it reads."""
    came = outcomes(workspace, number)
    blocks = [block for step in lab(number).steps if step.key in came for block in came[step.key].blocks]
    ordered: list[str] = []

    def add(name: str) -> None:
        draft = workspace.folder / name / DRAFT
        if name in ordered or not draft.is_file():
            return
        for needed in _RUN.findall(draft.read_text(encoding="utf-8")):
            add(needed)
        ordered.append(name)

    for block in blocks:
        if block["kind"] == "run":
            add(block["run"])
    return ordered


def files_of(workspace: Workspace, number: int) -> dict[str, bytes]:
    """The files to take along, by path: a folder for each run with its recipe and data, the course's own files, and a
    script of commands, `lab-N.sh`, that makes all runs again.

    Raises:
        RunError: no step of the lab has made a run yet.
    """
    names = runs_of(workspace, number)
    if not names:
        raise RunError(f"lab {number} has trained nothing yet", fix="do a step of it that trains; then take it along")
    files: dict[str, bytes] = {}
    for name in names:
        folder = workspace.folder / name
        recipe = (folder / DRAFT).read_text(encoding="utf-8")
        for path in sorted(HERE.iterdir()):
            if f"{HERE}/{path.name}" in recipe:
                files |= _tree(path, f"{_COURSE}/{path.name}")
        for path in sorted(folder.iterdir()):
            if path.name != DRAFT and path.is_file() and path.name in recipe:
                files |= _tree(path, f"{name}/{path.name}")
        files[f"{name}/recipe.yaml"] = recipe.replace(str(HERE), f"../{_COURSE}").encode()
    commands = [f"potstill run {name}/recipe.yaml --run {name}" for name in names]
    title = lab(number).title
    files[f"lab-{number}.sh"] = "\n".join([f"# Lab {number}: {title}", "set -e", *commands, ""]).encode()
    return files


def _tree(path: Path, name: str) -> dict[str, bytes]:
    if path.is_file():
        return {name: path.read_bytes()}
    return {f"{name}/{below.name}": below.read_bytes() for below in sorted(path.iterdir()) if below.is_file()}


def packed(workspace: Workspace, number: int) -> bytes:
    """The same files as a zip archive, in a folder `lab-N`. Raises: RunError, as `files_of`."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files_of(workspace, number).items():
            archive.writestr(f"lab-{number}/{name}", content)
    return made.getvalue()


def export(runs: Path, number: int, folder: Path) -> list[Path]:
    """Write the files into a new folder, and return their paths.

    Raises:
        RunError: as `files_of`.
        UserError: the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("something is there already", where=str(folder), fix="another --to, or remove it")
    written = []
    for name, content in files_of(Workspace(runs), number).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written.append(path)
    return written

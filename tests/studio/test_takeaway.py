"""What a lab trained is taken along as recipes that run elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.console import Console
from potstill.errors import RunError, UserError
from potstill.recipe import load_recipe
from potstill.studio.course import lab1, labs, takeaway
from potstill.studio.workspace import Workspace


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which lab 1's teacher of digits was trained, for one epoch and without an evaluation."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    short = lab1.DIGITS.replace("num_train_epochs: 40", "num_train_epochs: 1").replace("evaluate: {speed: false}", "")
    labs.Bench(1, {}, workspace.folder, workspace, Console("quiet")).run("learn-1-teacher", short)
    came(workspace, 1, "dark", "learn-1-teacher")
    return workspace


def came(workspace: Workspace, lab: int, step: str, *runs: str) -> None:
    """As if a step of a lab had made these runs."""
    folder = labs.lab_folder(workspace, lab)
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [{"kind": "run", "run": run, "what": ""} for run in runs]
    (folder / f"{step}.json").write_text(json.dumps({"passed": True, "says": "", "blocks": blocks}))


def made(workspace: Workspace, run: str, recipe: str) -> Path:
    """A run's folder with the recipe that a lab wrote."""
    folder = workspace.folder / run
    folder.mkdir()
    (folder / labs.DRAFT).write_text(recipe)
    return folder


def test_runs_are_ordered_after_those_that_they_read(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    made(workspace, "learn-1-student", 'teacher: {kind: local, model: "run:../learn-1-teacher"}')
    made(workspace, "learn-1-teacher", "student: {}")
    came(workspace, 1, "students", "learn-1-student", "learn-1-teacher")
    assert takeaway.runs_of(workspace, 1) == ["learn-1-teacher", "learn-1-student"]


def test_what_is_taken_along_names_no_path_of_this_machine(done: Workspace) -> None:
    files = takeaway.files_of(done, 1)
    assert set(files) == {"course/nets.py", "learn-1-teacher/recipe.yaml", "lab-1.sh"}
    for name in ("learn-1-teacher/recipe.yaml", "lab-1.sh"):
        text = files[name].decode()
        assert str(done.folder) not in text and str(labs.HERE) not in text


@pytest.mark.slow
def test_the_script_trains_the_same_student_elsewhere(done: Workspace, tmp_path: Path) -> None:
    written = takeaway.export(done.folder, 1, tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "lab-1.sh") in written
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(
        ["sh", "lab-1.sh"], cwd=tmp_path / "elsewhere", env=os.environ | {"PATH": path}, check=True, capture_output=True
    )
    weights = "learn-1-teacher/train/model/model.safetensors"
    assert (done.folder / weights).read_bytes() == (tmp_path / "elsewhere" / weights).read_bytes()


def test_data_that_a_lab_wrote_go_along(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    folder = made(workspace, "learn-2-answers", "name: a\ndata: {kind: jsonl, path: prompts.jsonl, format: prompt}\n")
    (folder / "prompts.jsonl").write_text('{"prompt": "Say hello."}\n')
    (folder / "studio.log").write_text("not asked for")
    came(workspace, 2, "answers", "learn-2-answers")
    assert set(takeaway.files_of(workspace, 2)) == {
        "learn-2-answers/recipe.yaml", "learn-2-answers/prompts.jsonl", "lab-2.sh",
    }  # fmt: skip


def test_a_lab_without_a_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has trained nothing yet"):
        takeaway.files_of(Workspace(tmp_path), 2)


def test_nothing_that_is_there_is_written_over(done: Workspace, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="something is there"):
        takeaway.export(done.folder, 1, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_taken_along_recipes_are_valid(done: Workspace, tmp_path: Path) -> None:
    takeaway.export(done.folder, 1, tmp_path / "lab")
    assert load_recipe(tmp_path / "lab" / "learn-1-teacher" / "recipe.yaml").name == "learn-1-teacher"

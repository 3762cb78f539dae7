"""What a lab trained is taken along as recipes that run elsewhere."""

from __future__ import annotations

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
    """A workspace in which lab 1's two nets were trained, for one epoch each."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DIGITS", "STUDENT"):
            text = getattr(lab1, name).replace("num_train_epochs: 40", "num_train_epochs: 1")
            patch.setattr(lab1, name, text.replace("num_train_epochs: 60", "num_train_epochs: 1"))
        labs.run_steps(workspace, 1, ["students"], {}, Console("quiet"))
    return workspace


def test_runs_are_ordered_after_those_that_they_read(done: Workspace) -> None:
    assert takeaway.runs_of(done, 1) == ["learn-1-teacher", "learn-1-student"]


def test_what_is_taken_along_names_no_path_of_this_machine(done: Workspace) -> None:
    files = takeaway.files_of(done, 1)
    assert set(files) == {
        "course/nets.py", "learn-1-teacher/recipe.yaml", "learn-1-student/recipe.yaml", "lab-1.sh",
    }  # fmt: skip
    for name in ("learn-1-teacher/recipe.yaml", "learn-1-student/recipe.yaml", "lab-1.sh"):
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
    for run in ("learn-1-teacher", "learn-1-student"):
        weights = [
            folder / run / "train" / "model" / "model.safetensors" for folder in (done.folder, tmp_path / "elsewhere")
        ]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def test_data_that_a_lab_wrote_go_along(tmp_path: Path) -> None:
    folder = tmp_path / "learn-2-answers"
    folder.mkdir()
    (folder / "prompts.jsonl").write_text('{"prompt": "Say hello."}\n')
    (folder / "studio.log").write_text("not asked for")
    (folder / labs.DRAFT).write_text("name: a\ndata: {kind: jsonl, path: prompts.jsonl, format: prompt}\n")
    workspace = Workspace(tmp_path)
    came = labs.lab_folder(workspace, 2)
    came.mkdir(parents=True)
    (came / "answers.json").write_text(
        '{"passed": true, "says": "", "blocks": [{"kind": "run", "run": "learn-2-answers", "what": ""}]}'
    )
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
    for run in ("learn-1-teacher", "learn-1-student"):
        assert load_recipe(tmp_path / "lab" / run / "recipe.yaml").name == run

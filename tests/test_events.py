"""What happens in a run is appended to its file of events, in every mode of the console."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from potstill.console import Console
from potstill.errors import DataError
from potstill.pipeline import EVENTS, _noted, open_run, process_at_work
from small_run import SmallRun


def _events(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("mode", ["lines", "json", "quiet"])
def test_sayings_and_the_progress_of_tasks_are_noted_in_every_mode(tmp_path: Path, mode: str) -> None:
    console = Console(mode)  # type: ignore[arg-type]
    with console.events_to(tmp_path / EVENTS):
        console.say("train: started", stage="train")
        with console.task("training", total=2, unit="tokens") as task:
            task.advance(1)
            task.advance(1, "step 2/2")
    console.say("not noted any more")
    said, begun, over = _events(tmp_path / EVENTS)
    assert (said["event"], said["stage"]) == ("say", "train")
    assert (begun["task"], begun["done"]) == ("training", 0)
    assert (over["done"], over["total"], over["note"]) == (2, 2, "step 2/2")


def test_a_task_without_a_unit_ends_with_done(capsys: pytest.CaptureFixture[str]) -> None:
    for unit in ("", "tokens"):
        with Console("lines").task("copying", total=None, unit=unit) as task:
            task.advance()
    ends = [line.partition(" in ")[0] for line in capsys.readouterr().err.splitlines() if " in " in line]
    assert ends == ["copying: done", "copying: 1 token"]


def test_a_file_of_events_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    console = Console("quiet")
    with console.events_to(tmp_path / "nowhere" / EVENTS):
        console.say("on we go")


def test_the_end_of_a_run_is_noted_with_its_error(tmp_path: Path) -> None:
    console = Console("quiet")
    with pytest.raises(DataError), _noted(tmp_path, console, None):
        raise DataError("no rows", where="data", fix="add some")
    begin, end = _events(tmp_path / EVENTS)
    assert begin["pid"] == os.getpid()
    assert (end["state"], end["error"], end["fix"]) == ("failed", "no rows", "add some")


def test_whoever_holds_a_run_is_known_by_its_number(tmp_path: Path) -> None:
    recipe = SmallRun(tmp_path / "made").recipe
    run = tmp_path / "run"
    assert process_at_work(run) is None
    with open_run(recipe, run):
        assert process_at_work(run) == os.getpid()
    assert process_at_work(run) is None


def test_a_look_at_the_lock_keeps_no_run_from_beginning(tmp_path: Path) -> None:
    recipe = SmallRun(tmp_path / "made").recipe
    run = tmp_path / "run"
    run.mkdir()
    with (run / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.set_inheritable(lock.fileno(), True)
        look = os.fork()
        if look == 0:  # holds the shared lock for an instant longer than the first try
            os.execvp("sleep", ["sleep", "0.1"])
    with open_run(recipe, run):
        assert process_at_work(run) == os.getpid()
    os.waitpid(look, 0)

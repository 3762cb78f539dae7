"""Every lab, whole, without a browser, as a reader would run it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from benchmarks.labs import do_lab
from potstill.console import Console
from potstill.studio.course import content, labs
from potstill.studio.workspace import Workspace


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labs")


def test_the_gate_of_lab_4_refuses_a_teacher_and_nothing_is_sent_or_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("something was sent")

    monkeypatch.setattr(socket.socket, "connect", never)
    workspace = Workspace(tmp_path)
    outcome = labs.run_steps(workspace, 4, ["gate"], {}, Console("quiet"))["gate"]
    assert outcome.passed and outcome.says.startswith("Refused")
    answers = {(row[0].partition(":")[0], row[1]) for row in outcome.blocks[0]["rows"]}
    assert ("gpt-4o-mini", "not allowed") in answers
    assert not [answer for of, answer in answers if of == "smollm2-135m-instruct" and answer == "not allowed"]
    assert sorted(path.name for path in (tmp_path / "learn-4-gate").iterdir()) == [
        "asked.yaml", "lab.yaml", "prompts.jsonl",
    ]  # fmt: skip


def test_a_gate_that_does_not_stop_a_recipe_is_not_passed_and_starts_nothing(tmp_path: Path) -> None:
    fields = {"server": "http://127.0.0.1:9/v1", "model": "a-model-of-mine"}
    outcome = labs.run_steps(Workspace(tmp_path), 4, ["gate"], fields, Console("quiet"))["gate"]
    assert not outcome.passed and "nothing stops a-model-of-mine" in outcome.says
    assert not (tmp_path / "learn-4-gate" / "lab.yaml").exists()


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", content.LESSONS)
def test_a_lab_is_done_from_the_command_line(runs: Path, number: int) -> None:
    done = do_lab(runs, number)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"lab {number}: {sum(step['seconds'] for step in result['steps'].values()):.0f} s", result["steps"])
    doable, there = labs.steps_done(Workspace(runs), number)
    assert doable == there > 0

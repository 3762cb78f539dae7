"""Every lab, whole, without a browser, as a reader would run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.studio.course import content, labs
from potstill.studio.workspace import Workspace


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labs")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", content.LESSONS)
def test_a_lab_is_done_from_the_command_line(runs: Path, number: int) -> None:
    command = [
        sys.executable,
        "-m",
        "potstill.cli",
        "learn",
        "--runs",
        str(runs),
        "run",
        str(number),
        "--yes",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"lab {number}: {sum(step['seconds'] for step in result['steps'].values()):.0f} s", result["steps"])
    doable, there = labs.steps_done(Workspace(runs), number)
    assert doable == there > 0

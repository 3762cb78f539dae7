"""`kill -9` at any moment, then the same command: no answer lost, none twice, what was in flight repeated at most."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest
from generate.endpoint_run import EndpointRun
from mock_server import Mock, mock

from potstill.answering.journal import Journal
from potstill.data import load_records

IN_FLIGHT = 24
PROMPTS, SAMPLES = 250, 2
OVERRIDES = (f"teacher.max_in_flight={IN_FLIGHT}",)


def new(folder: Path, server: Mock) -> EndpointRun:
    return EndpointRun(folder, server.url, prompts=PROMPTS, samples=SAMPLES)


def whole_output(folder: Path, server: Mock) -> dict[str, bytes]:
    made = new(folder, server)
    made.finish(*OVERRIDES)
    return made.output


def killed_once(made: EndpointRun, server: Mock, draw: random.Random) -> tuple[int, int]:
    """Kill it after a random share of its requests; how many requests and kept answers there were by then."""
    before, after = server.stats()["requests"], draw.randrange(1, made.requests)
    process, deadline = made.start(*OVERRIDES), time.monotonic() + 300
    while server.stats()["requests"] < before + after and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.02))
    process.kill()
    process.communicate()
    time.sleep(0.1)  # the server works out what it had under way
    with Journal(made.run / "journal.sqlite") as journal:
        return server.stats()["requests"] - before, len(journal)


def check_kill(folder: Path, server: Mock, whole: dict[str, bytes], draw: random.Random) -> tuple[int, int]:
    made = new(folder, server)
    before = server.stats()
    sent, kept = killed_once(made, server, draw)
    # Lost is what was answered and is not in the journal: that was in flight, and no more.
    assert sent - kept <= IN_FLIGHT
    made.finish(*OVERRIDES)
    assert made.output == whole
    records = load_records(made.run / "generate" / "records.parquet")
    assert len({(r.row, r.sample) for r in records}) == len(records) == made.requests
    repeated = server.stats()["requests"] - before["requests"] - made.requests
    assert 0 <= repeated == sent - kept
    return repeated, kept


def test_killed_at_three_random_moments_it_ends_with_the_same_files(tmp_path: Path) -> None:
    """Each of three runs is killed once, at a random moment of its sending, and then completed."""
    draw = random.Random(os.urandom(8))
    with mock(latency_seconds=0.02) as server:
        whole = whole_output(tmp_path / "whole", server)
        for index in range(3):
            check_kill(tmp_path / f"killed-{index}", server, whole, draw)


@pytest.mark.long
def test_fifty_kills_at_fifty_random_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, repeats, cut = random.Random(os.urandom(8)), list[int](), 0
    with mock(latency_seconds=0.02) as server:
        whole = whole_output(tmp_path / "whole", server)
        for index in range(50):
            folder = tmp_path / f"killed-{index}"
            repeated, kept = check_kill(folder, server, whole, draw)
            repeats.append(repeated)
            cut += 0 < kept < PROMPTS * SAMPLES
            shutil.rmtree(folder)
    with capsys.disabled():
        print(
            f"\n50 runs of {PROMPTS * SAMPLES} requests killed at random points, {cut} of them in the middle: 0 lost, "
            f"0 twice, all files equal; {sum(repeats)} requests repeated, at most {max(repeats)} in one run of "
            f"{IN_FLIGHT} in flight"
        )

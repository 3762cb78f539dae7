"""Worker processes: hard deadlines, and a pool that keeps its size."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from potstill.recipe.verify import Math
from potstill.types import Record
from potstill.verify import open_verifier
from potstill.verify.workers import Died, Failed, Late, WorkerPool

DEADLINE_SECONDS = 0.5
WITH_OURS = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    monkeypatch.setenv("PYTHONPATH", WITH_OURS)
    made = WorkerPool("slow_worker:obey", size=2, deadline_seconds=DEADLINE_SECONDS)
    yield made
    made.close()
    assert made.alive == 0


def test_a_result_comes_back_and_what_is_printed_is_no_result(pool: WorkerPool) -> None:
    assert pool.call("ü\n") == "ü\n"
    assert pool.call("print") == "print"
    assert pool.call("x" * 1_000_000) == "1000000"


@pytest.mark.parametrize("item", ["hang", "hang in C"])
def test_a_hanging_item_is_killed_at_its_deadline_and_the_pool_keeps_its_size(pool: WorkerPool, item: str) -> None:
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(pool.call, ["a", "b"])) == ["a", "b"]
    size, before = pool.alive, {w.process.pid for w in pool._all}
    with pytest.raises(Late, match=r"not judged within 0\.5 s"):
        pool.call(item)
    assert pool.alive == size
    dead = before - {w.process.pid for w in pool._all}
    assert len(dead) == 1 and not Path(f"/proc/{dead.pop()}").exists()
    assert pool.call("next") == "next"


def test_many_hanging_items_leave_the_pool_whole(pool: WorkerPool) -> None:
    for _ in range(3):
        with pytest.raises(Late):
            pool.call("hang")
    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(pool.call, ["a", "b", "c", "d"])) == ["a", "b", "c", "d"]
    assert pool.alive <= pool.size == 2


def test_one_that_dies_is_replaced_and_one_that_raises_goes_on(pool: WorkerPool) -> None:
    with pytest.raises(Failed, match="ValueError: no"):
        pool.call("raise")
    before = {w.process.pid for w in pool._all}
    assert pool.call("a") == "a"
    assert {w.process.pid for w in pool._all} == before
    with pytest.raises(Died, match="status 3"):
        pool.call("die")
    with pytest.raises(Died, match="MemoryError"):
        pool.call("eat")
    assert pool.call("b") == "b"


def test_a_worker_that_cannot_start_says_why(pool: WorkerPool) -> None:
    wrong = WorkerPool("slow_worker:nothing", size=1)
    with pytest.raises(RuntimeError, match=r"slow_worker:nothing does not start: AttributeError"):
        wrong.call("x")
    wrong.close()
    with pytest.raises(RuntimeError, match="closed"):
        wrong.call("x")


def test_workers_do_not_outlive_a_parent_that_is_killed() -> None:
    program = (
        "from potstill.verify.workers import WorkerPool; p = WorkerPool('slow_worker:obey', deadline_seconds=60.0);"
        "p.call('a'); print([w.process.pid for w in p._all][0], flush=True); p.call('hang')"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": WITH_OURS},
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 120.0
    while Path(f"/proc/{worker}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def test_an_expression_that_never_ends_cannot_be_judged_and_the_next_one_is() -> None:
    with open_verifier(Math(deadline_seconds=1.0)) as verifier:
        warm = Record(prompt="?", metadata={"reference": r"\sqrt{8}"})
        assert verifier.verify(warm, r"$2\sqrt{2}$").outcome == "accept"
        hanging = Record(prompt="?", metadata={"reference": "1"})
        verdict = verifier.verify(hanging, "$(x+y+z+w)^{200}$")
        assert verdict.outcome == "cannot_judge" and "not judged within" in verdict.reason
        assert verifier.verify(warm, r"$2\sqrt{2}$").outcome == "accept"

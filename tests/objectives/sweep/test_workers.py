"""Tiles on several threads: the same numbers, errors come through, and nobody's thread settings change."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objectives.worlds import make_world

from potstill.objectives import fused_sweep
from potstill.objectives.response import ForwardKLRule, HardCERule
from potstill.objectives.sweep import engine
from potstill.objectives.sweep.workers import MOST_WORKERS, TileWorkers, divide_threads


@pytest.fixture
def four_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(threads)


@given(st.integers(1, 256), st.integers(1, 1000))
def test_all_threads_are_at_work_and_no_worker_is_without_a_tile(threads: int, tiles: int) -> None:
    workers, each = divide_threads(threads, tiles)
    assert 1 <= workers <= min(threads, tiles, MOST_WORKERS)
    assert workers * each <= threads < workers * (each + 1)


@given(st.integers(1, 256), st.integers(4, 2**22))
def test_a_workers_tile_fits_its_cache(chunk: int, bytes_per_row: int) -> None:
    tile, workers, each = engine._tiling(chunk, bytes_per_row, torch.device("cpu"))
    assert 1 <= tile <= chunk
    assert tile <= each or tile * bytes_per_row <= engine.TILE_BYTES * each
    assert workers * each <= torch.get_num_threads()
    on_gpu, workers, each = engine._tiling(chunk, bytes_per_row, torch.device("cuda"))
    assert (workers, each) == (1, 1)
    assert on_gpu == chunk or on_gpu * bytes_per_row <= engine.ACCELERATOR_TILE_BYTES


@pytest.mark.usefixtures("four_threads")
def test_threads_change_no_bit_of_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "TILE_BYTES", 1)
    world = make_world(40, 301, 16, softcap=4.0)

    def sweep() -> tuple[torch.Tensor, torch.Tensor]:
        rules = [(ForwardKLRule(2.0), 0.1), (HardCERule(), 0.2)]
        swept = fused_sweep(world.student, world.teacher, world.target_ids, rules)
        return swept.values, torch.autograd.grad(swept.loss, world.student.hidden)[0]

    on_four = sweep()
    monkeypatch.setattr(engine, "divide_threads", lambda threads, tiles: (1, 1))
    for got, expected in zip(on_four, sweep(), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.usefixtures("four_threads")
def test_each_worker_is_a_thread_with_its_own_share_and_no_other_thread_notices() -> None:
    seen: dict[int, tuple[int, int, bool]] = {}
    with TileWorkers(2, 2) as pool:
        pool.run(
            lambda worker: seen.update(
                {worker: (threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled())}
            )
        )
        afterwards: list[int] = []
        newcomer = threading.Thread(target=lambda: afterwards.append(torch.get_num_threads()))
        newcomer.start()
        newcomer.join()
    assert sorted(seen) == [0, 1]
    assert {threads for _, threads, _ in seen.values()} == {2}
    assert not any(grad for _, _, grad in seen.values())
    assert threading.get_ident() not in {ident for ident, _, _ in seen.values()}
    assert torch.get_num_threads() == 4 and afterwards == [4]


def test_one_worker_is_the_calling_thread() -> None:
    seen: list[int] = []
    with TileWorkers(1, 1) as pool:
        pool.run(lambda worker: seen.append(threading.get_ident()))
    assert seen == [threading.get_ident()]


def test_an_error_in_a_rule_comes_through() -> None:
    def fail(worker: int) -> None:
        if worker == 1:
            raise ValueError("this tile cannot be")

    with pytest.raises(ValueError, match="this tile cannot be"), TileWorkers(2, 1) as pool:
        pool.run(fail)


@pytest.mark.usefixtures("four_threads")
def test_workers_serve_in_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "TILE_BYTES", 1)
    world = make_world()
    expected = fused_sweep(world.student, world.teacher, world.target_ids, [(ForwardKLRule(), 1.0)]).values
    with torch.inference_mode():
        got = fused_sweep(world.student, world.teacher, world.target_ids, [(ForwardKLRule(), 1.0)]).values
    assert torch.equal(got.clone(), expected)

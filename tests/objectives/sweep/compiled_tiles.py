"""Run by `test_tile.py` in a process of its own: the checks of shapes under pytest cannot be traced. Prints JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from objectives.worlds import RESPONSE, make_world

from potstill.objectives import fused_sweep
from potstill.objectives.response import ForwardKLRule, HardCERule
from potstill.objectives.sweep import engine, tile
from potstill.registry import build

KL_AND_CE = [(ForwardKLRule(2.0), 0.1), (HardCERule(), 0.2)]


def swept(rules: list[tuple[Any, float]], *, compiled: bool, **world: Any) -> list[torch.Tensor]:
    tile.COMPILED_DEVICES = ("cpu",) if compiled else ()
    made = make_world(23, 37, 8, **world)
    found = fused_sweep(made.student, made.teacher, made.target_ids, rules)
    masses = [mass for mass in (found.student_cut_mass, found.teacher_cut_mass) if mass is not None]
    return [found.values, *masses, *torch.autograd.grad(found.loss, made.leaves())]


def farthest(rules: list[tuple[Any, float]], **world: Any) -> float:
    """The largest relative L2 difference between compiled and plain, over values, cut masses and gradients."""
    pairs = zip(swept(rules, compiled=True, **world), swept(rules, compiled=False, **world), strict=True)
    return max(float((got - plain).norm() / plain.norm()) for got, plain in pairs)


def use(**options: Any) -> None:
    torch._dynamo.reset()
    tile._Compiler._variants.clear()
    tile._Compiler.broken, tile._Compiler._function = False, torch.compile(tile.run_fresh, **options)


def traced() -> dict[str, float]:
    """Every rule and every form of head, as one graph."""
    found = {}
    for settings in RESPONSE:
        use(backend="eager", fullgraph=True)
        found[str(settings)] = farthest([(build(settings).row_rule(), 0.1)])
    use(backend="eager", fullgraph=True)
    found["soft-cap, bias, cut rows"] = farthest(KL_AND_CE, softcap=3.0, bias=True, teacher_vocab=30)
    return {**found, "broken": float(tile._Compiler.broken)}


def graphs() -> list[int]:
    """How many graphs twenty batches of as many sizes make, at one temperature and each at another."""
    return [_graphs(lambda rows: 2.0), _graphs(lambda rows: 1.0 + rows / 10)]


def _graphs(temperature: Callable[[int], float]) -> int:
    made: list[int] = []

    def count(graph: Any, inputs: Any) -> Any:
        made.append(1)
        return graph.forward

    use(backend=count, fullgraph=True)
    for rows in range(2, 22):
        world = make_world(rows, 37, 8)
        fused_sweep(world.student, world.teacher, world.target_ids, [(ForwardKLRule(temperature(rows)), 0.1)])
    return len(made)


def inductor() -> float:
    """As `farthest`, of what the real compiler makes."""
    use(fullgraph=True)
    return farthest(KL_AND_CE)


if __name__ == "__main__":
    tile.COMPILED_DEVICES, tile.LEAST_COMPILED_VOCAB = ("cpu",), 1
    engine.divide_threads = lambda threads, tiles: (1, 1)
    engine.TILE_BYTES, engine.MOST_CHUNK_ROWS = 37 * 4 * 4, 10
    print(json.dumps({"traced": traced, "graphs": graphs, "inductor": inductor}[sys.argv[1]]()))

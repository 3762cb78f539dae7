"""Compiled tiles give what tiles run operation by operation give, and where they cannot be compiled, that is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from objectives.worlds import make_world

from potstill.objectives import fused_sweep
from potstill.objectives.response import ForwardKLRule
from potstill.objectives.sweep import tile


def run(what: str) -> Any:
    script = Path(__file__).with_name("compiled_tiles.py")
    done = subprocess.run([sys.executable, script, what], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_rule_is_traced_as_one_graph_with_the_same_numbers() -> None:
    found = run("traced")
    assert found.pop("broken") == 0
    assert len(found) > 16
    assert max(found.values()) < 1e-6, found


def test_batches_of_all_sizes_share_a_graph_and_changing_temperatures_make_only_a_few() -> None:
    steady, changing = run("graphs")
    assert steady == 1
    assert changing == tile.MOST_VARIANTS


@pytest.mark.slow
@pytest.mark.needs("a C++ compiler")
def test_what_the_compiler_makes_gives_the_same_numbers() -> None:
    assert run("inductor") < 2e-6


def test_where_it_cannot_be_compiled_the_same_numbers_come_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        import torch._dynamo

        raise torch._dynamo.exc.TorchDynamoException("no compiler on this machine")

    def swept() -> tuple[torch.Tensor, ...]:
        world = make_world(23, 37, 8)
        found = fused_sweep(world.student, world.teacher, world.target_ids, [(ForwardKLRule(), 0.1)])
        return found.values, *torch.autograd.grad(found.loss, world.leaves())

    expected = swept()
    monkeypatch.setattr(tile, "COMPILED_DEVICES", ("cpu",))
    monkeypatch.setattr(tile, "LEAST_COMPILED_VOCAB", 1)
    monkeypatch.setattr(tile._Compiler, "broken", False)
    monkeypatch.setattr(tile._Compiler, "_variants", set())
    monkeypatch.setattr(tile._Compiler, "_function", broken)
    with pytest.warns(UserWarning, match="cannot be compiled here.*no compiler on this machine") as said:
        got = swept()
    assert len(said) == 1
    assert all(torch.equal(mine, other) for mine, other in zip(got, expected, strict=True))

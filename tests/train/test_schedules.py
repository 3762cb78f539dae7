"""Weights and temperatures that change while training goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from train.small import Gradients, conversations, largest_difference, trainer, weights_of

FADE = {"kind": "hard_ce", "weight": {"start": 1.0, "end": 0.0, "shape": "step", "until": 0.5}}
COOLING = {"kind": "forward_kl", "temperature": {"start": 4.0, "end": 1.0}}


def test_a_weight_is_read_at_the_progress_of_its_step(tmp_path: Path) -> None:
    made = trainer(tmp_path, objectives=[FADE], rows=conversations(16))

    made.train()

    weights = [log["hard_ce/weight"] for log in made.state.log_history if "hard_ce/weight" in log]
    assert weights == [1.0, 1.0, 0.0, 0.0]


def test_a_weight_that_has_become_zero_moves_nothing(tmp_path: Path) -> None:
    gradients = Gradients()

    trainer(tmp_path, objectives=[FADE], rows=conversations(16), callbacks=[gradients]).train()

    first, last = gradients.steps[0], gradients.steps[-1]
    assert any(bool(g.any()) for g in first.values())
    assert not any(bool(g.any()) for g in last.values())


def test_a_temperature_is_logged_as_it_changes(tmp_path: Path) -> None:
    made = trainer(tmp_path, objectives=[COOLING], rows=conversations(16))

    made.train()

    seen = [log["forward_kl/temperature"] for log in made.state.log_history if "forward_kl/temperature" in log]
    assert seen == pytest.approx([4.0, 3.25, 2.5, 1.75])


def test_a_change_that_does_not_change_is_the_number(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "a", objectives=[{"kind": "forward_kl", "temperature": 2.0, "weight": 3.0}])
    same = {"kind": "forward_kl", "temperature": {"start": 2, "end": 2}, "weight": {"start": 3, "end": 3}}
    changing = trainer(tmp_path / "b", objectives=[same])

    plain.train()
    changing.train()

    assert largest_difference(weights_of(plain.student), weights_of(changing.student)) == 0

"""What a stage freezes, what its objectives do not reach, and what begins with fresh weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from train.small import conversations, largest_difference, trainer, weights_of
from transformers import TrainerCallback

from potstill.errors import DataError, RecipeError, UserError
from potstill.models.anatomy import learned_positions
from potstill.train.trainable import frozen, has_experts, initialise, matching
from tiny_models import tiny_model

BELOW = ({"kind": "hidden_mse", "layers": ((1, 1),), "over": "tokens"},)


def test_what_the_objectives_do_not_reach_is_frozen_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    learning: list[set[str]] = []

    class Learning(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            learning.append({name for name, p in model.student.named_parameters() if p.requires_grad})

    made = trainer(tmp_path, objectives=BELOW, rows=conversations(8), callbacks=[Learning()])
    before = weights_of(made.student)

    with caplog.at_level(logging.WARNING, logger="potstill"):
        made.train()

    after = weights_of(made.student)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("layers.0" in name or "embed_tokens" in name for name in moved)
    assert learning == [moved] * len(learning) and len(learning) == 2, "several processes would wait for the others"
    assert "get no gradient" in caplog.text
    assert all(p.requires_grad for p in made.student.parameters()), "for the next stage they learn again"


def test_where_the_response_is_matched_everything_learns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = trainer(tmp_path, rows=conversations(8))
    before = weights_of(made.student)

    with caplog.at_level(logging.WARNING, logger="potstill"):
        made.train()

    after = weights_of(made.student)
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert "get no gradient" not in caplog.text


@pytest.mark.parametrize(
    ("name", "there"),
    [("experts", True), ("layers.experts", True), ("layers.experts_gate", False), ("expert", False)],
)
def test_experts_with_weights_of_their_own_are_known_by_their_names(name: str, there: bool) -> None:
    model: nn.Module = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    for part in reversed(name.split(".")):
        model = nn.ModuleDict({part: model})
    assert has_experts(model) == there


def test_objectives_that_reach_frozen_parameters_alone_are_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path, objectives=BELOW, rows=conversations(8))
    names = matching(made.student, ["*layers.0.*", "*embed_tokens*"], "freeze")
    with frozen(made.student, names), pytest.raises(UserError, match="nothing learns"):
        made.train()


@pytest.mark.parametrize(("family", "positions"), [("gpt2", 64), ("llama", None)])
def test_rows_longer_than_the_positions_of_the_student_are_refused(
    tmp_path: Path, family: Any, positions: int | None
) -> None:
    student = tiny_model(family, max_position_embeddings=64)
    assert learned_positions(student) == positions
    long = [{"prompt": "Say it.", "completion": "copper " * 80}]
    made = trainer(tmp_path, objectives=({"kind": "hard_ce"},), rows=long, student=student)
    if positions is None:
        made.train()
    else:
        with pytest.raises(DataError, match="the student has 64 positions"):
            made.train()


def test_experts_by_a_name_and_a_number_are_known_too() -> None:
    assert has_experts(nn.ModuleDict({"experts": nn.ModuleDict({"expert_0": nn.Linear(2, 2)})}))


def test_looking_for_what_is_reached_changes_nothing(tmp_path: Path) -> None:
    once = trainer(tmp_path / "a", objectives=BELOW, rows=conversations(8))
    again = trainer(tmp_path / "b", objectives=BELOW, rows=conversations(8))
    again._warn_of_unreached(again._first_rows())

    once.train()
    again.train()

    assert largest_difference(weights_of(once.module), weights_of(again.module)) == 0


def test_frozen_parameters_are_as_they_were_found_afterwards() -> None:
    model = tiny_model()
    model.get_input_embeddings().weight.requires_grad_(False)
    names = matching(model, ["*embed_tokens*", "*layers.0.*"], "here")

    with pytest.raises(KeyboardInterrupt), frozen(model, names):
        assert not any(p.requires_grad for n, p in model.named_parameters() if n in names)
        raise KeyboardInterrupt

    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["model.embed_tokens.weight"]


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"matches no parameter; did you mean 'model\.embed_tokens\.weight'"):
        matching(tiny_model(), ["model.embed_token.weight"], "train.stages.0.freeze")


def test_fresh_weights_are_drawn_as_the_family_draws_them_and_only_where_asked() -> None:
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)
    state = torch.random.get_rng_state()
    names = matching(model, ["*layers.1.mlp*", "model.norm.weight"], "here")

    initialise(model, names, seed=1)

    for name, parameter in model.named_parameters():
        if name not in names:
            assert (parameter == 3.0).all(), name
        elif name == "model.norm.weight":
            assert (parameter == 1.0).all()
        else:
            assert abs(parameter.std() / model.config.initializer_range - 1) < 0.1
    assert torch.equal(state, torch.random.get_rng_state())


def test_one_parameter_of_a_module_can_begin_anew_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    weight = model[0].weight.detach().clone()

    initialise(model, ["0.bias"], seed=1)

    assert torch.equal(model[0].weight, weight)


def test_a_module_that_does_not_say_how_it_begins_is_refused() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

    with pytest.raises(RecipeError, match="reset_parameters"):
        initialise(nn.Sequential(Bare()), ["0.scale"], seed=0)

"""A student that learns through the rounding of its weights is saved rounded, beside one that is rounded afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.recipes import ARGS, write_recipe
from train.small import conversations, trainer

from potstill.console import Console
from potstill.errors import RecipeError
from potstill.models.rounding import round_to, round_weights
from potstill.pipeline import run_recipe
from potstill.recipe import Recipe, load_recipe, parse_recipe
from potstill.recipe.train import Training
from potstill.train.stage import trained_by
from tiny_models import tiny_model

QUIET = Console("quiet")


def recipe(folder: Path, teacher: Path, **train: Any) -> Recipe:
    settings = {"quantize": {"weights": "int4"}, "objectives": [{"kind": "forward_kl"}], "args": ARGS, **train}
    evaluate = {"speed": False, "samples_shown": 0, "controls": [], "resamples": 100}
    return load_recipe(write_recipe(folder, teacher, train=settings, evaluate=evaluate))


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(run / stage / "model" / "model.safetensors")


def on_grid(found: dict[str, torch.Tensor]) -> bool:
    matrices = {name: w for name, w in found.items() if w.dim() == 2}
    return all(
        torch.equal(round_to(w, "int8" if "embed" in name else "int4"), w) for name, w in matrices.items()
    ) and bool(matrices)


def test_student_and_control_are_saved_rounded_and_stand_side_by_side(tmp_path: Path, tiny_llama: Path) -> None:
    made, run = recipe(tmp_path, tiny_llama, controls=["rounded_afterwards"]), tmp_path / "run"
    run_recipe(made, run, console=QUIET)
    student, control = weights(run, "train"), weights(run, "train.rounded_afterwards")
    assert on_grid(student) and on_grid(control)
    assert not all(torch.equal(student[name], control[name]) for name in student)
    facts = json.loads((run / "train" / "student.json").read_text())["quantized"]
    assert (facts["weights"], facts["learned"]) == ("int4", True) and 4.5 < facts["bits"] < 9
    measures = json.loads((run / "evaluate" / "measures.json").read_text())
    pairs = {(c["model"], c["against"]) for c in measures["comparisons"]}
    assert ("student", "rounded_afterwards") in pairs
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert "rounded afterwards" in page and "rounded to int4" in page


def test_the_control_is_the_student_without_rounding_rounded_at_the_end(tmp_path: Path, tiny_llama: Path) -> None:
    plain = recipe(tmp_path / "plain", tiny_llama, quantize=None)
    run_recipe(plain, tmp_path / "a", console=QUIET, verb="train")
    control = trained_by(recipe(tmp_path / "int4", tiny_llama), Training("rounded_afterwards"))
    run_recipe(control, tmp_path / "b", console=QUIET, verb="train")
    before, after = weights(tmp_path / "a", "train"), weights(tmp_path / "b", "train")
    for name, weight in before.items():
        grid = "int8" if "embed" in name else "int4"
        expected = round_to(weight, grid) if weight.dim() == 2 else weight  # type: ignore[arg-type]
        assert torch.equal(after[name], expected)


def test_the_optimiser_moves_the_students_own_weights(tmp_path: Path) -> None:
    """One step of SGD: own weights − rate × the gradient at the rounded weights."""
    student = tiny_model(layers=2, seed=1)
    own = {name: weight.clone() for name, weight in student.state_dict().items()}
    made = trainer(tmp_path, student=student, trainer_settings={"rounded_to": "int4"}, max_steps=1, learning_rate=1e-4)
    made.train()
    name = "model.layers.0.mlp.up_proj.weight"
    moved = student.state_dict()[name] - own[name]
    assert moved.abs().max() > 0
    step = (round_to(own[name], "int4") - own[name]).abs().max()
    assert moved.abs().max() < step / 10  # from its own weight, not from the rounded one
    assert not torch.equal(student.state_dict()[name], round_to(student.state_dict()[name], "int4"))


def test_held_out_records_are_measured_through_the_rounding(tmp_path: Path) -> None:
    through, before = (tiny_model(layers=2, seed=1) for _ in range(2))
    round_weights(before, "int4")
    plain, learned, rounded_before = (
        trainer(tmp_path, student=student, trainer_settings={"rounded_to": bits}).evaluate(conversations(6))["eval_kl"]
        for student, bits in ((tiny_model(layers=2, seed=1), None), (through, "int4"), (before, None))
    )
    assert learned == rounded_before != plain


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train": {"controls": ["rounded_afterwards"]}}, "add `quantize"),
        ({"train": {"quantize": {"weights": "int4"}}, "student": {"kind": "from_teacher", "lora": {}}}, "student.lora"),
        ({"train": {"quantize": {"weights": "int2"}}}, "int8"),
    ],
)
def test_what_cannot_be_rounded_is_refused(changes: dict[str, Any], expected: str) -> None:
    document = {
        "name": "r",
        "teacher": {"kind": "local", "model": "t"},
        "student": {"kind": "from_teacher"},
        "data": {"kind": "jsonl", "path": "d.jsonl"},
        **changes,
    }
    with pytest.raises(RecipeError, match=expected):
        parse_recipe(document, base=Path())

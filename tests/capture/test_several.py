"""Several teachers, each with a store of its own; a student learns from the mean of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from train.recipes import write_recipe

from potstill.console import Console
from potstill.errors import RecipeError
from potstill.pipeline import run_recipe
from potstill.recipe import load_recipe
from potstill.signals import Sparse
from potstill.teachers.local import LocalModel
from potstill.teachers.stored_several import mean_of
from tiny_models import make_tiny_causal_lm


def recipe(folder: Path, teachers: list[Path], capture: dict[str, Any] | None, **teacher: Any) -> Path:
    """Two teachers; a student that is neither."""
    path = write_recipe(folder, teachers[0])
    document = yaml.safe_load(path.read_text())
    models = [{"kind": "local", "model": str(model), "device": "cpu"} for model in teachers]
    del document["teacher"]
    document["teachers"] = teacher or {"main": models[0], "other": models[1]}
    document["student"] = {"kind": "existing", "model": str(make_tiny_causal_lm(folder / "student", seed=5))}
    if capture is not None:
        document["capture"] = {**capture, "also": ["other"]}
    path.write_text(yaml.safe_dump(document))
    return path


def run(path: Path, to: Path, verb: str | None = None) -> list[dict[str, Any]]:
    run_recipe(load_recipe(path), to, console=Console("quiet"), verb=verb)
    history = to / "train" / "history.jsonl"
    return [json.loads(line) for line in history.read_text().splitlines()] if history.is_file() else []


@pytest.mark.parametrize(
    ("capture", "within"), [({"kind": "hidden", "dtype": "float32"}, 1e-4), ({"kind": "threshold", "tau": 1e-4}, 0.02)]
)
def test_two_stores_train_as_the_ensemble_of_their_teachers(
    capture: dict[str, Any], within: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = [make_tiny_causal_lm(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    members = [{"kind": "local", "model": str(model), "device": "cpu"} for model in teachers]
    together = {"kind": "ensemble", "average": "probabilities", "members": members}
    online = run(recipe(tmp_path, teachers, None, main=together), tmp_path / "online")
    path = recipe(tmp_path, teachers, capture)
    run(path, tmp_path / "stored", "capture")
    assert sorted(p.name for p in (tmp_path / "stored").iterdir() if p.is_dir()) == ["capture", "capture.1"]
    monkeypatch.setattr(LocalModel, "model", property(lambda self: pytest.fail("a teacher was loaded")))
    stored = run(path, tmp_path / "stored", "train")
    nlls = [
        (ours["eval_nll"], theirs["eval_nll"])
        for ours, theirs in zip(stored, online, strict=True)
        if "eval_nll" in theirs
    ]
    assert nlls and all(ours == pytest.approx(theirs, abs=within) for ours, theirs in nlls)
    if capture["kind"] == "hidden":
        values = [
            (a["forward_kl/value"], b["forward_kl/value"])
            for a, b in zip(stored, online, strict=True)
            if "forward_kl/value" in b
        ]
        assert values and all(ours == pytest.approx(theirs, abs=within) for ours, theirs in values)


def test_the_mean_of_entries_has_each_token_once_with_its_share() -> None:
    one = Sparse(
        torch.tensor([0, 2, 3]),
        torch.tensor([4, 7, 1]),
        torch.tensor([0.6, 0.2, 1.0]),
        torch.tensor([1.0, 0.0]),
        "unbiased",
    )
    other = Sparse(
        torch.tensor([0, 1, 1]), torch.tensor([7]), torch.tensor([0.8]), torch.tensor([3.0, 2.0]), "unbiased"
    )
    mean = mean_of([one, other])
    assert mean.offsets.tolist() == [0, 2, 3] and mean.ids.tolist() == [4, 7, 1]
    assert mean.weights.tolist() == pytest.approx([0.3, 0.5, 0.5]) and mean.entropy.tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        ({"kind": "topk"}, "and not of topk"),
        ({"kind": "threshold", "features": ["hidden.1"]}, "or features"),
        ({"kind": "threshold", "teacher": "other"}, "named twice"),
    ],
)
def test_what_has_no_mean_is_refused(capture: dict[str, Any], message: str, tmp_path: Path) -> None:
    teachers = [make_tiny_causal_lm(tmp_path / "teacher")] * 2
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe(tmp_path, teachers, capture))

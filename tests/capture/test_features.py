"""Layers, relations, embeddings and logits of classes from a store: the same training as with the teacher there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from train.recipes import write_recipe

from potstill.console import Console
from potstill.errors import DataError, RecipeError
from potstill.pipeline import run_recipe
from potstill.recipe import load_recipe, parse_recipe
from potstill.store.files import SignalStore
from potstill.teachers.local import LocalModel
from tiny_models import make_tiny_causal_lm, make_tiny_classifier, make_tiny_convnet, make_tiny_encoder

WORDS = "copper still spirit cask barley malt peat water yeast wash".split()
LABELS = ("ale", "rye")
ARGS = {"learning_rate": 1e-3, "max_steps": 4, "per_device_train_batch_size": 8, "bf16": False, "use_cpu": True}
SMALLER = {"kind": "from_config", "config": {"num_hidden_layers": 1, "hidden_size": 24}}
TEXTS = "sequence_classification"

TINYBERT = [
    {"kind": "hidden_mse", "layers": "uniform", "over": "tokens", "project": "always"},
    {"kind": "attention_scores", "layers": "uniform"},
    {"kind": "soft_ce"},
]
MINILM = [{"kind": "minilm_v2", "relation_heads": 4}, {"kind": "hard_ce"}]
RKD = [{"kind": "rkd_distance"}, {"kind": "rkd_angle", "weight": 2.0}]

DENSE, KEPT = {"kind": "dense", "features": "asked"}, {"kind": "features"}

Comparison = tuple[str, Callable[..., Path], list[dict[str, Any]], dict[str, Any]]
COMPARISONS: Mapping[str, Comparison] = {
    "tinybert": (TEXTS, make_tiny_classifier, TINYBERT, DENSE),
    "minilm_v2": (TEXTS, make_tiny_classifier, MINILM, KEPT),
    "classes": (TEXTS, make_tiny_classifier, [{"kind": "jsd", "temperature": 2.0}], {"kind": "dense"}),
    "rkd": ("sentence_embedding", make_tiny_encoder, RKD, KEPT),
}


def texts(folder: Path, count: int = 48) -> dict[str, Any]:
    """Texts of two classes, of several lengths."""
    rows = [
        {
            "text": f"{LABELS[i % 2]} of " + " and ".join(WORDS[(i + k) % 10] for k in range(1 + i % 5)),
            "label": LABELS[i % 2],
        }
        for i in range(count)
    ]
    (folder / "texts.jsonl").write_text(
        "\n".join(json.dumps({**row, "text": f"{row['text']} {i}"}) for i, row in enumerate(rows))
    )
    return {"kind": "jsonl", "path": str(folder / "texts.jsonl"), "held_out": 0.3}


def recipe_file(folder: Path, document: dict[str, Any], name: str = "recipe.yaml") -> Path:
    (folder / name).write_text(yaml.safe_dump({"name": "tiny", "seed": 5, **document}), encoding="utf-8")
    return folder / name


def run(path: Path, folder: Path, *overrides: str, verb: str | None = None) -> None:
    run_recipe(load_recipe(path, overrides), folder, console=Console("quiet"), verb=verb)


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train" / "history.jsonl").read_text().splitlines()]


def differences(one: Path, other: Path) -> list[float]:
    """Of every value of an objective, and of held-out figures that both have, the relative difference."""
    found = []
    for ours, theirs in zip(history(one), history(other), strict=True):
        names = [n for n in theirs if n.endswith("/value") or n.startswith(("eval_kl", "eval_top1", "eval_objectives"))]
        found += [abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-6) for name in names if name in ours]
    return found


def no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalModel, "model", property(lambda self: pytest.fail("the teacher was loaded")))


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize(("dtype", "within"), [("float32", 2e-4), ("bfloat16", 3e-2)])
def test_a_comparison_runs_from_a_store_with_equal_results(
    name: str, dtype: str, within: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, make, objectives, capture = COMPARISONS[name]
    shape = {"labels": LABELS} if task == TEXTS else {}
    document = {
        "task": task,
        "teacher": {"kind": "local", "model": str(make(tmp_path / "teacher", **shape)), "device": "cpu"},
        "student": SMALLER,
        "data": texts(tmp_path),
        "train": {"objectives": objectives, "evaluations": 1, "args": ARGS, "max_length": 32},
    }
    run(recipe_file(tmp_path, document), tmp_path / "online")
    path = recipe_file(tmp_path, {**document, "capture": {**capture, "feature_dtype": dtype}})
    run(path, tmp_path / "stored", verb="capture")
    no_teacher(monkeypatch)
    run(path, tmp_path / "stored", verb="train")
    found = differences(tmp_path / "stored", tmp_path / "online")
    assert len(found) >= 4 and max(found) < within


def test_logits_and_maps_of_images_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=made, labels=np.arange(40) % 3)
    teacher = make_tiny_convnet(tmp_path / "teacher", labels=("0", "1", "2"), channels=1)
    stage = "convnext.encoder.stages.0"
    document = {
        "task": "image_classification",
        "teacher": {"kind": "local", "model": str(teacher), "device": "cpu"},
        "student": {
            "kind": "existing",
            "model": str(make_tiny_convnet(tmp_path / "student", labels=("0", "1", "2"), channels=1, seed=3)),
        },
        "data": {"kind": "arrays", "path": str(tmp_path / "images.npz"), "held_out": 0.3},
        "train": {
            "objectives": [
                {"kind": "forward_kl", "temperature": 4.0},
                {"kind": "attention_transfer", "modules": [{"student": stage, "teacher": stage}]},
            ],
            "evaluations": 1,
            "args": ARGS,
        },
    }
    run(recipe_file(tmp_path, document), tmp_path / "online")
    path = recipe_file(tmp_path, {**document, "capture": {**DENSE, "feature_dtype": "float32"}})
    run(path, tmp_path / "stored", verb="capture")
    no_teacher(monkeypatch)
    run(path, tmp_path / "stored", verb="train")
    assert max(differences(tmp_path / "stored", tmp_path / "online")) < 2e-4


@pytest.mark.parametrize("packing", [False, True])
def test_layers_of_a_language_model_are_kept_beside_its_distributions(
    packing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are packed, or cut shorter than they were captured."""
    train = {
        "objectives": [
            {"kind": "forward_kl"},
            {"kind": "hidden_mse", "layers": "every_other"},
            {"kind": "attention_kl"},
        ],
        "packing": packing,
        "max_length": 60,
    }
    teacher = make_tiny_causal_lm(tmp_path / "teacher")
    run(write_recipe(tmp_path, teacher, train=train), tmp_path / "online")
    capture = {"kind": "hidden", "dtype": "float32", "features": "asked", "feature_dtype": "float32", "max_length": 200}
    path = write_recipe(tmp_path, teacher, train=train, capture=capture)
    run(path, tmp_path / "stored", verb="capture")
    no_teacher(monkeypatch)
    run(path, tmp_path / "stored", verb="train")
    assert max(differences(tmp_path / "stored", tmp_path / "online")) < 1e-3
    names = [part.name for part in SignalStore(tmp_path / "stored" / "capture" / "store").grid.tensors]
    assert {"response.hidden", "hidden.0"} <= set(names) and any(name.startswith("queries.") for name in names)


def test_embeddings_take_one_row_an_example_and_not_one_a_token(tmp_path: Path) -> None:
    document = {
        "task": "sentence_embedding",
        "teacher": {"kind": "local", "model": str(make_tiny_encoder(tmp_path / "teacher")), "device": "cpu"},
        "student": SMALLER,
        "data": texts(tmp_path),
        "train": {"objectives": RKD, "args": ARGS, "max_length": 32},
        "capture": KEPT,
    }
    run(recipe_file(tmp_path, document), tmp_path / "run", verb="capture")
    store = SignalStore(tmp_path / "run" / "capture" / "store")
    (part,) = store.grid.tensors
    assert part.rows == "example" and part.name.startswith("pooled.") and part.name.endswith(".mean")
    with pytest.raises(DataError, match="other tokens"):
        run(recipe_file(tmp_path, document), tmp_path / "run", "train.max_length=4", "capture.max_length=32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capture": {"kind": "threshold", "features": "asked"}}, "set capture.kind: dense"),
        ({"task": "masked_lm", "capture": DENSE}, "masks texts anew"),
        ({"task": "sentence_embedding", "capture": DENSE}, "set capture.kind: features"),
        ({"capture": {"kind": "features", "features": ["layer.3"]}}, "names no inner tensor"),
        ({"capture": {"kind": "features", "features": []}}, "keeps nothing"),
        ({"capture": {"kind": "dense"}}, "set capture.features: asked"),
        ({"capture": {"kind": "dense", "features": "asked", "temperature": 2.0}}, "leave capture.temperature out"),
        ({"capture": KEPT, "train": {"objectives": [{"kind": "forward_kl"}]}}, "set capture.kind to one that keeps"),
    ],
)
def test_a_store_that_the_task_or_an_objective_cannot_use_is_refused(changes: dict[str, Any], message: str) -> None:
    document = {
        "name": "tiny",
        "task": TEXTS,
        "teacher": {"kind": "local", "model": "somewhere"},
        "student": SMALLER,
        "data": {"kind": "jsonl", "path": "texts.jsonl"},
        "train": {"objectives": [{"kind": "hidden_mse", "over": "tokens"}]},
        **changes,
    }
    with pytest.raises(RecipeError, match=message):
        parse_recipe(document, base=Path())

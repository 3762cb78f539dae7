"""A check says what a recipe will do, and refuses what cannot work."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from potstill.check import check_recipe
from potstill.errors import DataError
from potstill.init import write_starter
from potstill.recipe import Recipe, load_recipe
from tiny_models import make_tiny_encoder


@pytest.fixture
def starter(tmp_path: Path) -> Path:
    return write_starter(tmp_path)[0]


def recipe_with(path: Path, *overrides: str) -> Recipe:
    return load_recipe(path, overrides)


def test_the_starter_passes_as_it_is_written(starter: Path) -> None:
    findings = check_recipe(recipe_with(starter))
    assert findings.figures["records"] == 12
    assert findings.figures["held_out"] >= 2
    assert findings.figures["tokens_at_most"] == 12 * 192


def test_a_token_budget_bounds_the_estimate(starter: Path) -> None:
    assert check_recipe(recipe_with(starter, "generate.token_budget=500")).figures["tokens_at_most"] == 500


def test_too_few_held_out_groups_are_refused_before_training(starter: Path) -> None:
    with pytest.raises(DataError, match="fewer than two groups"):
        check_recipe(recipe_with(starter, "data.limit=3")).refuse()


def test_prompts_that_nothing_answers_are_refused(starter: Path) -> None:
    with pytest.raises(DataError, match="nothing answers them"):
        check_recipe(recipe_with(starter, "generate=null")).refuse()


def test_data_of_the_hub_are_not_fetched(starter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    findings = check_recipe(recipe_with(starter, "data={kind: hub, id: some/where}"))
    assert findings.lines["data"] == ("some/where: will be fetched, and is not looked at before",)


def test_columns_that_are_not_used_are_named(starter: Path) -> None:
    rows = [{"prompt": f"Say the number {n}.", "colour": "red"} for n in range(40)]
    starter.with_name("prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert "columns that are not used: colour" in check_recipe(recipe_with(starter)).lines["data"]


# ---- training ------------------------------------------------------------------------------------------------


def test_what_is_defined_on_the_micro_batch_is_said(starter: Path) -> None:
    objectives = "train.objectives=[{kind: forward_kl}, {kind: rkd_distance, weight: 2}]"
    lines = check_recipe(recipe_with(starter, objectives, "train.args.per_device_train_batch_size=3")).lines["train"]
    assert lines[0] == "loss = 1·forward_kl + 2·rkd_distance"
    (about,) = [line for line in lines if "micro-batch" in line]
    assert about.startswith("rkd_distance is defined on the micro-batch: it compares the 3 records of each")


def test_what_changes_while_training_goes_on_is_said(starter: Path) -> None:
    changing = (
        "{kind: forward_kl, weight: {start: 1, end: 0, until: 0.5}, temperature: {start: 4, end: 1, shape: cosine}}"
    )
    jump = "{kind: hard_ce, weight: {start: 0, end: 1, shape: step, until: 0.5}}"
    lines = check_recipe(recipe_with(starter, f"train.objectives=[{changing}, {jump}]")).lines["train"]
    assert lines[:4] == (
        "loss = 1→0·forward_kl + 0→1·hard_ce",
        "forward_kl: weight 1→0, linear, from 0% to 50% of the training",
        "forward_kl: temperature 4→1, cosine, from 0% to 100% of the training",
        "hard_ce: weight 0→1, step, at 50% of the training",
    )


def test_every_stage_is_said_with_its_loss_and_its_steps(starter: Path) -> None:
    layers = "{name: layers, objectives: [{kind: hidden_mse}], freeze: ['lm_head.*'], args: {max_steps: 7}}"
    prediction = "{name: prediction, objectives: [{kind: soft_ce, weight: 3}, {kind: rkd_angle}], initialise: ['x.*']}"
    path = recipe_without_objectives(starter)
    lines = check_recipe(recipe_with(path, f"train.stages=[{layers}, {prediction}]")).lines["train"]
    assert lines[:4] == (
        "stage layers: loss = 1·hidden_mse",
        "  does not learn: lm_head.*",
        "stage prediction: loss = 3·soft_ce + 1·rkd_angle",
        "  begins anew: x.*",
    )
    assert lines[4].startswith("  rkd_angle is defined on the micro-batch")
    assert lines[5] == "stage layers: about 7 steps of 4 records"
    assert lines[6].startswith("stage prediction: about ")


def recipe_without_objectives(starter: Path) -> Path:
    document = yaml.safe_load(starter.read_text())
    document["train"] = {"args": {"per_device_train_batch_size": 4}}
    starter.write_text(yaml.safe_dump(document))
    return starter


def test_steps_are_those_that_the_trainer_takes(starter: Path) -> None:
    args = "train.args={per_device_train_batch_size: 3, gradient_accumulation_steps: 2, num_train_epochs: 2.5}"
    findings = check_recipe(recipe_with(starter, args))
    training = findings.figures["train"]
    steps = math.ceil(math.ceil(training / 6) * 2.5)
    assert f"about {steps} steps of 6 records" in findings.lines["train"][1]


def test_steps_are_of_the_samples_that_are_kept(starter: Path) -> None:
    generate = "generate={kind: sequence, samples: 8, temperature: 1.0, verify: {kind: sentence_bleu}, keep: best}"
    one_epoch = "train.args={per_device_train_batch_size: 1, num_train_epochs: 1}"
    findings = check_recipe(recipe_with(starter, generate, one_epoch))
    assert f"about {findings.figures['train']} steps of 1 record" in findings.lines["train"][1]


# ---- other tasks ---------------------------------------------------------------------------------------------


def test_labelled_texts_are_counted_by_class_and_side(starter: Path) -> None:
    rows = [{"text": f"the still says {n}", "label": ("copper", "cask")[n % 2]} for n in range(40)]
    starter.with_name("labelled.jsonl").write_text("\n".join(map(json.dumps, rows)))
    document = {"name": "classes", "task": "sequence_classification", "data": "labelled.jsonl", "train": {}}
    document |= {"student": {"kind": "existing", "model": str(make_tiny_encoder(starter.parent / "encoder"))}}
    document["train"] = {"objectives": [{"kind": "hard_ce"}], "max_length": 6}
    starter.write_text(yaml.safe_dump(document))
    findings = check_recipe(load_recipe(starter))
    assert findings.lines["data"][1] == "2 classes: cask, copper"
    assert findings.figures["train"] + findings.figures["held_out"] == 40
    assert any("40 records cut at 6" in line for line in findings.lines["train"])


def test_images_are_counted_and_have_no_tokens(starter: Path) -> None:
    np.savez(
        starter.with_name("images.npz"),
        images=np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8),
        labels=np.arange(30) % 3,
    )
    document = {"name": "images", "task": "image_classification", "data": "images.npz"}
    document |= {"student": {"kind": "module", "source": "nets.py:Net"}, "train": {"objectives": [{"kind": "hard_ce"}]}}
    starter.write_text(yaml.safe_dump(document))
    findings = check_recipe(load_recipe(starter))
    assert findings.figures["records"] == 30
    assert findings.lines["data"][1] == "3 classes: 0, 1, 2"
    assert not [line for line in findings.lines["train"] if "tokens" in line]


def test_the_members_of_an_ensemble_are_named(starter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    members = "[{kind: local, model: smollm2-135m-instruct}, {kind: local, model: some/where}]"
    rows = [{"prompt": f"Say {n}", "completion": "copper"} for n in range(40)]
    starter.with_name("answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ensemble = f"teacher={{kind: ensemble, members: {members}}}"
    document = yaml.safe_load(starter.read_text())
    del document["generate"]
    starter.write_text(yaml.safe_dump(document))
    findings = check_recipe(
        recipe_with(
            starter, ensemble, "data={kind: jsonl, path: answers.jsonl}", "train.objectives=[{kind: forward_kl}]"
        )
    )
    assert findings.lines["teachers"][0] == "main: ensemble"
    assert any(
        line.startswith("main.1: some/where (will be fetched from the hub)") for line in findings.lines["teachers"]
    )

"""Every shipped recipe in a small size: overrides that put tiny models and few rows in the place of the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from potstill.console import Console
from potstill.pipeline import run_recipe
from potstill.recipe import Recipe, load_recipe
from tiny_models import make_tiny_causal_lm, make_tiny_classifier, make_tiny_encoder, make_tiny_masked_lm

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"conversations", "medusa", "self_instruct", "speculative_draft"}
"""Recipes that end with records (tests/generate runs them) or with a draft (tests/speculate)."""
RECIPES = {path.stem: path for path in sorted((ROOT / "recipes").glob("*.yaml")) if path.stem not in ELSEWHERE}
SHAPE: dict[str, Any] = {"layers": 6, "hidden": 48, "heads": 12}
"""As deep as the encoder that the recipes name, as many heads, and as wide as 24 relation heads divide."""

WORDS = "copper still spirit cask barley malt peat water yeast wash".split()
LABELS = ("ale", "rye")


def texts(folder: Path) -> list[str]:
    """Texts of two classes, which a word tells apart."""
    rows = [
        {"text": f"{LABELS[i % 2]} of {WORDS[i % 10]} and {WORDS[i // 10]}", "label": LABELS[i % 2]} for i in range(60)
    ]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [f"data={{kind: jsonl, path: {folder / 'texts.jsonl'}, held_out: 0.4}}", "evaluate.speed=false"]


def images(folder: Path) -> list[str]:
    made = np.random.default_rng(0).integers(0, 256, (80, 12, 12), dtype=np.uint8)
    np.savez(folder / "images.npz", images=made, labels=np.arange(80) % 10)
    return [f"data={{kind: arrays, path: {folder / 'images.npz'}, held_out: 0.4}}", "evaluate.speed=false"]


def digits(folder: Path) -> list[str]:
    return ["data.limit=150", "evaluate.speed=false"]


def prompts(folder: Path) -> list[str]:
    """A few of the demo's prompts, answered by a tiny teacher."""
    teacher = make_tiny_causal_lm(folder / "teacher")
    short = ["data.limit=24", "data.held_out=0.3", "generate.max_new_tokens=6", "train.max_length=256"]
    quick = ["evaluate={speed: false, samples_shown: 1, sample_tokens: 4}"]
    return [f"teacher={{kind: local, model: {teacher}}}", *short, *quick]


def refusing(folder: Path) -> list[str]:
    """As `prompts`, with a few harmless words in the place of a harm set that has to be fetched."""
    (folder / "harm.jsonl").write_text("".join(json.dumps({"prompt": f"Spill the {word}."}) + "\n" for word in WORDS))
    harm = {"kind": "jsonl", "path": str(folder / "harm.jsonl"), "format": "prompt", "licence": "own"}
    student = make_tiny_causal_lm(folder / "student")
    return [
        *prompts(folder),
        f"student.model={student}",
        f"train.refusals={json.dumps({'prompts': harm, 'share': 0.4})}",
    ]


def taxed(folder: Path) -> list[str]:
    return [*prompts(folder), "student={kind: from_teacher, layers: every_other}"]


def cut(folder: Path) -> list[str]:
    return [*prompts(folder), "student.parameters=26K"]


def taught_texts(folder: Path) -> list[str]:
    teacher = make_tiny_classifier(folder / "teacher", labels=LABELS, **SHAPE)
    return [f"teacher={{kind: local, model: {teacher}}}", *texts(folder)]


def encoder(folder: Path) -> list[str]:
    return [f"student.model={make_tiny_encoder(folder / 'encoder', **SHAPE)}", *texts(folder)]


def taught_masked(folder: Path) -> list[str]:
    return [f"teacher={{kind: local, model: {make_tiny_masked_lm(folder / 'teacher', **SHAPE)}}}", *texts(folder)]


def embeddings(folder: Path) -> list[str]:
    return [f"teacher.model={make_tiny_encoder(folder / 'teacher', **SHAPE)}", *texts(folder)]


def taught_images(folder: Path) -> list[str]:
    """By what the recipe of the teacher makes, at the same size."""
    teacher = folder / "made"
    run(load_recipe(RECIPES["hinton_fashion_mnist_teacher"], [*images(folder), *steps(2)]), teacher)
    return [f"teacher={{kind: local, model: 'run:{teacher}'}}", *images(folder)]


def taught_digits(folder: Path) -> list[str]:
    """By an ensemble of two of what the recipe of the teacher makes."""
    members = []
    for seed in (0, 1):
        changes = [*digits(folder), *steps(2), f"seed={seed}"]
        run(load_recipe(RECIPES["hinton_digits_teacher"], changes), folder / f"made-{seed}")
        members.append({"kind": "local", "model": f"run:{folder / f'made-{seed}'}"})
    return [f"teacher.members={json.dumps(members)}", *digits(folder)]


def sums(folder: Path) -> list[str]:
    """By what the recipe of the teacher makes, which knows the letters and no sums: every chain is kept."""
    teacher = folder / "made"
    run(load_recipe(RECIPES["reasoning_teacher"], [*few_sums(folder), *steps(2)]), teacher)
    few = ["data.size=40", "data.held_out=0.5", "generate.samples=4", "generate.max_new_tokens=8"]
    return [f"teacher={{kind: local, model: 'run:{teacher}'}}", *few, "generate.accept_all=true"]


def few_sums(folder: Path) -> list[str]:
    return ["data.size=60", "data.held_out=0.2", "student.config.num_hidden_layers=5"]


SMALL: dict[str, Callable[[Path], list[str]]] = {
    "alignment_tax": taxed,
    "demo": prompts,
    "distilbert_headlines": taught_texts,
    "distilbert_mlm": taught_masked,
    "distilbert_mlm_teacher": encoder,
    "distilbert_newsgroups": taught_texts,
    "distillm": prompts,
    "headlines_teacher": encoder,
    "hinton_digits": taught_digits,
    "hinton_digits_teacher": digits,
    "hinton_fashion_mnist": taught_images,
    "hinton_fashion_mnist_teacher": images,
    "int4": taxed,
    "minilm_v2": taught_texts,
    "offline": prompts,
    "pruned": cut,
    "newsgroups_teacher": encoder,
    "reasoning": sums,
    "reasoning_teacher": few_sums,
    "refusing_teacher": refusing,
    "rkd_embeddings": embeddings,
    "sequence_kd": prompts,
    "smollm2_half": prompts,
    "tinybert": taught_texts,
}


def steps(count: int, recipe: str = "") -> list[str]:
    """Overrides for a training of so many steps, or so many in each of its stages."""
    stages = load_recipe(RECIPES[recipe]).train.stages if recipe else ()  # type: ignore[union-attr]
    each = [f"train.stages.{i}.args={{max_steps: {count}, learning_rate: 1e-3}}" for i in range(len(stages))]
    return [*(each or [f"train.args.max_steps={count}"]), "train.args.use_cpu=true", "train.evaluations=1"]


def run(recipe: Recipe, folder: Path) -> None:
    run_recipe(recipe, folder, console=Console("quiet"))

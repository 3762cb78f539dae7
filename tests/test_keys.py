"""Whatever affects a result is in a stage's key: every field of every shipped recipe, and every file that one names."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from optional import require

from potstill import registry
from potstill.artifacts import write_artifact
from potstill.errors import ModelError, PotstillError
from potstill.pipeline import _inputs, plan, stages_of
from potstill.recipe import Recipe, Settings, dump_recipe, load_recipe, parse_recipe
from potstill.recipe.base import Cosmetic

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))

IN_NO_KEY = {
    "name": "names the run's folder",
    "export.*.kind": "names the stage itself",
}


def finish(recipe: Recipe, run: Path) -> None:
    """Give a run whole artifacts of the recipe, with the right keys and no content."""
    for stage in stages_of(recipe):
        key, digests = stage.key(recipe, _inputs(stage, run))
        with write_artifact(run, stage.name, key, settings=stage.settings, inputs=digests, seed=recipe.seed) as work:
            (work.path / "out.txt").write_text(key)


def is_fresh(recipe: Recipe, run: Path) -> bool:
    return {status.state for status in plan(recipe, run)} == {"fresh"}


def fields(settings: Settings, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Path, annotation and value of every field that affects results, at any depth."""
    for name, info in type(settings).model_fields.items():
        if any(isinstance(mark, Cosmetic) for mark in info.metadata):
            continue
        value, path = getattr(settings, name), (*at, name)
        yield path, info.annotation, value
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
        for key, part in [(None, value), *inner]:
            if isinstance(part, Settings):
                yield from fields(part, path if key is None else (*path, str(key)))


def literals(annotation: Any) -> list[Any]:
    """All values of the literal types in an annotation."""
    own = list(get_args(annotation)) if get_origin(annotation) is Literal else []
    return own + [value for inner in get_args(annotation) if get_origin(annotation) for value in literals(inner)]


def others(annotation: Any, value: Any) -> list[Any]:
    """Values that the field could have instead."""
    if any(isinstance(part, Settings) for part in (value, *(value if isinstance(value, tuple) else ()))):
        return []
    candidates: list[Any] = literals(annotation)
    if isinstance(value, bool):
        candidates += [not value]
    elif isinstance(value, (int, float)):
        candidates += [value + 1, value / 2, 0.5 * value + 0.01, 2, 1]
    elif isinstance(value, str):
        candidates += [f"{value}x", "10", "column:x"]
    elif isinstance(value, dict):
        candidates += [{**value, "seed": 3}, dict(list(value.items())[1:])]
    elif isinstance(value, tuple):
        candidates += [list(value[1:])]
    elif value is None:
        candidates += [1, 0.5, "x", ["x"], True, {}, {"prompt": "x"}]
    return [other for other in candidates if other != value and not isinstance(other, type)]


def changed(recipe: Recipe, path: tuple[str, ...], value: Any) -> Recipe:
    """The recipe with one field changed, validated anew.

    Raises:
        PotstillError, ValueError: it is none then.
    """
    document = yaml.safe_load(dump_recipe(recipe))
    at = document
    for part in path[:-1]:
        at = at[int(part)] if isinstance(at, list) else at[part]
    at[path[-1]] = value
    return parse_recipe(document, base=Path("/"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sources and models count by their settings alone: they have tests of their own below."""
    monkeypatch.setattr("potstill.data.source_digests", lambda settings: {})
    monkeypatch.setattr("potstill.models.model_digests", lambda name, models: {})
    monkeypatch.setattr("potstill.generate.decontaminating.set_digests", lambda settings: {})
    for user in ("models.resolve", "models", "export.stage", "teachers.origin"):
        monkeypatch.setattr(import_module(f"potstill.{user}"), "locate", lambda *_: None)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_field_of_a_shipped_recipe_is_in_a_key(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    finish(recipe, tmp_path)
    assert is_fresh(recipe, tmp_path)
    tried, unseen = 0, []
    for at, annotation, value in fields(recipe):
        name = ".".join("*" if part.isdigit() else part for part in at)
        if name in IN_NO_KEY or (at[0] == "report" and recipe.evaluate is None):
            continue
        for other in others(annotation, value):
            try:
                edited = changed(recipe, at, other)
            except (PotstillError, ValueError, TypeError, KeyError):
                continue
            if edited == recipe:
                continue
            tried += 1
            try:
                if is_fresh(edited, tmp_path):
                    unseen.append(f"{'.'.join(at)}: {value!r} -> {other!r}")
            except ModelError:
                pass  # the model that it names now is looked for, and is not there
            break
    assert unseen == []
    assert tried > 15


# ---- files -----------------------------------------------------------------------------------------------------

MODULE = """
from torch import nn

class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 2)
"""
OBJECTIVE = Path(__file__).parent / "plugins" / "toy_objective" / "hidden_correlation.py"
TRAIN: dict[str, Any] = {"objectives": [{"kind": "hard_ce"}], "args": {"max_steps": 1}}
LANGUAGE = {"data": {"kind": "jsonl", "path": "data.jsonl"}, "export": [{"kind": "huggingface"}], "evaluate": {}}
NAMING: dict[str, dict[str, Any]] = {
    "a shape by a file": LANGUAGE | {"student": {"kind": "from_config", "config": "shape.json"}, "train": TRAIN},
    "a shape and a tokenizer by folders": LANGUAGE
    | {
        "teacher": {"kind": "local", "model": "./model"},
        "student": {"kind": "from_config", "config": "./tokenizer", "tokenizer": "./tokenizer"},
        "train": TRAIN,
    },
    "a student that is there": LANGUAGE | {"student": {"kind": "existing", "model": "./model"}, "train": TRAIN},
    "a module": {
        "task": "image_classification",
        "data": {"kind": "arrays", "path": "images.npz"},
        "student": {"kind": "module", "source": "net.py:Net", "weights": "net.safetensors"},
        "train": TRAIN,
        "evaluate": {},
    },
    "an objective by a file": LANGUAGE
    | {
        "teacher": {"kind": "local", "model": "./model"},
        "student": {"kind": "from_teacher"},
        "train": {"objectives": [{"kind": "objective.py:HiddenCorrelation"}], "args": {"max_steps": 1}},
    },
    "sets, interpreters and templates": {
        "teacher": {"kind": "endpoint", "base_url": "http://127.0.0.1:9", "model": "m", "tokenizer": "./tokenizer"},
        "data": {"kind": "csv", "path": "data.csv", "format": "prompt"},
        "generate": {
            "kind": "sequence",
            "verify": {"kind": "python_tests", "sandbox": {"python": "PYTHON"}},
            "decontaminate": {"against": {"mine": "data.jsonl"}},
        },
    },
}


def material(folder: Path, tiny_llama: Path) -> None:
    """Every file that the recipes above name."""
    shutil.copytree(tiny_llama, folder / "model")
    shutil.copytree(tiny_llama, folder / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
    for place in ("model", "tokenizer"):
        (folder / place / "additional_chat_templates").mkdir()
        (folder / place / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    shutil.copyfile(tiny_llama / "config.json", folder / "shape.json")
    (folder / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    (folder / "data.csv").write_text("prompt\na\nb\n")
    (folder / "net.py").write_text(MODULE)
    (folder / "net.safetensors").write_bytes(bytes(8))
    (folder / "images.npz").write_bytes(bytes(8))
    shutil.copyfile(OBJECTIVE, folder / "objective.py")
    (folder / "python").symlink_to(sys.executable)


def named_files(document: Any) -> Iterator[Path]:
    """Every file that stands in a document, alone, with `:Name` behind it, or in a folder that does."""
    if isinstance(document, dict):
        document = list(document.values())
    if isinstance(document, list):
        for part in document:
            yield from named_files(part)
    elif isinstance(document, str) and document.startswith("/"):
        path = Path(document.partition(".py:")[0] + ".py" if ".py:" in document else document)
        yield from sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def assert_files_are_in_keys(recipe_file: Path, run: Path, least: int) -> None:
    finish(load_recipe(recipe_file), run)
    assert is_fresh(load_recipe(recipe_file), run)
    named = named_files(yaml.safe_load(dump_recipe(load_recipe(recipe_file))))
    # What lies elsewhere belongs to the machine (images of a system package), and is not edited.
    files = [file for file in dict.fromkeys(named) if recipe_file.parent in file.parents]
    unseen = []
    for file in files:
        before = file.read_bytes()
        file.unlink() if file.is_symlink() else None
        # Of weights the size is checked, too.
        file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]) if file.suffix == ".safetensors" else before + b"\n")
        if is_fresh(load_recipe(recipe_file), run):
            unseen.append(str(file))
        file.write_bytes(before)
        assert is_fresh(load_recipe(recipe_file), run), f"{file} is as it was"
    assert unseen == []
    assert len(files) >= least


@pytest.fixture
def no_plugins() -> None:
    """Other tests load the same plug-ins from other folders: two files may not give one kind."""
    for module in registry._module_of_file.values():
        registry._forget(module)
    registry._module_of_file.clear()


@pytest.mark.usefixtures("no_plugins")
@pytest.mark.parametrize(("what", "least"), zip(NAMING, (2, 9, 5, 3, 6, 7), strict=True), ids=[*NAMING])
def test_an_edited_file_that_a_recipe_names_makes_a_stage_stale(
    what: str, least: int, tiny_llama: Path, tmp_path: Path
) -> None:
    material(tmp_path, tiny_llama)
    text = yaml.safe_dump({"name": "named", **NAMING[what]}).replace("PYTHON", str(tmp_path / "python"))
    (tmp_path / "recipe.yaml").write_text(text)
    assert_files_are_in_keys(tmp_path / "recipe.yaml", tmp_path / "run", least)


@pytest.mark.usefixtures("no_plugins")
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_an_edited_file_of_a_shipped_recipe_makes_a_stage_stale(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "fashion_mnist" in path.stem:
        require("fashion-mnist")
    shutil.copytree(path.parent, tmp_path / "recipes")
    monkeypatch.setattr("potstill.models.model_digests", lambda name, models: {})
    for user in ("export.stage", "teachers.origin"):
        monkeypatch.setattr(import_module(f"potstill.{user}"), "locate", lambda *_: None)
    copied = tmp_path / "recipes" / path.name
    if all(
        (tmp_path / "recipes") not in file.parents
        for file in named_files(yaml.safe_load(dump_recipe(load_recipe(copied))))
    ):
        return  # it names no file of its own
    assert_files_are_in_keys(copied, tmp_path / "run", 1)

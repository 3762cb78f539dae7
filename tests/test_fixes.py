"""Every key, value, command and file that an error's fix names exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from potstill import registry
from potstill.generate.stage import advice
from potstill.recipe import Recipe, Settings

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "potstill"
HOLDS_A_FIX = re.compile(r"(^|_)(fix|fixes|use|advice|choices|elsewhere)$", re.IGNORECASE)

NOT_OF_A_RECIPE = {"vocab_size", "id2label", "label2id", "add_bos_token", "eos_token", "mask_token", "model_type"}
"""Keys of a model's or tokenizer's own configuration, which a fix tells to set in its file."""
WORDS_AND_KEYS = {"text", "names", "file", "model"}
"""Keys that are English words, too: `give the file: model.gguf`."""


# ---- what the fixes say ----------------------------------------------------------------------------------------


def texts(node: ast.AST) -> list[str]:
    """The strings that an expression may be; a value that is known later only is `{}`."""
    match node:
        case ast.Constant(value=str(value)):
            return [value]
        case ast.JoinedStr(values=values):
            return ["".join(v.value if isinstance(v, ast.Constant) else "{}" for v in values)]  # type: ignore[misc]
        case ast.BinOp(left=left, right=right):
            return [a + b for a in texts(left) or ["{}"] for b in texts(right) or ["{}"]]
        case ast.IfExp(body=body, orelse=orelse):
            return texts(body) + texts(orelse)
        case ast.Dict(values=values):
            return [text for value in values for text in texts(value)]
    return []


def fixes_in(tree: ast.AST) -> Iterator[str]:
    """Strings given as `fix=`, bound to a name such as `fix`, or returned by a function with such a name."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(keywords=keywords):
                found = [keyword.value for keyword in keywords if keyword.arg == "fix"]
            case ast.Assign(targets=targets, value=value):
                found = [value for t in targets if isinstance(t, ast.Name) and HOLDS_A_FIX.search(t.id)]
            case ast.FunctionDef(name=name) if HOLDS_A_FIX.search(name):
                found = [n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value is not None]
            case _:
                continue
        for value in found:
            yield from texts(value)


FIXES = sorted(
    {
        (str(path.relative_to(SOURCE)), fix)
        for path in SOURCE.rglob("*.py")
        for fix in fixes_in(ast.parse(path.read_text(encoding="utf-8")))
    }
)


# ---- what a recipe may hold ------------------------------------------------------------------------------------


def settings_in(annotation: Any) -> list[type[Settings]]:
    """The settings classes that a field may hold; of a variant all kinds."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        room = getattr(annotation, "room", "")
        kinds = registry._settings.get(room, {}).values() if room and "kind" in annotation.model_fields else ()
        ours = [cls for cls in kinds if cls.__module__.startswith("potstill.") and issubclass(cls, annotation)]
        return [annotation, *ours]
    return [cls for inner in get_args(annotation) for cls in settings_in(inner)]


@cache
def all_settings() -> frozenset[type[Settings]]:
    """Every settings class that a recipe can reach."""
    found: set[type[Settings]] = set()
    todo: list[type[Settings]] = [Recipe]
    while todo:
        cls = todo.pop()
        if cls not in found:
            found.add(cls)
            todo += [inner for info in cls.model_fields.values() for inner in settings_in(info.annotation)]
    return frozenset(found)


@cache
def training_arguments() -> frozenset[str]:
    from dataclasses import fields

    from transformers import TrainingArguments

    return frozenset(field.name for field in fields(TrainingArguments))


def values_of(key: str) -> set[str] | None:
    """The values that a key may have anywhere, or None if not all are known."""
    if key == "kind":
        return {kind for known in registry._settings.values() for kind in known}
    found: set[str] = set()
    for info in (cls.model_fields[key] for cls in all_settings() if key in cls.model_fields):
        choices = literals(info.annotation)
        if not choices or choices is None:
            return None
        found |= choices
    return found | {"true", "false"}


def literals(annotation: Any) -> set[str]:
    """The literals that make up an annotation; empty if something else does too."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return {str(value) for value in parts}
    inner = [literals(part) for part in parts if part is not type(None)]
    return set().union(*inner) if parts and all(inner) else set()


def why_not_a_path(path: str) -> str | None:
    """Why a dotted path leads to no key, following all variants at once."""
    at = {"data", "teacher", "student", "train", "generate", "evaluate", "report"}
    first, *rest = path.split(".")
    assert first in at
    field = "teachers" if first == "teacher" else first
    classes = set(settings_in(Recipe.model_fields[field].annotation))
    for name in rest:
        if name == "args":
            return None if set(rest[rest.index("args") + 1 :]) <= training_arguments() else f"no argument in {path}"
        fields = [cls.model_fields[name] for cls in classes if name in cls.model_fields]
        if not fields:
            return f"{path}: no {name}"
        classes = {inner for info in fields for inner in settings_in(info.annotation)}
    return None


SECTION = re.compile(r"(?<![\w/.:-])((?:data|teacher|student|train|generate|evaluate|report)(?:\.[a-z_]+)+)\b(?!\()")
PAIR = re.compile(r"(?<![\w/.<])([a-z_][a-z0-9_]*): ?(\{\}|[\w.-]+|\{|\[|…)?")
FILE_ENDINGS = ("json", "jsonl", "csv", "parquet", "yaml", "py", "txt", "safetensors", "recover")


def wrong_in(fix: str) -> list[str]:
    """What a fix names that does not exist."""
    wrong = []
    for path in SECTION.findall(fix):
        if path.rpartition(".")[2] not in FILE_ENDINGS and (why := why_not_a_path(path)):
            wrong.append(why)
    known = {name for cls in all_settings() for name in cls.model_fields}
    for key, value in PAIR.findall(fix):
        if key in NOT_OF_A_RECIPE | WORDS_AND_KEYS | training_arguments() or f"{key}://" in fix:
            continue
        if key not in known:
            # A colon of prose has an English word before it, and more words behind it.
            if "_" in key or re.fullmatch(r"true|false|null|\d[\d.]*", value):
                wrong.append(f"no key {key}")
        elif re.fullmatch(r"[a-z_]+", value) and (choices := values_of(key)) is not None and value not in choices:
            wrong.append(f"{key}: {value} is none of {sorted(choices)}")
    return wrong


@pytest.mark.parametrize(("where", "fix"), FIXES, ids=[f"{where}: {fix[:60]}" for where, fix in FIXES])
def test_a_fix_names_keys_that_exist(where: str, fix: str) -> None:
    assert wrong_in(fix) == []


def test_wrong_fixes_are_found() -> None:
    for wrong in (
        "set data.hold_out: 0.1",
        "raise train.max_len",
        "keep_unfinished_answers: true",
        "use kind: localle",
        "train.args.learning_rat",
        "set generate.budget.dollars",
    ):
        assert wrong_in(wrong) != [], wrong
    assert len(FIXES) > 150


@pytest.mark.parametrize("kind", sorted(registry._settings["generate"]))
def test_the_advice_of_a_stage_names_keys_of_its_own_section(kind: str) -> None:
    """`keep_unfinished` is a key of one kind of program and not of another."""
    from potstill.types import Reason

    cls = registry._settings["generate"][kind]
    section = cls.model_construct(**{"keep_unfinished": False} if "keep_unfinished" in cls.model_fields else {})
    said = advice(section, dict.fromkeys(Reason, 1))
    for path in re.findall(r"\bgenerate\.([a-z_]+)", said):
        assert path in cls.model_fields, f"{kind} has no {path}: {said}"

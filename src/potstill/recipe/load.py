"""From a YAML file and `key=value` overrides to a `Recipe`, with errors for the person at the keyboard."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ValidationError

from potstill import registry
from potstill.errors import RecipeError, did_you_mean
from potstill.recipe.base import KindSettings, kinds_in, room_of
from potstill.recipe.reading import dump_yaml, parse_yaml, read_yaml
from potstill.recipe.recipe import Recipe


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply overrides, and validate it.

    Paths in it are relative to the recipe's folder and are returned absolute.

    Args:
        path: the YAML file.
        overrides: `key.sub=value`, lists by index (`train.objectives.0.weight=3`); values are YAML.

    Raises:
        RecipeError: no such file, not YAML, an unknown key (the error suggests the nearest), a value out of range, or
            an impossible combination.
    """
    path = Path(path)
    if not _is_file(path):
        near = did_you_mean(path.name, (p.name for p in path.parent.glob("[!.]*.y*ml"))) if path.parent.is_dir() else ""
        raise RecipeError(f"no such recipe{near}", where=str(path), fix="`potstill init` writes one to start from")
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise RecipeError(
            "a recipe is a mapping of sections", where=str(path), fix="`potstill init` writes one to start from"
        )
    for override in overrides:
        _apply(document, override)
    return parse_recipe(document, base=path.parent.resolve(), where=str(path))


def parse_recipe(document: Mapping[str, Any], *, base: Path, where: str = "recipe") -> Recipe:
    """Validate a recipe that is already a mapping; paths in it are relative to `base`. Raises as `load_recipe`."""
    document = _absolute(copy.deepcopy(dict(document)), base)
    try:
        return Recipe.model_validate(document, context={"base": base})
    except ValidationError as error:
        raise RecipeError("\n".join(_problems(error.errors(), document, base)), where=where) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe, with defaults, as YAML that `load_recipe` reads."""
    document = {
        key: value for key, value in recipe.model_dump(mode="json", warnings=False).items() if value is not None
    }
    return dump_yaml(document)


def _apply(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    where = f"override {override!r}"
    if not equals or not key:
        raise RecipeError("not of the form key.sub=value", where=where)
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise RecipeError(f"the value is not valid YAML: {error}", where=where, fix="put it in quotes") from error
    at: Any = document
    parts = key.strip().split(".")
    if parts[0] == "teacher" and "teachers" in document:
        parts = ["teachers", "main", *parts[1:]]
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        here = ".".join(parts[: depth + 1])
        if isinstance(at, list):
            if not (part.isascii() and part.isdigit() and len(part) < 10) or int(part) >= len(at):
                raise RecipeError(f"{here}: the list has {len(at)} entries, counted from 0", where=where)
            if last:
                at[int(part)] = value
            else:
                at = at[int(part)]
        elif isinstance(at, dict):
            if last:
                at[part] = value
            else:
                if at.get(part) is None:
                    at[part] = {}
                at = at[part]
        else:
            raise RecipeError(f"{'.'.join(parts[:depth])} is {at!r}: nothing can be set inside it", where=where)


_MEASURE_SOURCES = ("harmful", "harmless", "labels")
_STUDENT_PATHS = ("config", "tokenizer", "weights", "source")


def _absolute(document: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make paths relative to the recipe absolute. A model's name is a path only if it looks like one."""
    student = document.get("student")
    if isinstance(student, dict):
        paths = {key: str(base / student[key]) for key in _STUDENT_PATHS if isinstance(student.get(key), str)}
        document["student"] = {**student, **paths}
    if "data" in document:
        document["data"] = _absolute_source(document["data"], base)
    train, evaluate = document.get("train"), document.get("evaluate")
    if isinstance(train, dict) and isinstance(mix := train.get("refusals"), dict) and "prompts" in mix:
        document["train"] = {**train, "refusals": {**mix, "prompts": _absolute_source(mix["prompts"], base)}}
    if isinstance(evaluate, dict) and isinstance(measures := evaluate.get("measures"), list):
        document["evaluate"] = {**evaluate, "measures": [_absolute_measure(measure, base) for measure in measures]}
    for holder in (document.get("teacher"), document.get("student"), *_values(document.get("teachers"))):
        _absolute_models(holder, base)
    if isinstance(speculate := document.get("speculate"), dict) and isinstance(draft := speculate.get("draft"), dict):
        document["speculate"] = {**speculate, "draft": _absolute_draft(draft, base)}
    policy = document.get("policy")
    if isinstance(policy, dict) and isinstance(policy.get("texts"), dict):
        texts = {name: str(base / path) if isinstance(path, str) else path for name, path in policy["texts"].items()}
        document["policy"] = {**policy, "texts": texts}
    generate = document.get("generate")
    if isinstance(generate, dict) and isinstance(generate.get("tokenizer"), str):
        generate = document["generate"] = {**generate, "tokenizer": _model_path(generate["tokenizer"], base)}
    if isinstance(generate, dict) and isinstance(generate.get("decontaminate"), dict):
        against = generate["decontaminate"].get("against")
        if isinstance(against, dict):
            against = {name: _absolute_source(source, base) for name, source in against.items()}
            document["generate"] = {**generate, "decontaminate": {**generate["decontaminate"], "against": against}}
    return document


def _absolute_measure(measure: Any, base: Path) -> Any:
    """A measure with the sources of its questions."""
    if not isinstance(measure, dict):
        return measure
    sources = {key: _absolute_source(measure[key], base) for key in _MEASURE_SOURCES if measure.get(key) is not None}
    if isinstance(folder := measure.get("folder"), str):
        sources["folder"] = str(base / folder)
    for key in ("tasks", "written"):
        if isinstance(tasks := measure.get(key), list):
            sources[key] = [
                {**task, "data": _absolute_source(task["data"], base)}
                if isinstance(task, dict) and "data" in task
                else task
                for task in tasks
            ]
    return {**measure, **sources}


def _source_path(source: str, base: Path) -> str:
    """A source of data in its short form."""
    scheme, colon, rest = source.partition(":")
    if not colon:
        return str(base / source)
    return f"run:{base / rest}" if scheme == "run" else source


def _absolute_source(source: Any, base: Path) -> Any:
    """A source of data in either form."""
    if isinstance(source, str):
        return _source_path(source, base)
    if isinstance(source, dict) and isinstance(source.get("path"), str):
        return {**source, "path": str(base / source["path"])}
    return source


def _absolute_models(holder: Any, base: Path) -> None:
    """Make the model paths of a teacher or student, and of an ensemble's members, absolute."""
    if not isinstance(holder, dict):
        return
    # An endpoint's model is a name on its server.
    for key in ("tokenizer",) if holder.get("kind") == "endpoint" else ("model",):
        if isinstance(holder.get(key), str):
            holder[key] = _model_path(holder[key], base)
    members = holder.get("members")
    for member in members if isinstance(members, list) else ():
        _absolute_models(member, base)


def _absolute_draft(draft: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """A draft with the paths of its model and its heads; of a chained one, of what follows the lookup."""
    made = dict(draft)
    _absolute_models(made, base)
    if isinstance(weights := made.get("weights"), str):
        made["weights"] = str(base / weights)
    if isinstance(then := made.get("then"), dict):
        made["then"] = _absolute_draft(then, base)
    return made


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []


def _model_path(model: str, base: Path) -> str:
    if model.startswith("run:"):
        return f"run:{(base / model[4:]).resolve()}"
    try:
        # A hub id is `name` or `owner/name`.
        meant = model.startswith((".", "/", "~")) or model.endswith(".gguf") or model.count("/") > 1
        looks_like_path = meant or (model != "" and (base / model).exists())
        return str((base / Path(model).expanduser()).resolve()) if looks_like_path else model
    except RuntimeError:  # `~nobody/x`, an unknown user
        return str(base / model)
    except (OSError, ValueError):  # too long, or with a NUL: the field's own validation reports it
        return model


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _problems(errors: Sequence[Any], document: Mapping[str, Any], base: Path) -> list[str]:
    """One line for each key with a validation error. What the alternatives of a union say of one value stands in one
    line, and a list is not called too short beside the error of the entry that it lacks."""
    at = [(_keys_of(e["loc"], document), e) for e in errors]
    short = {keys for keys, e in at if e["type"] == "too_short" and any(k[: len(keys)] == keys != k for k, _ in at)}
    lines: dict[tuple[Any, ...], list[str]] = {}
    for keys, e in at:
        if keys not in short or e["type"] != "too_short":
            lines.setdefault(keys, []).append(_explain({**e, "loc": keys}, document, base))
    return [_one_line(found, ".".join(map(str, keys))) for keys, found in lines.items()]


def _one_line(said: Sequence[str], name: str) -> str:
    """ "x: should be below 1, not 2" and "x: should be 'own', not 2" as "x: should be below 1, or 'own', not 2"."""
    ends = {text.rpartition(", not ")[2] for text in said}
    if len(said) == 1 or len(ends) > 1 or not all(text.startswith(f"{name}: should be ") for text in said):
        return "\n".join(said)
    wanted = [text.removeprefix(f"{name}: should be ").rpartition(", not ")[0] for text in said]
    return f"{name}: should be {', or '.join(dict.fromkeys(wanted))}, not {ends.pop()}"


def _keys_of(location: Sequence[Any], document: Mapping[str, Any]) -> tuple[Any, ...]:
    """A location without the names of a union's alternatives, which are no keys: what a value that holds nothing is
    said to hold."""
    value: Any = {**document, "teachers": {"main": document["teacher"]}} if "teacher" in document else document
    keys: list[Any] = []
    for part in location:
        if keys and not isinstance(value, (dict, list, tuple)):
            break
        if isinstance(part, str) and part not in value and (not isinstance(value, dict) or _names_a_type(part)):
            continue
        keys.append(part)
        if isinstance(value, dict):
            value = value.get(part, {})
        else:
            value = value[part] if isinstance(part, int) and part < len(value) else {}
    return tuple(keys)


def _names_a_type(part: str) -> bool:
    """Whether a part of a location is the name of a union's alternative (`str`, `LicenceStatement`), and no key."""
    return part in _PLAIN_TYPES or not part.replace("_", "").islower()


_PLAIN_TYPES = ("str", "int", "float", "bool")


def _explain(error: Any, document: Mapping[str, Any], base: Path) -> str:
    """One validation error as text: the key, what is wrong, the nearest valid name."""
    where = [_short(str(part)) for part in error["loc"]]
    name = ".".join(where) or "recipe"
    if error["type"] == "extra_forbidden":
        owner, key = error["loc"][:-1], str(error["loc"][-1])
        return f"unknown key {name!r}{did_you_mean(key, _fields_at(owner, document, base))}"
    if error["type"] == "missing":
        return f"{name} is missing"
    if (problem := wrong_type(error)) is not None:
        return f"{name}: {problem}"
    message = (error["msg"] or "cannot be used").removeprefix("Value error, ")
    message = message.removeprefix("Input ").removeprefix("String ")
    if error["type"].startswith("value_error") or error["type"].startswith("kind_"):
        message = _short(message, _LONGEST_MESSAGE)
        return f"{name}: {message}" if where else message
    return f"{name}: {message[0].lower() + message[1:]}, not {_short(repr(error['input']))}"


def wrong_type(error: Any) -> str | None:
    """What should stand in the place of a value of a wrong type, or of too few entries, in words of a recipe; None for
    other errors of pydantic's."""
    if error["type"] == "too_short" and isinstance(error["input"], (list, tuple)):
        least = error["ctx"]["min_length"]
        return f"should have at least {least} {'entry' if least == 1 else 'entries'}"
    if error["type"] in _PLAIN_WORDS:
        return f"should be {_PLAIN_WORDS[error['type']]}, not {_short(repr(error['input']))}"
    return None


_LONGEST_SHOWN, _LONGEST_MESSAGE = 120, 1000
_PLAIN_WORDS = {
    "tuple_type": "a list, [a, b]",
    "list_type": "a list, [a, b]",
    "dict_type": "a mapping, {key: value}",
    "model_type": "a mapping, {key: value}",
    "model_attributes_type": "a mapping, {key: value}",
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "path_type": "a path",
}
"""What should stand in the place of a value of a wrong type, by pydantic's type of the error."""


def _short(text: str, most: int = _LONGEST_SHOWN) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _fields_at(location: Sequence[Any], document: Mapping[str, Any], base: Path) -> list[str]:
    """The valid keys of the section at a location, found by following the settings classes along the document."""
    model: type[BaseModel] | None = Recipe
    value: Any = {**document, "teachers": {"main": document["teacher"]}} if "teacher" in document else document
    annotation: Any = None
    for part in location:
        if isinstance(value, str):
            break
        if isinstance(value, list):
            value = value[part] if isinstance(part, int) and part < len(value) else {}
        else:
            value = value.get(part, {}) if isinstance(value, dict) else {}
        if model is not None and str(part) in model.model_fields:  # else the index of a list, or a name of the user's
            field = model.model_fields[str(part)]
            annotation = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        model, room = _settings_of(annotation), room_of(annotation)
        if room is not None and isinstance(value, dict) and isinstance(value.get("kind"), str):
            try:
                found = registry.settings_class(room, value["kind"], base)
            except RecipeError:  # a mapping with its own `kind`
                return []
            model = found if issubclass(found, KindSettings) else None
    if model is None:
        return []
    return list(model.model_fields) + (["teacher"] if model is Recipe else [])


def _settings_of(annotation: Any) -> type[BaseModel] | None:
    """The section in an annotation; the base of a room is none, since the document's kind chooses the section."""
    for kind in kinds_in(annotation):
        if (
            isinstance(kind, type)
            and issubclass(kind, BaseModel)
            and not (issubclass(kind, KindSettings) and kind.model_fields["kind"].is_required())
        ):
            return kind
    return None

"""Verifiers of form, by a pattern or a JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import regex

from potstill.errors import RecipeError
from potstill.recipe.verify import JSONSchema, Regex
from potstill.registry import implements
from potstill.types import Record, Verdict
from potstill.verify.answer_extraction import fenced_blocks, without_reasoning
from potstill.verify.base import BaseVerifier, shown
from potstill.verify.workers import WorkerVerifier


@implements(Regex)
class RegexVerifier(BaseVerifier[Regex]):
    """A pattern is found, matches the whole text, or is absent. Some patterns backtrack without end, so the search has
    a deadline, past which it cannot judge."""

    @property
    def version(self) -> str:
        return f"{self.contract}+regex-{regex.__version__}"

    def judge(self, record: Record, completion: str) -> Verdict:
        asked = self._settings
        pattern = asked.pattern if asked.pattern is not None else record.metadata.get(asked.key)
        if not isinstance(pattern, str):
            return self.cannot_judge(f"the record has no pattern in metadata[{asked.key!r}]")
        text = without_reasoning(completion)
        try:
            compiled = regex.compile(pattern, regex.IGNORECASE if asked.ignore_case else 0)
            search = compiled.fullmatch if asked.found == "whole" else compiled.search
            found = search(text, timeout=asked.deadline_seconds, concurrent=True)
        except regex.error as error:
            return self.cannot_judge(f"the record's pattern {shown(pattern)} cannot be read: {error}")
        except TimeoutError:
            return self.cannot_judge(f"the pattern was not decided within {asked.deadline_seconds:g} s")
        if found is None:
            absent = f"{shown(pattern)} is not found"
            return self.accept(absent) if asked.found == "nowhere" else self.reject(absent)
        where = f"{shown(pattern)} is found: {shown(found.group())}"
        return self.reject(where) if asked.found == "nowhere" else self.accept(where)


@implements(JSONSchema)
class JSONSchemaVerifier(WorkerVerifier[JSONSchema]):
    """The text is one standard JSON value (no NaN, no duplicate names in an object) that the schema accepts. Runs in a
    worker, because a schema's patterns may backtrack without end. References to other documents are not fetched."""

    function = "potstill.verify.pattern:judge_json"
    package = ("jsonschema", "jsonschema", "verify")

    def __init__(self, settings: JSONSchema) -> None:
        """Raises RecipeError for a schema in the settings that is none: it would judge no answer."""
        super().__init__(settings)
        if settings.json_schema is None:
            return
        import jsonschema

        kind = jsonschema.validators.validator_for(settings.json_schema, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(settings.json_schema)
        except jsonschema.SchemaError as error:
            raise RecipeError(
                f"json_schema is no JSON Schema: at {error.json_path}: {shown(error.message)}",
                where="the verifier json_schema",
                fix="correct json_schema",
            ) from None
        if missing := _reference_to_nothing(settings.json_schema):
            raise RecipeError(
                f"json_schema refers to {shown(missing)}, which is not in it (other documents are not fetched)",
                where="the verifier json_schema",
                fix="correct the $ref, or put what it refers to into the schema, under $defs",
            )

    def judge(self, record: Record, completion: str) -> Verdict:
        schema = self._settings.json_schema
        if schema is None:
            schema = record.metadata.get(self._settings.key)
        if not isinstance(schema, (dict, bool)):
            return self.cannot_judge(f"the record has no schema in metadata[{self._settings.key!r}]")
        text = without_reasoning(completion)
        fenced = [body for language, body in fenced_blocks(text) if language in ("", "json", "json5", "jsonc")]
        found = self.ask({"schema": schema, "text": fenced[-1] if fenced else text})
        return found if isinstance(found, Verdict) else Verdict(found[0], found[1], None, self._signature)


def _reference_to_nothing(schema: dict[str, Any] | bool) -> str | None:
    """The first `$ref` that leads to nothing; None if there is none, or if parts of the schema have ids of their own,
    which references are relative to."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    parts = list(_parts(schema))
    if any("$id" in part for part in parts):
        return None
    resolver = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
    for part in parts:
        if isinstance(ref := part.get("$ref"), str):
            try:
                resolver.lookup(ref)
            except Unresolvable:
                return ref
    return None


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _parts(inner)


def judge_json(item: dict[str, Any]) -> tuple[str, str]:
    """Runs in the worker: outcome and reason for `{schema, text}`."""
    import jsonschema
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        value = json.loads(item["text"], parse_constant=_no_constant, object_pairs_hook=_no_name_twice)
    except RecursionError:
        return "cannot_judge", "nested too deep to be read"
    except ValueError as error:
        return "reject", f"not JSON: {error}"
    schema = item["schema"]
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
        # With an empty registry, a `$ref` to another document is not fetched.
        wrong = jsonschema.exceptions.best_match(kind(schema, registry=Registry()).iter_errors(value))
    except jsonschema.SchemaError as error:
        return "cannot_judge", f"the schema is none: {error.message}"
    except (Unresolvable, re.error) as error:
        return "cannot_judge", f"the schema cannot be used: {error}"
    except Exception as error:  # noqa: BLE001  # jsonschema wraps what it cannot resolve in a private class
        return "cannot_judge", f"the schema cannot be used: {error}"
    if wrong is None:
        return "accept", "the schema accepts it"
    return "reject", f"at {wrong.json_path}: {shown(wrong.message)}"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return made

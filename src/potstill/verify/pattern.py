"""Verifiers of form: a pattern, or a JSON Schema."""

from __future__ import annotations

import json
import re
from typing import Any

import regex

from potstill.recipe.verify import JSONSchema, Regex
from potstill.registry import implements
from potstill.types import Record, Verdict
from potstill.verify.base import BaseVerifier, shown
from potstill.verify.final import without_reasoning
from potstill.verify.working import WorkingVerifier

_FENCED = re.compile(r"^```[ \t]*(?:json[a-z0-9]*)?[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE | re.IGNORECASE)


@implements(Regex)
class RegexVerifier(BaseVerifier):
    """A pattern is found, makes up the whole, or is nowhere. The search itself has a deadline: one that backtracks
    without end cannot judge."""

    @property
    def version(self) -> str:
        return f"{self.contract}+regex-{regex.__version__}"

    def verify(self, record: Record, completion: str) -> Verdict:
        assert isinstance(self._settings, Regex)
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
class JSONSchemaVerifier(WorkingVerifier):
    """One JSON value, by the standard (no NaN, no name twice in an object), that the schema accepts. In a worker: a
    schema holds patterns, and a pattern can take for ever. Schemas elsewhere are not fetched."""

    function = "potstill.verify.pattern:judge_json"
    package = ("jsonschema", "jsonschema", "verify")

    def verify(self, record: Record, completion: str) -> Verdict:
        assert isinstance(self._settings, JSONSchema)
        schema = self._settings.json_schema
        if schema is None:
            schema = record.metadata.get(self._settings.key)
        if not isinstance(schema, (dict, bool)):
            return self.cannot_judge(f"the record has no schema in metadata[{self._settings.key!r}]")
        text = without_reasoning(completion)
        fenced = _FENCED.findall(text)
        found = self.ask({"schema": schema, "text": fenced[-1] if fenced else text})
        return found if isinstance(found, Verdict) else Verdict(found[0], found[1], None, self._signature)


def judge_json(item: dict[str, Any]) -> tuple[str, str]:
    """What the worker does: outcome and reason for `{schema, text}`."""
    import jsonschema
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        value = json.loads(item["text"], parse_constant=_no_constant, object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError) as error:
        return "reject", f"not JSON: {error}"
    schema = item["schema"]
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
        # An empty registry: `$ref` to elsewhere is not fetched.
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

"""YAML as recipes are written: plain data, of bounded size, with errors for the person at the keyboard.

Safe YAML 1.1 with these differences: `5e-4` is a number, dates and `12:30` are texts, a duplicate key is refused, and
so is anything other than plain data or anything that grows without bound (aliases of aliases, deep nesting).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from potstill.errors import RecipeError

MOST_BYTES = 256_000
"""The largest recipe that is read."""
MOST_VALUES = 20_000
"""The maximum number of values in a recipe; a value counts as often as aliases repeat it."""
DEEPEST = 40
"""The maximum nesting of mappings and lists."""
LONGEST_NUMBER = 2**63
"""Whole numbers must be smaller than this in magnitude."""


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        RecipeError: it cannot be read, is not YAML, or is larger than a recipe may be.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    if len(content) > MOST_BYTES:
        raise RecipeError(f"has {len(content):,} bytes, and a recipe has at most {MOST_BYTES:,}", where=str(path))
    try:
        return parse_yaml(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"not valid YAML: {error}", where=str(path), fix="save the file as UTF-8") from error
    except ValueError as error:
        raise RecipeError(f"not valid YAML: {error}", where=str(path)) from error


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: it is not YAML, not plain data, too large, too deep, or holds a number or a text that no field
        accepts.
    """
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # a character that no text has
        raise ValueError(str(error)) from error
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        value = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError:
        raise ValueError("an alias stands inside what it repeats") from None
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        # Constructors of YAML tags fail like this: `!!timestamp 2024-99-99`, `!!int x`, a number of ten thousand
        # digits.
        raise ValueError(f"a value cannot be read: {_short(str(error))}") from error
    finally:
        loader.dispose()
    for place, inner in walk(value):
        if problem := _unusable(inner):
            raise ValueError(f"{place or 'the document'} {problem}")
    return value


def dump_yaml(document: Any) -> str:
    """Plain data as YAML that `parse_yaml` reads back unchanged."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def walk(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value inside a value, itself first, with its path (`train.objectives.0`)."""
    yield place, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from walk(part, f"{place}.{key}" if place else str(key))


class _Loader(yaml.SafeLoader):
    """Refuses deep nesting, keys that are no names, and duplicate keys while it reads. `on`, `off`, `yes` and `no` are
    names where they are keys (`on: "2026-11-27"` of a licence statement)."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > 2 * DEEPEST:  # twice: keys are nodes too
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {DEEPEST} levels", self.get_mark())
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
            return node
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "expected a mapping", node.start_mark)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:bool":
                key_node.tag = "tag:yaml.org,2002:str"
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                what = f"a key should be a name, not {_short(repr(key))}: put it in quotes"
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            if key in seen:
                what = f"key {_short(repr(key))} is given twice"
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            seen.add(key)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


class _Dumper(yaml.SafeDumper):
    """Quotes texts that YAML 1.1 or a recipe would read as something else."""


def _with_resolvers() -> None:
    """Drop dates and base 60, and allow exponents without a point."""
    _Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith((":timestamp", ":int", ":float"))]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    numbers = {
        "int": r"[-+]?(?:0b[01_]+|0o?[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)",
        "float": r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    }
    for kind, pattern in numbers.items():
        for either in (_Loader, _Dumper):
            tag, found = f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{pattern})$")
            either.add_implicit_resolver(tag, found, list("-+0123456789."))


_with_resolvers()


def _check_size(root: yaml.Node) -> None:
    """Refuse a document that aliases make larger than a recipe may be, without expanding it.

    Raises:
        ValueError: it is too large.
    """
    sizes: dict[int, int] = {}
    inside: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if id(node) in inside:
            raise ValueError("an alias stands inside what it repeats")
        if depth > 2 * DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        if id(node) not in sizes:
            inside.add(id(node))
            parts: list[yaml.Node] = []
            if isinstance(node, yaml.SequenceNode):
                parts = node.value
            elif isinstance(node, yaml.MappingNode):
                parts = [part for pair in node.value for part in pair]
            sizes[id(node)] = 1 + sum(size(part, depth + 1) for part in parts)
            inside.remove(id(node))
        return sizes[id(node)]

    if size(root, 0) > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES:,} values (aliases are counted as often as they are used)")


def _unusable(value: Any) -> str | None:
    """Why a recipe cannot hold a value; None if it can."""
    if isinstance(value, str):
        if "\0" in value:
            return "has a NUL character"
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return "has half of a surrogate pair, which is no text"
        return None
    if isinstance(value, bool) or value is None or isinstance(value, (dict, list)):
        return None
    if isinstance(value, int):
        return (
            None if abs(value) < LONGEST_NUMBER else f"is a number of {value.bit_length()} bits: at most 63 are taken"
        )
    if isinstance(value, float):
        return "is not a number (nan)" if math.isnan(value) else None
    return f"is a {type(value).__name__}, and a recipe holds names, numbers, texts, lists and mappings"


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}…"

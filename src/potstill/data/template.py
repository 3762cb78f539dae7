"""Chat templates: sandboxed jinja with the extensions that templates on the hub use. No torch, no transformers.

The rendering equals `transformers`' `apply_chat_template`: the same environment settings, filters, globals and
extensions, and the same view of the messages (no empty keys, reasoning under each of its names).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from potstill.types import Message

_OPEN, _CLOSE = "\x00generation\x00", "\x00endgeneration\x00"
"""Mark `{% generation %}` blocks while a template runs. No text contains them: NUL is removed from messages."""

_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


class Rendered(NamedTuple):
    """A rendered conversation, and the character spans of its `{% generation %}` blocks."""

    text: str
    generation: tuple[tuple[int, int], ...]


class TemplateRefusal(ValueError):
    """The template itself refused the conversation, or failed on it."""


def render_template(template: str, variables: Mapping[str, Any], messages: Sequence[Message]) -> Rendered:
    """Render a conversation.

    Args:
        template: the jinja source.
        variables: other variables of the template: tools, documents, add_generation_prompt, special tokens.
        messages: the conversation.

    Raises:
        TemplateRefusal: the template raised an exception; the error quotes it.
    """
    seen = [_as_templates_expect(message) for message in messages]
    try:
        marked = _compiled(template).render(messages=seen, **{k: _plain(v) for k, v in variables.items()})
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise TemplateRefusal(str(error)) from error
    return _without_marks(marked)


def reasoning_of(message: Message) -> str:
    """The reasoning of an assistant's message, under any of its names; empty if there is none."""
    found = next((message[key] for key in _REASONING_KEYS if message.get(key) is not None), "")
    return found if isinstance(found, str) else ""


class _Generation(Extension):
    """The tag `{% generation %} … {% endgeneration %}`, which marks text that the model itself writes."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Macro) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}"


class _Namespace(jinja2.utils.Namespace):
    """A namespace that refuses names with a leading underscore, which give access to the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a template may not store {name!r}: it begins with an underscore")


@lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise, strftime_now=_now, namespace=_Namespace)
    return environment.from_string(template)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter escapes HTML, which no model is trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _as_templates_expect(message: Message) -> dict[str, Any]:
    """No keys without a value, and reasoning under the names that templates read."""
    seen = {key: _plain(value) for key, value in message.items() if value is not None}
    reasoning = next((seen[key] for key in _REASONING_KEYS if key in seen), None)
    if reasoning is not None:
        seen = {"thinking": reasoning, **seen, "reasoning_content": reasoning}
    return seen


def _plain(value: Any) -> Any:
    """Plain JSON types only, copied: templates are untrusted, so they get no objects with methods."""
    if isinstance(value, str):
        return value.replace("\x00", "") if "\x00" in value else str(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, float)) else f"<{type(value).__name__}>"


def _without_marks(marked: str) -> Rendered:
    if _OPEN not in marked:
        return Rendered(marked, ())
    pieces, spans, length = [], [], 0
    for piece in marked.split(_OPEN):
        inner, closed, after = piece.partition(_CLOSE)
        if closed:
            spans.append((length, length + len(inner)))
        pieces += [inner, after]
        length += len(inner) + len(after)
    return Rendered("".join(pieces), tuple(spans))

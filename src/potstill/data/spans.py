"""Find the assistant's turns in a rendered conversation, and check them against the messages.

A template with `{% generation %}` blocks marks them itself. For others, the answer to `messages[:k]` begins where
their rendering with the generation prompt ends, so the student learns exactly what it must write after a prompt. If
that does not hold for a template (it strips reasoning from earlier turns, moves tools to the last question …), the
record is rejected with a reason; a wrong span is never used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.data.chat import ChatTokenizer
from potstill.data.template import TemplateRefusal, reasoning_of
from potstill.types import DataReason, Message


@dataclass(frozen=True)
class Turn:
    """One turn of the assistant, in characters of the rendered text.

    `[start, words_end)` are its words, `[words_end, end)` the token that ends the turn (and white space before it).
    `added` is text that the template puts between the generation prompt and the words (an empty think block, say). The
    model has to write it too, so it is learned.
    """

    start: int
    words_end: int
    end: int
    added: str = ""


class Unlearnable(ValueError):
    """No span can be trusted; `reason` goes to the reject ledger."""

    def __init__(self, reason: DataReason, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def assistant_turns(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, chat: ChatTokenizer
) -> tuple[str, list[Turn]]:
    """The rendered conversation, and every turn of the assistant in it.

    Raises:
        Unlearnable: the template refuses the conversation, changes or drops the assistant's words, has no token that
            ends its turn, or renders a beginning of the conversation otherwise than the whole.
        DataError: there is no chat template.
    """
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) and (found := chat.special_pattern.search(content)):
            raise Unlearnable(DataReason.CONTROL_TOKEN, found.group())
    try:
        text, marked = chat.render_marked(messages, tools)
        indices = [k for k, message in enumerate(messages) if message.get("role") == "assistant"]
        if marked:
            turns = _marked_turns(text, marked, [messages[k] for k in indices], chat)
        else:
            turns = [_prefixed_turn(text, messages, k, tools, chat) for k in indices]
    except TemplateRefusal as error:
        raise Unlearnable(DataReason.TEMPLATE_REFUSES, str(error)) from error
    _check_ends(text, turns, [messages[k] for k in indices], chat)
    return text, turns


def _marked_turns(
    text: str, spans: Sequence[tuple[int, int]], messages: Sequence[Message], chat: ChatTokenizer
) -> list[Turn]:
    if len(spans) != len(messages):
        detail = f"{len(spans)} generation blocks for {len(messages)} turns of the assistant"
        raise Unlearnable(DataReason.TURNS_UNMARKED, detail)
    turns = []
    for (start, stop), message in zip(spans, messages, strict=True):
        # The block may end before the token that ends the turn, or behind the white space that follows it.
        behind = re.compile(rf"\s*(?:{chat.special_pattern.pattern})").match(text, stop)
        has_end = _last_token(text[start:stop], chat) is not None
        turns.append(_settle(text, start, stop if has_end or not behind else behind.end(), message, chat))
    return turns


def _prefixed_turn(
    text: str, messages: Sequence[Message], k: int, tools: Sequence[Mapping[str, Any]] | None, chat: ChatTokenizer
) -> Turn:
    before = chat.render_marked(messages[:k], tools, add_generation_prompt=True).text
    if not text.startswith(before):
        raise Unlearnable(DataReason.NOT_PREFIX_STABLE, f"before turn {k + 1}")
    start, message = len(before), messages[k]
    words = _words(message)
    if words and not reasoning_of(message) and not message.get("tool_calls"):
        begin = start + len(text[start:]) - len(text[start:].lstrip())
        if text.startswith(words, begin):
            words_end = begin + len(words)
            ending = re.compile(rf"\s*(?:{chat.special_pattern.pattern})").match(text, words_end)
            if ending:
                return Turn(start, words_end, ending.end())
    upto = chat.render_marked(messages[: k + 1], tools).text
    if not text.startswith(upto) or len(upto) <= start:
        raise Unlearnable(DataReason.NOT_PREFIX_STABLE, f"after turn {k + 1}")
    return _settle(text, start, len(upto), message, chat)


def _settle(text: str, start: int, stop: int, message: Message, chat: ChatTokenizer) -> Turn:
    """The turn within `[start, stop)`: find its end token and check the rest against the message."""
    ending = _last_token(text[start:stop], chat)
    if ending is None:
        raise Unlearnable(DataReason.NO_END_OF_TURN)
    inner = text[start : start + ending[0]]
    words_end = start + len(inner.rstrip())
    rendered, words, reasoning = _squeezed(inner), _squeezed(_words(message)), _squeezed(reasoning_of(message))
    if reasoning not in rendered:
        raise Unlearnable(DataReason.REASONING_DROPPED, "and what is learned would not be what was said")
    if words not in rendered or not (message.get("tool_calls") or rendered.endswith(words)):
        raise Unlearnable(DataReason.WORDS_CHANGED)
    added = "" if reasoning or message.get("tool_calls") else rendered.removesuffix(words)
    return Turn(start, words_end, start + ending[1], added)


def _last_token(part: str, chat: ChatTokenizer) -> tuple[int, int] | None:
    """The span of the first of the special tokens that end a part, ignoring white space."""
    stop, found = len(part.rstrip()), None
    matches = list(chat.special_pattern.finditer(part, 0, stop))
    for match in reversed(matches):
        if match.end() != stop:
            break
        found = match.span()
        stop = len(part[: match.start()].rstrip())
    return found


def _check_ends(text: str, turns: Sequence[Turn], messages: Sequence[Message], chat: ChatTokenizer) -> None:
    """Check that all turns end with the same token. Without an end token the next turn's header would look like
    one."""
    if not turns:
        return
    last = text[turns[-1].words_end : turns[-1].end].strip()
    for turn, message in zip(turns, messages, strict=True):
        if text[turn.words_end : turn.end].strip() != last and not message.get("tool_calls"):
            raise Unlearnable(DataReason.NO_END_OF_TURN, "in an earlier turn")


def _words(message: Message) -> str:
    content = message.get("content")
    return content.strip() if isinstance(content, str) else ""


def _squeezed(text: str) -> str:
    """The text without white space: templates trim and re-wrap it."""
    return "".join(text.split())

"""What is sent to an OpenAI-compatible server, and what its answers and refusals mean. Nothing here sends.

The answer that goes into the journal is the raw one, as the server gave it: reasoning is split off later.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from potstill.recipe import EndpointTeacher
from potstill.types import Answer, Finish, Request

RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
"""Statuses after which the same request may be answered. 409 is a lock that some servers time out on."""

_TOO_LONG = re.compile(r"context|too long|too many tokens|maximum.{0,20}(length|tokens)|exceed", re.IGNORECASE)
_UNKNOWN = re.compile(
    r"unknown|unrecogni[sz]ed|unexpected|unsupported|not supported|not permitted|forbidden|extra|does not support",
    re.IGNORECASE,
)
_NO_MORE_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_HALVES = re.compile(r"[\ud800-\udfff]")
_LONGEST_QUOTE = 400
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_FINISHES = get_args(Finish)
_ELSEWHERE = {"eos": "stop", "stop_sequence": "stop", "max_tokens": "length", "function_call": "tool_calls"}
"""Names that some servers have for how an answer ended."""


@dataclass(frozen=True)
class Trouble:
    """Why an attempt brought no answer.

    `what` is what to do: `retry` it, leave this `request`, or end the `run` (every other request would fail alike).
    `billed` says that the server may have worked for it, and may charge for that. `field` is the field of the request
    that it does not take.
    """

    what: Literal["retry", "request", "run"]
    reason: str
    detail: str = ""
    billed: bool = False
    field: str | None = None
    fix: str = ""


def body_of(request: Request, settings: EndpointTeacher, prompt: str | None, seed: int | None) -> dict[str, Any]:
    """The JSON of a request. One answer is asked for: how many servers take `n` seriously is not known.

    Args:
        request: what to ask.
        settings: of the teacher.
        prompt: the rendered prompt, for `api: completions`.
        seed: of the draws, where they are drawn and the server is to be told.
    """
    sampling = request.sampling
    body: dict[str, Any] = {"model": settings.model}
    if settings.api == "completions":
        body["prompt"] = prompt
    else:
        asked = request.messages
        body["messages"] = (
            [{"role": "user", "content": request.prompt}] if asked is None else [dict(message) for message in asked]
        )
        if request.tools is not None:
            body["tools"] = [dict(tool) for tool in request.tools]
    body[settings.max_tokens_field] = sampling.max_new_tokens
    body["temperature"] = sampling.temperature
    if sampling.temperature > 0:
        body["top_p"] = sampling.top_p
        if sampling.top_k > 0:
            body["top_k"] = sampling.top_k
        if seed is not None:
            body["seed"] = seed
    if settings.logprobs:
        body["logprobs"] = True if settings.api == "chat" else 1
    for field in settings.omit:
        body.pop(field, None)
    body.update(settings.extra.sent())
    return body


def encoded(body: Mapping[str, Any]) -> bytes:
    """The JSON of a request as it is sent."""
    return _ENCODER.encode(body).encode()


def read_answer(content: bytes, settings: EndpointTeacher, sent: Mapping[str, Any]) -> Answer | Trouble:
    """The answer in a response of status 200.

    Tokens that the server does not count stand at their bound: the bytes of what was read and written. In the place of
    half a surrogate pair, which JSON can say and no file can hold, stands U+FFFD.
    """
    try:
        document = json.loads(content)
    except ValueError as error:
        return Trouble("retry", "an answer that is no whole JSON", str(error), billed=True)
    if not isinstance(document, dict):
        return Trouble("retry", "an answer that is no JSON object", billed=True)
    if "error" in document and "choices" not in document:
        # Relays answer 200 when the server behind them failed.
        inner = document["error"] if isinstance(document["error"], dict) else {"message": str(document["error"])}
        code = inner.get("code")
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
        return read_refusal(status, json.dumps({"error": inner}).encode(), sent)
    choices = document.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        count = len(choices) if isinstance(choices, list) else 0
        return Trouble("run", f"the server gave {count} choices where one was asked for", billed=True)
    choice = choices[0]
    text, reasoning = _said(choice, settings.api)
    if text is None:
        return Trouble("run", "the server's answer has no text where one is expected", _quote(content), billed=True)
    finish = _finish(choice.get("finish_reason"))
    logprob = _mean_logprob(choice) if settings.logprobs else None
    # What was withheld, or holds nothing, has none anywhere.
    if settings.logprobs and logprob is None and text.strip() and finish in ("stop", "length"):
        fix = "set the teacher's logprobs: false, or ask a server that gives them (vLLM does)"
        reason = "the server takes the request for log-probabilities, and gives none"
        return Trouble("run", reason, billed=True, fix=fix)
    text, reasoning = _HALVES.sub("\ufffd", text), reasoning and _HALVES.sub("\ufffd", reasoning)
    usage = document.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    read, written = (count if isinstance(count, int) and not isinstance(count, bool) else None for count in counts)
    if read is None:
        read = bound_tokens(sent)
    if written is None:
        written = min(len(f"{reasoning or ''}{text}".encode()) + 1, int(sent[settings.max_tokens_field]))
    return Answer(text, finish, read, written, reasoning, logprob)


def read_refusal(status: int, content: bytes, sent: Mapping[str, Any]) -> Trouble:
    """What a response that is no answer means.

    A request is left alone if it is refused for what it holds; the run ends if it is refused for who asks, or for a
    field that all requests have.
    """
    message, code, named = _error_of(content)
    said = f"{status}: {message}" if message else str(status)
    if code in _NO_MORE_MONEY:
        return Trouble("run", "the account has no more credit", said, fix="top it up, and say the same command again")
    if status in RETRYABLE:
        return Trouble("retry", f"status {status}", message)
    if status in (401, 403):
        fix = "put the key into an environment variable, and its name into the teacher's api_key_env"
        return Trouble("run", "the server does not let us in", said, fix=fix)
    if 300 <= status < 400:
        return Trouble("run", "the server sends us elsewhere", said, fix="give that address as the teacher's base_url")
    if status in (404, 405):
        fix = "compare the teacher's base_url (it usually ends in /v1), api and model with what the server offers"
        return Trouble("run", "the server knows no such address or model", said, fix=fix)
    field = _refused_field(status, message, code, named, sent)
    if field is not None:
        return Trouble("run", f"the server does not take {field!r}", said, field=field, fix=_fix(field, sent))
    return Trouble("request", f"refused by the server ({status})", message)


def bound_tokens(body: Mapping[str, Any]) -> int:
    """At least as many tokens as a server reads for a request, whatever its tokenizer.

    A token stands for at least one byte of the text; to that come what the template writes around a message, and a
    system prompt of its own.
    """
    if isinstance(body.get("prompt"), str):
        return len(body["prompt"].encode()) + 8
    messages: Sequence[Mapping[str, Any]] = body.get("messages", ())
    tokens = 64
    for message in messages:
        content = message.get("content")
        plain = isinstance(content, str) and len(message) == 2
        tokens += len((content if plain else json.dumps(message, ensure_ascii=False)).encode()) + 16  # type: ignore[union-attr]
    if "tools" in body:
        tokens += 2 * len(json.dumps(body["tools"], ensure_ascii=False).encode()) + 512
    return tokens


def _said(choice: Mapping[str, Any], api: str) -> tuple[str | None, str | None]:
    """Text and reasoning of a choice; no text at all is None."""
    if api == "completions":
        text = choice.get("text")
        return (text if isinstance(text, str) else None), None
    message = choice.get("message")
    if not isinstance(message, dict):
        return None, None
    found = (message.get(name) for name in ("reasoning_content", "reasoning"))
    reasoning = next((r for r in found if isinstance(r, str) and r), None)
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text", "") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(parts)
    if content is None:
        # Nothing but reasoning, tool calls, or a refusal in a field of its own.
        content = message.get("refusal") or ""
    return (content if isinstance(content, str) else None), reasoning


def _mean_logprob(choice: Mapping[str, Any]) -> float | None:
    """The mean over the tokens of a choice; None if the server did not give them. JSON has no −∞: some servers write
    −9999 for it."""
    told = choice.get("logprobs")
    if not isinstance(told, dict):
        return None
    several = told.get("token_logprobs")  # completions; in chats a list of objects
    if not isinstance(several, list):
        content = told.get("content")
        several = [token.get("logprob") for token in content if isinstance(token, dict)] if content else []
    numbers = [float(one) for one in several if isinstance(one, (int, float)) and not isinstance(one, bool)]
    found = [one for one in numbers if math.isfinite(one)]
    return sum(found) / len(found) if found else None


def _finish(said: Any) -> Finish:
    name = _ELSEWHERE.get(said, said)
    # A server that says nothing did not say that it was cut short.
    return cast(Finish, name) if name in _FINISHES else "stop"


def _error_of(content: bytes) -> tuple[str, str, tuple[str, ...]]:
    """The message of an error, its code, and the fields that it names."""
    try:
        document = json.loads(content)
    except ValueError:
        return _quote(content), "", ()
    error = document.get("error", document) if isinstance(document, dict) else document
    if not isinstance(error, dict):
        return _quote(str(error).encode(errors="replace")), "", ()
    named: list[str] = [str(error["param"])] if error.get("param") else []
    detail = error.get("detail")
    if isinstance(detail, list):  # FastAPI's 422
        for item in detail:
            if isinstance(item, dict):
                named += [str(part) for part in item.get("loc", ())]
        detail = "; ".join(str(item.get("msg", "")) for item in detail if isinstance(item, dict)) + f" {named}"
    message = error.get("message") or detail or json.dumps(error, ensure_ascii=False)
    code = str(error.get("code") or error.get("type") or "")
    return _quote(str(message).encode(errors="replace")), code, tuple(named)


def _refused_field(status: int, message: str, code: str, named: Sequence[str], sent: Mapping[str, Any]) -> str | None:
    """The field of a request that every request has, and that the server does not take; None if that is not it."""
    if "context_length" in code or (_TOO_LONG.search(message) and not _UNKNOWN.search(message)):
        return None
    ours = [name for name in sent if name not in ("model", "messages", "prompt", "tools")]
    if status != 422 and not _UNKNOWN.search(message):
        return next((name for name in ours if name in named), None)
    in_words = [name for name in ours if re.search(rf"(?<![a-z_]){re.escape(name)}(?![a-z_])", message)]
    return next((name for name in ours if name in named), None) or (in_words[0] if in_words else None)


def _fix(field: str, sent: Mapping[str, Any]) -> str:
    other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
    if field in other:
        return f"set the teacher's max_tokens_field: {other[field]}"
    if field in ("temperature", "top_p", "seed"):
        said = f" (it is {sent[field]}), or change it" if field != "seed" else ""
        return f"add {field} to the teacher's omit{said}"
    if field == "logprobs":
        return "set the teacher's logprobs: false"
    return "set generate.top_k: 0" if field == "top_k" else f"drop {field} from the teacher's extra"


def _quote(content: bytes) -> str:
    said = " ".join(content[: 4 * _LONGEST_QUOTE].decode(errors="replace").split())
    return said if len(said) <= _LONGEST_QUOTE else f"{said[:_LONGEST_QUOTE]}…"

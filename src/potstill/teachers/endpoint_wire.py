"""The requests to an OpenAI-compatible server, and the meaning of its responses. Nothing here sends, and no response
makes it raise.

Answers go into the journal raw; reasoning is split off later.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args
from urllib.parse import quote

from potstill.recipe import EndpointTeacher
from potstill.types import Answer, Finish, Reason, Request

RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
"""Statuses after which the same request may succeed. 409 is a lock that some servers time out on."""
ERROR_BYTES = 65_536
"""Maximum size of an error's body that is read."""

_TOO_LONG = re.compile(r"context|too long|too many tokens|maximum.{0,20}(length|tokens)|exceed", re.IGNORECASE)
_TOO_LARGE = re.compile(r"request (?:is )?too large", re.IGNORECASE)
_UNKNOWN = re.compile(
    r"unknown|unrecogni[sz]ed|unexpected|unsupported|not supported|not permitted|forbidden|extra|does not support",
    re.IGNORECASE,
)
_NO_MORE_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_HALVES = re.compile(r"[\ud800-\udfff]")
_LONGEST_QUOTE = 400
_MOST_TOKENS = 2**53
"""Larger counts are ignored."""
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_FINISHES = get_args(Finish)
_FINISH_NAMES = {"eos": "stop", "stop_sequence": "stop", "max_tokens": "length", "function_call": "tool_calls"}
"""Other servers' names for how an answer ended."""

Redact = Callable[[str], str]
"""Removes the key from a server's text."""


@dataclass(frozen=True)
class Trouble:
    """Why an attempt gave no answer.

    Attributes:
        action: `retry` the request, `reject` it, or `stop` the run, because every other request would fail too.
        reason: a short text from a small set; a `Reason` if the request is rejected.
        detail: the server's own text, without the key, cut at a few hundred characters.
        billed: the server may have done work that it charges for.
        unreadable: the server is up, but its response is no answer.
        field: the field of the request that the server does not accept.
        fix: what to do, if it ends the run.
    """

    action: Literal["retry", "reject", "stop"]
    reason: str
    detail: str = ""
    billed: bool = False
    unreadable: bool = False
    field: str | None = None
    fix: str = ""


class Redactor:
    """Removes a key from a server's text, in every form that is cheap to search for: verbatim, percent-encoded,
    JSON-escaped, in hexadecimal, in base64 (alone, or inside a longer text), and each of these reversed. A part of the
    key suffices, since servers shorten long keys when they repeat them.

    Args:
        key: the key; None if there is none. Keys of fewer than 8 characters (`none`, `EMPTY`) are placeholders and are
            not removed: answers may well contain the word.
    """

    SHORTEST = 8
    PART = 12
    """Any run of this many characters of the key is removed, and some runs of fewer than `PART + STEP`."""
    STEP = 4
    MARK = "…"

    def __init__(self, key: str | None) -> None:
        self._key = key if key is not None and len(key) >= self.SHORTEST else ""
        forms = dict.fromkeys(_encodings(self._key)) if self._key else {}
        self._forms = sorted((*forms, *(form[::-1] for form in forms)), key=len, reverse=True)
        last = len(self._key) - self.PART
        self._parts = [(start, self._key[start : start + self.PART]) for start in range(0, last + 1, self.STEP)]

    def __call__(self, text: str) -> str:
        """The text without the key."""
        if not self._key:
            return text
        for form in self._forms:
            if form in text:
                text = text.replace(form, self.MARK)
        for start, part in self._parts:
            while (at := text.find(part)) >= 0:
                text = self._without_run(text, at, start)
        return text

    def _without_run(self, text: str, at: int, start: int) -> str:
        """The text without the longest run of the key around `text[at]`, which is `key[start]`."""
        key, stop, place = self._key, at, start
        while stop < len(text) and place < len(key) and text[stop] == key[place]:
            stop, place = stop + 1, place + 1
        while at > 0 and start > 0 and text[at - 1] == key[start - 1]:
            at, start = at - 1, start - 1
        return text[:at] + self.MARK + text[stop:]


def _encodings(key: str) -> Iterator[str]:
    """The forms of a key, the key itself first."""
    raw = key.encode()
    yield key
    yield quote(key, safe="")
    yield quote(key)
    yield json.dumps(key)[1:-1]
    yield "".join(f"\\u{ord(character):04x}" for character in key)
    yield raw.hex()
    yield raw.hex().upper()
    for before in range(3):
        # Base64 of the key depends on its offset within a triple of bytes. The first and last characters also depend
        # on its neighbours, and are left out.
        coded = base64.b64encode(b"\0" * before + raw).decode().rstrip("=")
        inner = coded[(0, 2, 3)[before] : len(coded) - (1 if (before + len(raw)) % 3 else 0)]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


def no_redaction(text: str) -> str:
    """For callers without a key."""
    return text


def body_of(request: Request, settings: EndpointTeacher, prompt: str | None, seed: int | None) -> dict[str, Any]:
    """The JSON of a request. It requests one answer, since not every server honours `n`.

    Args:
        request: the request.
        settings: the teacher's.
        prompt: the rendered prompt, for `api: completions`.
        seed: the sampling seed; None for greedy requests.
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
    if settings.logprobs or settings.answer_logprobs is not None:
        several = settings.answer_logprobs or 1
        body["logprobs"] = True if settings.api == "chat" else several
        if settings.api == "chat" and settings.answer_logprobs is not None:
            body["top_logprobs"] = several
    for field in settings.omit:
        body.pop(field, None)
    body.update(settings.extra.sent())
    return body


def encoded(body: Mapping[str, Any]) -> bytes:
    """The JSON of a request as it is sent."""
    return _ENCODER.encode(body).encode()


def most_bytes(sent: Mapping[str, Any], settings: EndpointTeacher, request_bytes: int) -> int:
    """The maximum size of an answer's body (bytes, decompressed).

    512 bytes a token cover the longest tokens of known vocabularies (some 100 bytes, nearly always far fewer) escaped
    as JSON, with reasoning beside them; log-probabilities repeat every token as text and as a list of bytes. Some
    servers repeat the request.
    """
    per_token = 2048 if settings.logprobs or settings.answer_logprobs is not None else 512
    per_token += 512 * (settings.answer_logprobs or 0)
    return ERROR_BYTES + per_token * int(sent[settings.max_tokens_field]) + 2 * request_bytes


def read_answer(
    content: bytes, settings: EndpointTeacher, sent: Mapping[str, Any], redact: Redact = no_redaction
) -> Answer | Trouble:
    """The answer in a response of status 200.

    If the server does not count tokens, their upper bound is used: the bytes read and written. Lone surrogates, which
    JSON allows and files cannot hold, become U+FFFD.
    """
    try:
        return _answer(content, settings, sent, redact)
    except (ValueError, RecursionError) as error:
        # json.loads fails on: not JSON, not UTF-8, a number of 5,000 digits, or nesting a thousand levels deep.
        return _unreadable(_not_json(content, error), _quote(content, redact))


def _answer(content: bytes, settings: EndpointTeacher, sent: Mapping[str, Any], redact: Redact) -> Answer | Trouble:
    document = json.loads(content)
    if not isinstance(document, dict):
        return _unreadable("an answer that is no JSON object", _quote(content, redact))
    if document.get("error") and not document.get("choices"):
        # Relays answer 200 when the server behind them failed.
        error = document["error"] if isinstance(document["error"], dict) else {"message": str(document["error"])}
        return read_refusal(_status_of(error), json.dumps({"error": error}).encode(), sent, redact)
    choices = document.get("choices")
    if not isinstance(choices, list) or len(choices) != 1:
        count = len(choices) if isinstance(choices, list) else "no"
        fix = "drop what asks for several (n), or compare the teacher's base_url and api with what the server offers"
        return _unreadable(f"{count} choices where one was asked for", _quote(content, redact), fix)
    choice = choices[0]
    if not isinstance(choice, dict):
        return _unreadable("a choice that is no JSON object", _quote(content, redact))
    finish = _finish(choice.get("finish_reason"))
    text, reasoning = _texts_of(choice, settings.api, finish)
    if text is None:
        return _unreadable("an answer without a text", _quote(content, redact))
    logprob = _mean_logprob(choice) if settings.logprobs else None
    likeliest = _likeliest(choice) if settings.answer_logprobs is not None else None
    # A withheld or empty answer has none on any server.
    lacks = "logprobs: false" if settings.logprobs and logprob is None else ""
    lacks = "answer_logprobs: null" if settings.answer_logprobs is not None and not likeliest else lacks
    if lacks and text.strip() and finish in ("stop", "length"):
        fix = f"set the teacher's {lacks}, or use a server that gives them (vLLM does)"
        # A property of the server, not of this answer: every other answer would lack them too.
        reason = "the server takes the request for log-probabilities, and gives none"
        return Trouble("stop", reason, billed=True, fix=fix)
    written_text, text = text, redact(_HALVES.sub("\ufffd", text))
    if text != _HALVES.sub("\ufffd", written_text):
        likeliest = None  # its tokens spell the key
    reasoning = redact(_HALVES.sub("\ufffd", reasoning)) if reasoning else None
    usage = document.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    read, written = _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))
    if read is None:
        read = bound_tokens(sent)
    if written is None:
        written = min(len(f"{reasoning or ''}{text}".encode()) + 1, int(sent[settings.max_tokens_field]))
    return Answer(text, finish, read, written, reasoning, logprob, likeliest)


def read_refusal(status: int, content: bytes, sent: Mapping[str, Any], redact: Redact = no_redaction) -> Trouble:
    """The meaning of a response that is no answer.

    A request is rejected if it is refused for its content; the run stops if it is refused for its credentials, or for
    a field that all requests have.
    """
    try:
        message, code, named = _error_of(content, redact)
    except (ValueError, RecursionError):
        message, code, named = _quote(content, redact), "", ()
    detail = f"{status}: {message}" if message else str(status)
    if code in _NO_MORE_MONEY:
        return Trouble("stop", "the account has no more credit", detail, fix="top it up and run the command again")
    if status == 429 and _TOO_LARGE.search(message):
        return Trouble("reject", Reason.REFUSED, detail)  # larger than a whole minute's limit
    if status in RETRYABLE:
        return Trouble("retry", f"status {status}", message)
    if status in (401, 403):
        fix = "put the key into an environment variable, and its name into the teacher's api_key_env"
        return Trouble("stop", "the server refuses access", detail, fix=fix)
    if 300 <= status < 400:
        return Trouble("stop", "the server redirects to another address", detail, fix="name it as teacher.base_url")
    if status in (404, 405):
        fix = "compare the teacher's base_url (it usually ends in /v1), api and model with what the server offers"
        return Trouble("stop", "the server has no such address or model", detail, fix=fix)
    if not 400 <= status < 600:
        return _unreadable(f"status {status}", message)
    field = _refused_field(status, message, code, named, sent)
    if field is not None:
        return Trouble("stop", f"the server does not take {field!r}", detail, field=field, fix=_fix(field, sent))
    return Trouble("reject", Reason.REFUSED, detail)


def bound_tokens(body: Mapping[str, Any]) -> int:
    """An upper bound on the tokens that a server reads for a request, whatever its tokenizer.

    A token covers at least one byte of the text; the template adds text around a message, and perhaps its own system
    prompt.
    """
    if isinstance(body.get("prompt"), str):
        return len(body["prompt"].encode()) + 8
    messages: Sequence[Mapping[str, Any]] = body.get("messages", ())
    tokens = 64
    for message in messages:
        content = message.get("content")
        text = content if isinstance(content, str) and len(message) == 2 else json.dumps(message, ensure_ascii=False)
        tokens += len(text.encode()) + 16
    if "tools" in body:
        tokens += 2 * len(json.dumps(body["tools"], ensure_ascii=False).encode()) + 512
    return tokens


def _unreadable(reason: str, detail: str = "", fix: str = "") -> Trouble:
    fix = fix or "compare the teacher's base_url and api with what the server offers"
    return Trouble("retry", reason, detail, billed=True, unreadable=True, fix=fix)


def _not_json(content: bytes, error: Exception) -> str:
    """Describe a body that is not JSON."""
    start = content[:64].lstrip().lower()
    if not start:
        return "an empty answer"
    if start.startswith((b"data:", b"event:", b": ")):
        return "a stream of events where one answer was asked for"
    if start.startswith(b"<"):
        return "a page of HTML or XML where JSON was asked for"
    return "JSON nested too deeply" if isinstance(error, RecursionError) else "an answer that is not valid JSON"


def _status_of(error: Mapping[str, Any]) -> int:
    """The status in an error that came with status 200."""
    for name in ("code", "status", "status_code"):
        code = error.get(name)
        if isinstance(code, str) and re.fullmatch(r"[45]\d\d", code):
            return int(code)
        if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600:
            return code
    return 500


def _count(value: Any) -> int | None:
    """A number of tokens; None if it is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_TOKENS else None


def _texts_of(choice: Mapping[str, Any], api: str, finish: Finish) -> tuple[str | None, str | None]:
    """Text and reasoning of a choice; the text is None if nothing could be an answer."""
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
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(part for part in parts if isinstance(part, str)) if parts else None
    if content is None:
        refusal = message.get("refusal")
        # No answer but reasoning, tool calls, text withheld by a filter, or nothing before max_tokens.
        empty = "" if reasoning or message.get("tool_calls") or finish != "stop" else None
        content = refusal if isinstance(refusal, str) and refusal else empty
    return (content if isinstance(content, str) else None), reasoning


def _mean_logprob(choice: Mapping[str, Any]) -> float | None:
    """The mean over a choice's tokens; None if the server gave none. JSON has no −∞: some servers write −9999 for
    it."""
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return None
    several = logprobs.get("token_logprobs")  # completions; chats have a list of objects
    if not isinstance(several, list):
        content = logprobs.get("content")
        tokens = content if isinstance(content, list) else ()
        several = [token.get("logprob") for token in tokens if isinstance(token, dict)]
    numbers = [one for one in several if isinstance(one, (int, float)) and not isinstance(one, bool)]
    found = [float(one) for one in numbers if abs(one) < 1e9 and math.isfinite(one)]
    return sum(found) / len(found) if found else None


def _likeliest(choice: Mapping[str, Any]) -> list[Any] | None:
    """Of each written token [key, log-probability, [[key, log-probability], …]]: see `capture/written.py`. None if the
    server gave none, or what is no log-probability."""
    try:
        logprobs = choice["logprobs"]
        if (content := logprobs.get("content")) is not None:
            return [
                [_key(of), _log(of["logprob"]), [[_key(other), _log(other["logprob"])] for other in of["top_logprobs"]]]
                for of in content
            ]
        columns = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
        return [
            [_key({"token": token}), _log(value), [[_key({"token": t}), _log(v)] for t, v in (pairs or {}).items()]]
            for token, value, pairs in columns
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def _key(of: Mapping[str, Any]) -> int | str:
    """A token's id, where the server gives it, or its bytes in hexadecimal."""
    if isinstance(of.get("id"), int) and not isinstance(of["id"], bool):
        return int(of["id"])
    text = str(of["token"])
    if named := re.fullmatch(r"token_id:(\d{1,9})", text):  # vLLM's return_tokens_as_token_ids
        return int(named[1])
    raw = of.get("bytes")
    return bytes(raw).hex() if isinstance(raw, list) else text.encode(errors="replace").hex()


def _log(value: Any) -> float:
    """A log-probability. Some servers write −9999 for −∞, which JSON does not have. Raises ValueError: it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -math.inf <= value <= 1e-3:
        raise ValueError("no log-probability")
    return round(min(max(float(value), -_LEAST_LOG), 0.0), 5)


_LEAST_LOG = 1e3


def _finish(name: Any) -> Finish:
    name = _FINISH_NAMES.get(name, name) if isinstance(name, str) else None
    # Without a reason, the answer counts as finished.
    return cast(Finish, name) if name in _FINISHES else "stop"


def _error_of(content: bytes, redact: Redact) -> tuple[str, str, tuple[str, ...]]:
    """The message of an error (short, without the key), its code, and the fields that it names."""
    try:
        document = json.loads(content)
    except ValueError:
        return _quote(content, redact), "", ()
    error = document.get("error", document) if isinstance(document, dict) else document
    if not isinstance(error, dict):
        return _short(str(error), redact), "", ()
    named: list[str] = [str(error["param"])] if error.get("param") else []
    detail = error.get("detail")
    if isinstance(detail, list):  # FastAPI's 422
        items = [item for item in detail if isinstance(item, dict)]
        for item in items:
            place = item.get("loc")
            named += [str(part) for part in place] if isinstance(place, list) else []
        detail = "; ".join(str(item.get("msg", "")) for item in items) + f" {named}"
    message = error.get("message") or detail or json.dumps(error, ensure_ascii=False)
    code = str(error.get("code") or error.get("type") or "")
    return _short(str(message), redact), code, tuple(named)


def _refused_field(status: int, message: str, code: str, named: Sequence[str], sent: Mapping[str, Any]) -> str | None:
    """The field of the request that the server does not accept, if every request has it; else None."""
    if "context_length" in code or (_TOO_LONG.search(message) and not _UNKNOWN.search(message)):
        return None
    common = [name for name in sent if name not in ("model", "messages", "prompt", "tools")]
    if status != 422 and not _UNKNOWN.search(message):
        return next((name for name in common if name in named), None)
    in_words = [name for name in common if re.search(rf"(?<![a-z_]){re.escape(name)}(?![a-z_])", message)]
    return next((name for name in common if name in named), None) or (in_words[0] if in_words else None)


def _fix(field: str, sent: Mapping[str, Any]) -> str:
    other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
    if field in other:
        return f"set the teacher's max_tokens_field: {other[field]}"
    if field in ("temperature", "top_p", "seed"):
        change = f" (it is {sent[field]}), or change it" if field != "seed" else ""
        return f"add {field} to the teacher's omit{change}"
    if field == "top_logprobs":
        return "lower the teacher's answer_logprobs, or leave it out"
    if field == "logprobs":
        return "set the teacher's logprobs: false"
    return "set generate.top_k: 0" if field == "top_k" else f"drop {field} from the teacher's extra"


def _quote(content: bytes, redact: Redact) -> str:
    """The beginning of a body as one short line."""
    return _short(content.decode(errors="replace"), redact)


def _short(text: str, redact: Redact) -> str:
    """One line without the key. The key is removed first, so that no part of it remains where the text is cut."""
    line = " ".join(redact(_HALVES.sub("\ufffd", text))[: 4 * _LONGEST_QUOTE].split())
    return line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]}…"


class Exchange(Protocol):
    """What is exchanged with a server: where requests go, how long a response may be, and how it is read."""

    url: str

    def most_bytes(self, sent: Mapping[str, Any], size: int) -> int:
        """The maximum size of the response to a request of `size` bytes."""
        ...

    def read(self, content: bytes, sent: Mapping[str, Any], redact: Redact) -> Answer | Trouble:
        """The answer in a response of status 200."""
        ...


class Writing:
    """Texts that a model writes."""

    def __init__(self, settings: EndpointTeacher) -> None:
        self.settings, self.url = settings, settings.url

    def most_bytes(self, sent: Mapping[str, Any], size: int) -> int:
        """As `most_bytes`."""
        return most_bytes(sent, self.settings, size)

    def read(self, content: bytes, sent: Mapping[str, Any], redact: Redact) -> Answer | Trouble:
        """As `read_answer`."""
        return read_answer(content, self.settings, sent, redact)

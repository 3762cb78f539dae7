"""What is sent, and what answers and refusals mean."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.recipe import EndpointTeacher
from potstill.teachers.endpoint_wire import (
    RETRYABLE,
    Redactor,
    Trouble,
    body_of,
    bound_tokens,
    most_bytes,
    read_answer,
    read_refusal,
)
from potstill.types import Answer, Request, Sampling

CHAT = EndpointTeacher(base_url="http://127.0.0.1:1/v1", model="m")
PLAIN = EndpointTeacher(base_url="http://127.0.0.1:1/v1", model="m", api="completions")
SAMPLED = Sampling(64, temperature=0.7, top_p=0.9, top_k=20)


def sent(**changes: Any) -> dict[str, Any]:
    return body_of(Request(SAMPLED, prompt="Hello"), CHAT.model_copy(update=changes), None, seed=5)


def chat(message: Any, finish: str = "stop", **more: Any) -> bytes:
    usage = {"prompt_tokens": 9, "completion_tokens": 4}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}], "usage": usage} | more).encode()


def test_every_sampler_field_is_sent_and_n_is_not() -> None:
    assert sent() == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 64,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "seed": 5,
    }
    greedy = body_of(Request(Sampling(8), messages=({"role": "user", "content": "Hi"},)), CHAT, None, None)
    assert set(greedy) == {"model", "messages", "max_tokens", "temperature"} and greedy["temperature"] == 0


def test_fields_are_renamed_left_out_and_added_as_the_settings_say() -> None:
    teacher = EndpointTeacher(
        base_url="http://h/v1",
        model="m",
        max_tokens_field="max_completion_tokens",
        omit=("top_p", "seed"),
        extra={"min_p": 0.1, "stop": ["END"]},
    )
    body = body_of(Request(SAMPLED, prompt="Hello"), teacher, None, seed=5)
    assert body["max_completion_tokens"] == 64 and body["min_p"] == 0.1 and body["stop"] == ["END"]
    assert not {"max_tokens", "top_p", "seed"} & set(body)


def test_tools_and_whole_messages_are_sent_and_completions_get_the_rendered_prompt() -> None:
    tools = ({"type": "function", "function": {"name": "look"}},)
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi", "name": "Ann"})
    asked = Request(SAMPLED, messages=messages, tools=tools)
    body = body_of(asked, CHAT, None, None)
    assert body["messages"] == [dict(m) for m in messages] and body["tools"] == [dict(t) for t in tools]
    assert body_of(asked, PLAIN, "rendered", None)["prompt"] == "rendered"


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "Hi."}, "Hi.", None),
        ({"content": "Hi.", "reasoning_content": "They greet."}, "Hi.", "They greet."),
        ({"content": "Hi.", "reasoning": "They greet."}, "Hi.", "They greet."),
        ({"content": "Hi.", "reasoning_content": None, "reasoning": ""}, "Hi.", None),
        ({"content": "<think>a</think>Hi."}, "<think>a</think>Hi.", None),  # raw: split behind the journal
        ({"content": None, "reasoning_content": "They"}, "", "They"),
        ({"content": None, "refusal": "I will not."}, "I will not.", None),
        ({"content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "."}]}, "Hi.", None),
    ],
)
def test_an_answer_is_read_from_every_form_of_message(message: Any, text: str, reasoning: str | None) -> None:
    assert read_answer(chat(message), CHAT, sent()) == Answer(text, "stop", 9, 4, reasoning)


def test_half_a_surrogate_pair_is_replaced_and_whole_ones_stay() -> None:
    message = {"content": "a \ud83d b \udc4b \U0001f44b", "reasoning": "\udfff"}
    assert read_answer(chat(message), CHAT, sent()) == Answer("a \ufffd b \ufffd \U0001f44b", "stop", 9, 4, "\ufffd")
    parts = [{"type": "text", "text": "\ud83d"}, {"type": "text", "text": "."}]
    assert read_answer(chat({"content": parts}), CHAT, sent()) == Answer("\ufffd.", "stop", 9, 4)
    completion = json.dumps({"choices": [{"text": "\ud83d", "finish_reason": "stop"}]}).encode()
    answer = read_answer(completion, PLAIN, body_of(Request(Sampling(8), prompt="Tell"), PLAIN, "Tell", None))
    assert isinstance(answer, Answer) and answer.text == "\ufffd"
    refused = json.dumps({"error": {"message": "never \ud83d"}}).encode()
    assert read_refusal(400, refused, sent()).detail == "400: never \ufffd"


@pytest.mark.parametrize(
    ("said", "finish"),
    [("stop", "stop"), ("length", "length"), ("eos", "stop"), (None, "stop"), ("content_filter", "content_filter")],
)
def test_how_an_answer_ended(said: Any, finish: str) -> None:
    answer = read_answer(chat({"content": "Hi."}, finish=said), CHAT, sent())
    assert isinstance(answer, Answer) and answer.finish == finish


def test_a_completion_has_its_text_beside_the_choice() -> None:
    content = json.dumps({"choices": [{"text": " once", "finish_reason": "length"}]}).encode()
    body = body_of(Request(Sampling(8), prompt="Tell"), PLAIN, "Tell", None)
    assert read_answer(content, PLAIN, body) == Answer(" once", "length", len("Tell") + 8, 6)


def test_tokens_that_are_not_counted_stand_at_their_bound() -> None:
    content = json.dumps({"choices": [{"message": {"content": "Grüß"}, "finish_reason": "stop"}]}).encode()
    answer = read_answer(content, CHAT, sent())
    assert isinstance(answer, Answer)
    assert (answer.prompt_tokens, answer.completion_tokens) == (bound_tokens(sent()), len("Grüß".encode()) + 1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"choices": [{"mess', "not valid JSON"),
        (b"", "an empty answer"),
        (b"  <!DOCTYPE html><title>502</title>", "HTML"),
        (b'data: {"choices": []}\n\ndata: [DONE]\n\n', "a stream of events"),
        (b"[1]", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"choices": ' + b"9" * 5000 + b"}", "not valid JSON"),
        ("data: Größe".encode()[:-2], "a stream of events"),
        ('{"choices": "ß'.encode()[:-1], "not valid JSON"),
        (json.dumps({"choices": []}).encode(), "0 choices"),
        (json.dumps({"choices": [{"message": {"content": "Hi."}}] * 2}).encode(), "2 choices"),
        (json.dumps({"choices": {}}).encode(), "no choices"),
        (json.dumps({"choices": ["Hi."]}).encode(), "a choice that is no JSON object"),
        (chat({"content": None}), "an answer without a text"),
        (chat({"content": 5}), "an answer without a text"),
        (chat({"content": {"text": "Hi."}}), "an answer without a text"),
        (chat({"content": [5, {"type": "image"}]}), "an answer without a text"),
        (chat({"content": []}), "an answer without a text"),
        (chat(None), "an answer without a text"),
    ],
)
def test_an_answer_that_cannot_be_read_is_one_answers_trouble_and_is_asked_for_again(
    content: bytes, reason: str
) -> None:
    trouble = read_answer(content, CHAT, sent())
    assert isinstance(trouble, Trouble) and trouble.action == "retry" and reason in trouble.reason
    assert trouble.billed and trouble.unreadable


@pytest.mark.parametrize("finish", ["length", "content_filter", "tool_calls", "max_tokens"])
def test_no_content_is_an_empty_answer_where_the_server_says_why_there_is_none(finish: str) -> None:
    answer = read_answer(chat({"content": None}, finish=finish), CHAT, sent())
    assert isinstance(answer, Answer) and answer.text == "" and answer.finish != "stop"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def of_answers(anything: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """JSON that is nearly an answer: each part of it may be anything."""

    def record(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.fixed_dictionaries({}, optional=fields) | anything

    part = record(type=st.just("text") | anything, text=st.text(max_size=5) | anything)
    message = record(
        content=st.none() | st.text(max_size=9) | st.lists(part, max_size=3) | anything,
        reasoning=anything,
        reasoning_content=st.text(max_size=5) | anything,
        refusal=anything,
        tool_calls=anything,
    )
    logprobs = record(content=st.lists(record(logprob=anything), max_size=2) | anything, token_logprobs=anything)
    finish = st.sampled_from(["stop", "length", "content_filter"]) | anything
    choice = record(message=message, text=anything, finish_reason=finish, logprobs=logprobs)
    usage = record(prompt_tokens=anything, completion_tokens=anything)
    item = record(loc=anything, msg=anything)
    error = record(message=anything, code=anything, type=anything, param=anything, detail=st.lists(item) | anything)
    return record(choices=st.lists(choice, max_size=2) | anything, usage=usage, error=error)


BODIES = st.binary(max_size=80) | of_answers(JSON).map(lambda found: json.dumps(found).encode())


@given(BODIES, st.sampled_from([CHAT, PLAIN, CHAT.model_copy(update={"logprobs": True})]))
@settings(max_examples=500, deadline=None)
def test_nothing_in_an_answer_raises_or_ends_the_run_by_itself(content: bytes, teacher: EndpointTeacher) -> None:
    found = read_answer(content, teacher, sent())
    if isinstance(found, Answer):
        assert isinstance(found.text, str) and found.finish in ("stop", "length", "content_filter", "tool_calls")
        assert found.prompt_tokens >= 0 and found.completion_tokens >= 0
        found.text.encode()  # there are no halves of surrogate pairs in it
        json.dumps(found.to_dict(), allow_nan=False)
    else:
        assert found.reason and (found.unreadable or '"error"' in content.decode())


@given(st.integers(100, 999).filter(lambda status: status != 200), BODIES)
@settings(max_examples=500, deadline=None)
def test_every_status_with_every_body_has_a_meaning(status: int, content: bytes) -> None:
    found = read_refusal(status, content, sent())
    assert found.action in ("retry", "reject", "stop") and len(found.detail) < 500
    assert ("\n" not in found.detail and found.detail.isprintable()) or found.detail


@given(st.text('0123456789abcdefXYZ/+-_%\\é"', min_size=8, max_size=180), st.integers(0, 1000), st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_no_form_of_the_key_is_left_in_what_a_server_says(key: str, before: int, cut: int) -> None:
    """Not in errors, wherever they are cut, nor in answers."""
    redact, words = Redactor(key), "word " * (before // 5)
    coded = base64.b64encode(f"Bearer {key}".encode()).decode()
    forms = [key, quote(key, safe=""), json.dumps(key)[1:-1], key[::-1], key.encode().hex(), coded]
    for form in forms:
        said = f"{words}Incorrect key: {form[: len(form) - cut] or form} given"
        left = read_refusal(400, json.dumps({"error": {"message": said}}).encode(), sent(), redact).detail
        answer = read_answer(chat({"content": said, "reasoning": form}), CHAT, sent(), redact)
        assert isinstance(answer, Answer)
        for text in (left, answer.text, str(answer.reasoning)):
            assert form not in text
            assert not any(key[at : at + 15] in text for at in range(len(key) - 14))


def test_a_placeholder_for_a_key_is_left_in_answers() -> None:
    assert Redactor("EMPTY")("EMPTY is a word") == "EMPTY is a word" and Redactor(None)("none") == "none"


def test_the_longest_body_follows_from_the_tokens_asked_for() -> None:
    body = {**sent(), "max_tokens": 1000}
    assert most_bytes(body, CHAT, 300) < 700_000 < most_bytes({**body, "max_tokens": 4000}, CHAT, 300)
    longest = chat({"content": "\u4e16" * 1000, "reasoning": "\x00" * 1000})
    assert len(longest) < most_bytes(body, CHAT, 300)


def test_an_error_in_an_answer_of_status_200_is_an_error() -> None:
    relayed = json.dumps({"error": {"message": "upstream is busy", "code": 502}}).encode()
    trouble = read_answer(relayed, CHAT, sent())
    assert isinstance(trouble, Trouble) and (trouble.action, trouble.detail) == ("retry", "upstream is busy")


@pytest.mark.parametrize("status", sorted(RETRYABLE))
def test_what_may_pass_is_tried_again(status: int) -> None:
    assert read_refusal(status, b"busy", sent()).action == "retry"


@pytest.mark.parametrize(
    ("status", "error", "reason", "fix"),
    [
        (401, {"message": "Incorrect API key"}, "refuses access", "api_key_env"),
        (403, {"message": "no"}, "refuses access", "api_key_env"),
        (404, {"message": "model not found"}, "has no such address or model", "base_url"),
        (307, {}, "redirects to another address", "base_url"),
        (429, {"message": "quota", "code": "insufficient_quota"}, "no more credit", "top it up"),
    ],
)
def test_what_every_request_would_meet_ends_the_work_with_the_fix(
    status: int, error: dict[str, str], reason: str, fix: str
) -> None:
    trouble = read_refusal(status, json.dumps({"error": error}).encode(), sent())
    assert trouble.action == "stop" and reason in trouble.reason and fix in trouble.fix


REFUSED = [
    # (status, body, field): as OpenAI, vLLM, FastAPI, transformers serve and llama.cpp put it
    (400, {"error": {"message": "Unrecognized request argument supplied: top_k"}}, "top_k"),
    (
        400,
        {
            "error": {
                "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
                "Use 'max_completion_tokens' instead.",
                "param": "max_tokens",
                "code": "unsupported_parameter",
            }
        },
        "max_tokens",
    ),
    (
        400,
        {"error": {"message": "Unsupported value: 'temperature' does not support 0.7", "param": "temperature"}},
        "temperature",
    ),
    (422, {"detail": [{"loc": ["body", "min_p"], "msg": "Extra inputs are not permitted"}]}, "min_p"),
    (422, {"detail": "Unexpected fields in the request: {'min_p'}"}, "min_p"),
    (400, {"object": "error", "message": "unknown field seed", "code": 400}, "seed"),
]


@pytest.mark.parametrize(("status", "body", "field"), REFUSED)
def test_a_refused_field_is_named_with_the_fix(status: int, body: Any, field: str) -> None:
    trouble = read_refusal(status, json.dumps(body).encode(), sent() | {"min_p": 0.1})
    assert (trouble.action, trouble.field) == ("stop", field)
    assert trouble.fix and (field in trouble.fix or "max_completion_tokens" in trouble.fix)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4936 in the messages, 64 in the completion). Please reduce the length of the messages.", "code": "context_length_exceeded"}}),  # noqa: E501
        (400, {"object": "error", "message": "'max_tokens' or 'max_completion_tokens' is too large: 64. This model's maximum context length is 50 tokens and your request has 20 input tokens", "code": 400}),  # noqa: E501
        (400, {"error": {"message": "The response was filtered due to the prompt", "code": "content_filter"}}),
        (413, {"error": {"message": "too large"}}),
    ],
)  # fmt: skip
def test_what_is_wrong_with_one_request_leaves_the_others_alone(status: int, body: Any) -> None:
    trouble = read_refusal(status, json.dumps(body).encode(), sent())
    assert (trouble.action, trouble.field) == ("reject", None) and trouble.detail.startswith(str(status))


@pytest.mark.parametrize("text", ["Hello", "Grüß Gott, 世界 👋", "a b  c\n" * 40])
def test_the_bound_is_no_less_than_the_tokens_of_a_byte_level_tokenizer(text: str) -> None:
    from tiny_models import make_tiny_tokenizer

    tokenizer = make_tiny_tokenizer()
    messages = [{"role": "user", "content": text}]
    counted = len(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])
    assert counted <= bound_tokens({"messages": messages})
    assert len(tokenizer(text)["input_ids"]) <= bound_tokens({"prompt": text})

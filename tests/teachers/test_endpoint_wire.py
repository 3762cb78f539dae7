"""What is sent, and what answers and refusals mean."""

from __future__ import annotations

import json
from typing import Any

import pytest

from potstill.recipe import EndpointTeacher
from potstill.teachers.endpoint_wire import RETRYABLE, Trouble, body_of, bound_tokens, read_answer, read_refusal
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
    settings = EndpointTeacher(
        base_url="http://h/v1",
        model="m",
        max_tokens_field="max_completion_tokens",
        omit=("top_p", "seed"),
        extra={"min_p": 0.1, "stop": ["END"]},
    )
    body = body_of(Request(SAMPLED, prompt="Hello"), settings, None, seed=5)
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
    assert read_refusal(400, refused, sent()).detail == "never ?"


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


@pytest.mark.parametrize("count", [0, 2])
def test_another_number_of_choices_than_one_ends_the_work(count: int) -> None:
    choices = [{"message": {"content": "Hi."}, "finish_reason": "stop"}] * count
    trouble = read_answer(json.dumps({"choices": choices}).encode(), CHAT, sent())
    assert isinstance(trouble, Trouble) and trouble.what == "run" and f"{count} choices" in trouble.reason


@pytest.mark.parametrize("content", [b'{"choices": [{"mess', b"", b"<html>", b"[1]", b'"text"'])
def test_what_is_no_whole_json_is_asked_for_again_and_may_have_been_billed(content: bytes) -> None:
    trouble = read_answer(content, CHAT, sent())
    assert isinstance(trouble, Trouble) and trouble.what == "retry" and trouble.billed


def test_an_error_in_an_answer_of_status_200_is_an_error() -> None:
    relayed = json.dumps({"error": {"message": "upstream is busy", "code": 502}}).encode()
    trouble = read_answer(relayed, CHAT, sent())
    assert isinstance(trouble, Trouble) and (trouble.what, trouble.detail) == ("retry", "upstream is busy")


@pytest.mark.parametrize("status", sorted(RETRYABLE))
def test_what_may_pass_is_tried_again(status: int) -> None:
    assert read_refusal(status, b"busy", sent()).what == "retry"


@pytest.mark.parametrize(
    ("status", "error", "reason", "fix"),
    [
        (401, {"message": "Incorrect API key"}, "does not let us in", "api_key_env"),
        (403, {"message": "no"}, "does not let us in", "api_key_env"),
        (404, {"message": "model not found"}, "knows no such address or model", "base_url"),
        (307, {}, "sends us elsewhere", "base_url"),
        (429, {"message": "quota", "code": "insufficient_quota"}, "no more credit", "top it up"),
    ],
)
def test_what_every_request_would_meet_ends_the_work_with_the_fix(
    status: int, error: dict[str, str], reason: str, fix: str
) -> None:
    trouble = read_refusal(status, json.dumps({"error": error}).encode(), sent())
    assert trouble.what == "run" and reason in trouble.reason and fix in trouble.fix


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
    assert (trouble.what, trouble.field) == ("run", field)
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
    assert (trouble.what, trouble.field) == ("request", None) and str(status) in trouble.reason


@pytest.mark.parametrize("text", ["Hello", "Grüß Gott, 世界 👋", "a b  c\n" * 40])
def test_the_bound_is_no_less_than_the_tokens_of_a_byte_level_tokenizer(text: str) -> None:
    from tiny_models import make_tiny_tokenizer

    tokenizer = make_tiny_tokenizer()
    messages = [{"role": "user", "content": text}]
    counted = len(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])
    assert counted <= bound_tokens({"messages": messages})
    assert len(tokenizer(text)["input_ids"]) <= bound_tokens({"prompt": text})

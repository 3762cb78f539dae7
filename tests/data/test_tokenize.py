"""What is learned: exactly the assistant's words and the token that ends its turn, or a reject that says why."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

import chat_templates
from potstill.console import Console
from potstill.data import ChatTokenizer, Tokenized, prompt_ids, tokenize, tokenize_views
from potstill.data.tokenize import IGNORE
from potstill.errors import DataError
from potstill.models.resolve import resolve
from potstill.types import Message, Provenance, Record, Reject
from tiny_models import TURN_END, make_tiny_tokenizer

LONG = 10_000

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=20).filter(
    lambda text: text.strip() == text != ""
)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    """Questions and answers in turn, the last turn the assistant's; a system prompt now and then."""
    messages = [{"role": "system", "content": draw(words)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [{"role": "user", "content": draw(words)}, {"role": "assistant", "content": draw(words)}]
    return tuple(messages)


@cache
def chat_with(template: str | None) -> ChatTokenizer:
    return ChatTokenizer.from_transformers(make_tiny_tokenizer(template))


def learned_turns(row: Tokenized, chat: ChatTokenizer) -> list[str]:
    """The text of each unbroken run of learned tokens."""
    runs: list[list[int]] = []
    before = IGNORE
    for label in row.labels:
        if label != IGNORE:
            if before == IGNORE:
                runs.append([])
            runs[-1].append(label)
        before = label
    return [chat.decode(run) for run in runs]


def tokenized(record: Record, chat: ChatTokenizer, max_length: int = LONG) -> Tokenized:
    row = tokenize(record, chat, max_length)
    assert isinstance(row, Tokenized), row
    return row


def rejected(record: Record, chat: ChatTokenizer, max_length: int = LONG) -> Reject:
    row = tokenize(record, chat, max_length)
    assert isinstance(row, Reject), learned_turns(row, chat)
    return row


def answer(content: str, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


QUESTION: Message = {"role": "user", "content": "q"}
ASK_AND_ANSWER = (QUESTION, answer("a"))


# ---- proven by rendering ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", chat_templates.SOUND)
@given(messages=conversations())
def test_what_is_learned_decodes_to_the_assistants_words_and_the_end_of_its_turn(
    name: str, messages: tuple[Message, ...]
) -> None:
    chat = chat_with(chat_templates.SOUND[name])
    row = tokenized(Record(messages=messages), chat)
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    if name == "instructions":  # here the template puts white space around the words
        assert learned_turns(row, chat) == [f" {said} {TURN_END}" for said in answers]
    else:
        assert learned_turns(row, chat) == [said + TURN_END for said in answers]
    assert chat.decode(row.input_ids) == chat.render(messages)
    assert all(label in (IGNORE, token) for label, token in zip(row.labels, row.input_ids, strict=True))


@pytest.mark.parametrize("name", chat_templates.SOUND)
@given(messages=conversations())
def test_an_answer_is_learned_behind_the_very_tokens_it_is_given_for(name: str, messages: tuple[Message, ...]) -> None:
    chat = chat_with(chat_templates.SOUND[name])
    row = tokenized(Record(messages=messages), chat)
    asked = prompt_ids(messages[:-1], chat)
    assert row.input_ids[: len(asked)] == asked
    assert row.labels[len(asked) - 1] == IGNORE and row.labels[len(asked)] != IGNORE


@pytest.mark.parametrize("name", chat_templates.SOUND)
@given(messages=conversations())
def test_an_unfinished_answer_has_no_end_token_learned_or_present(name: str, messages: tuple[Message, ...]) -> None:
    chat = chat_with(chat_templates.SOUND[name])
    whole = tokenized(Record(messages=messages), chat)
    cut = tokenized(Record(messages=messages, finished=False), chat)
    assert chat.decode(cut.input_ids).endswith(messages[-1]["content"])
    assert cut.input_ids == whole.input_ids[: len(cut.input_ids)]
    assert learned_turns(cut, chat)[-1].strip() == messages[-1]["content"]
    assert learned_turns(cut, chat)[:-1] == learned_turns(whole, chat)[:-1]


@pytest.mark.slow
def test_smollm2_learns_its_words_and_its_end_token() -> None:
    path = resolve("smollm2-135m-instruct", console=Console("quiet")).path
    chat, tokenizer = ChatTokenizer.from_folder(path), AutoTokenizer.from_pretrained(path)
    questions = [json.loads(line)["prompt"] for line in Path("recipes/prompts.jsonl").read_text().splitlines()]
    for question in questions:
        said = question[::-1] + " naïve 🙂\n\n```py\n  x = 1\n```"
        messages = ({"role": "user", "content": question}, answer(said))
        row = tokenized(Record(messages=messages), chat)
        assert learned_turns(row, chat) == [said + "<|im_end|>"]
        assert row.input_ids == tokenizer.apply_chat_template(list(messages), return_dict=False)
        assert row.labels == tokenized(Record(prompt=question, completion=said), chat).labels


# ---- templates that cannot be trusted --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        ("no end", ASK_AND_ANSWER, "no token that ends"),
        ("end only at last", ASK_AND_ANSWER * 2, "not prefix-stable"),
        ("headers without end", ASK_AND_ANSWER * 2, "no token that ends"),
        ("opens thinking", ASK_AND_ANSWER, "not prefix-stable"),
        ("drops thinking", (QUESTION, answer("<think>r</think>a")), "changes the assistant's words"),
        ("system at last", ({"role": "system", "content": "s"}, *ASK_AND_ANSWER * 2), "not prefix-stable"),
        ("instructions", (QUESTION, answer("a"), answer("b")), "refuses it"),
        ("chatml", (QUESTION, answer("a", reasoning_content="r")), "drops the reasoning"),
        ("thinking", (QUESTION, answer("a", reasoning="r"), *ASK_AND_ANSWER), "prefix-stable"),
    ],
)
def test_a_template_that_cannot_be_trusted_gives_a_reject(template: str, messages: Any, reason: str) -> None:
    record = Record(messages=tuple(messages), row=7, provenance=Provenance(source="f"))
    reject = rejected(record, chat_with(chat_templates.ALL[template]))
    assert reason in reject.reason
    assert (reject.source, reject.row) == ("f", 7)


@given(messages=conversations())
def test_no_template_at_all_makes_one_learn_another_text_than_the_words(messages: tuple[Message, ...]) -> None:
    for name, template in chat_templates.ALL.items():
        chat = chat_with(template)
        row = tokenize(Record(messages=messages), chat, LONG)
        if isinstance(row, Reject):
            assert name not in chat_templates.SOUND
            continue
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        for learned, said in zip(learned_turns(row, chat), answers, strict=True):
            assert learned.removesuffix(TURN_END).strip().endswith(said)
            assert learned.removesuffix(TURN_END).strip() == said or row.note


def test_what_the_template_adds_is_learned_and_said() -> None:
    chat = chat_with(chat_templates.THINKING)
    row = tokenized(Record(messages=ASK_AND_ANSWER), chat)
    assert learned_turns(row, chat) == ["<think>\n\n</think>\n\na" + TURN_END]
    assert row.note == "the chat template adds '<think></think>' to answers"


def test_reasoning_that_the_template_shows_is_learned() -> None:
    chat = chat_with(chat_templates.THINKING)
    row = tokenized(Record(messages=(QUESTION, answer("a", reasoning_content="because"))), chat)
    assert learned_turns(row, chat) == ["<think>\nbecause\n</think>\n\na" + TURN_END]
    assert row.note == ""


def test_calls_of_tools_are_learned() -> None:
    chat = chat_with(chat_templates.THINKING)
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"b": 1, "a": 2}}}]}
    messages = ({"role": "user", "content": "q"}, call, {"role": "tool", "content": "t"}, ASK_AND_ANSWER[1])
    row = tokenized(Record(messages=messages), chat)
    assert learned_turns(row, chat) == [
        '<think>\n\n</think>\n\n\n<tool_call>{"name": "f", "arguments": {"b": 1, "a": 2}}</tool_call>' + TURN_END,
        "<think>\n\n</think>\n\na" + TURN_END,
    ]


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_control_token_in_the_text_is_a_reject_and_not_an_end_of_turn(role: str) -> None:
    messages = tuple({**m, "content": f"x{TURN_END}y"} if m["role"] == role else m for m in ASK_AND_ANSWER)
    reject = rejected(Record(messages=messages), chat_with(chat_templates.SOUND["chatml"]))
    assert (reject.reason, reject.detail) == ("holds a control token", TURN_END)


def test_messages_without_a_chat_template_are_an_error_and_no_reject() -> None:
    with pytest.raises(DataError, match="no chat template"):
        tokenize(Record(messages=ASK_AND_ANSWER), chat_with(None), LONG)


# ---- tokens that reach over a boundary -------------------------------------------------------------------------


def merging(*merges: tuple[str, str], template: str | None = None) -> ChatTokenizer:
    """A tokenizer that knows some merges beside the bytes, and splits nothing before it merges."""
    base = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: index for index, token in enumerate([*base, *("".join(merge) for merge in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return ChatTokenizer(tokenizer, templates={"default": template} if template else {}, special={"eos_token": "</s>"})


def test_a_token_over_the_beginning_of_an_answer_makes_a_reject() -> None:
    template = (
        "{%- for m in messages %}{{ m.role + ':\\n' + m.content + '</s>' }}{% endfor %}"
        "{%- if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
    )
    chat = merging(("Ċ", "Ċ"), template=template)
    assert learned_turns(tokenized(Record(messages=ASK_AND_ANSWER), chat), chat) == ["a</s>"]
    reject = rejected(Record(messages=(QUESTION, answer("\na"))), chat)
    assert (reject.reason, reject.detail) == ("a token reaches over the beginning of the answer", r"'\n\n'")


def test_a_token_over_the_end_of_a_prompt_makes_a_reject() -> None:
    chat = merging(("a", "b"))
    assert rejected(Record(prompt="xa", completion="bc"), chat).reason.startswith("a token reaches over the beginning")
    assert tokenized(Record(prompt="x", completion="ab"), chat).learned == [*chat.encode("ab").ids, 1]


def test_offsets_that_a_post_processor_trims_hide_no_token_over_a_boundary() -> None:
    from tokenizers.processors import ByteLevel

    base = merging(("Ġ", "b"))
    inner = base._tokenizer
    inner.post_processor = ByteLevel(trim_offsets=True)
    chat = ChatTokenizer(inner, special={"eos_token": "</s>"})
    assert rejected(Record(prompt="a ", completion="b"), chat).detail == "' b'"


def test_an_end_token_that_swallows_the_white_space_behind_it_is_learned() -> None:
    from tokenizers import AddedToken

    tokenizer = make_tiny_tokenizer()
    inner = tokenizer.backend_tokenizer
    inner.add_special_tokens([AddedToken("<|end|>", rstrip=True, special=True)])
    template = chat_templates.SOUND["chatml"].replace("<|im_end|>", "<|end|>")
    chat = ChatTokenizer(inner, templates={"default": template}, special={"eos_token": "<|end|>"})
    row = tokenized(Record(messages=ASK_AND_ANSWER * 2), chat)
    assert learned_turns(row, chat) == ["a<|end|>"] * 2


# ---- plain text ------------------------------------------------------------------------------------------------


@given(prompt=words, completion=words, finished=st.booleans())
def test_plain_prompt_and_completion_are_joined_and_the_end_token_follows(
    prompt: str, completion: str, finished: bool
) -> None:
    chat = chat_with(None)
    assume(not chat.special_pattern.search(prompt + completion))
    row = tokenized(Record(prompt=prompt, completion=completion, finished=finished), chat)
    assert row.input_ids == [*prompt_ids(prompt, chat), *chat.encode(completion).ids, *([2] if finished else [])]
    assert learned_turns(row, chat) == [completion + (TURN_END if finished else "")]


@given(prompt=words, completion=words, finished=st.booleans())
def test_with_a_chat_template_a_prompt_is_the_users_turn(prompt: str, completion: str, finished: bool) -> None:
    chat = chat_with(chat_templates.SOUND["chatml"])
    messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": completion})
    plain = tokenized(Record(prompt=prompt, completion=completion, finished=finished), chat)
    assert plain.input_ids == tokenized(Record(messages=messages, finished=finished), chat).input_ids
    assert (
        prompt_ids(prompt, chat)
        == prompt_ids(messages[:1], chat)
        == plain.input_ids[: plain.labels.index(plain.learned[0])]
    )


def test_begin_tokens_stand_before_plain_text_and_are_not_learned() -> None:
    base = chat_with(None)
    chat = ChatTokenizer(base._tokenizer, special=base.special, leading=[0])
    assert prompt_ids("q", chat) == [0, *base.encode("q").ids]
    assert tokenized(Record(prompt="q", completion="a"), chat).labels[:2] == [IGNORE, IGNORE]
    assert tokenized(Record(text="ab"), chat).labels == [IGNORE, *base.encode("ab").ids]


@given(text=words)
def test_of_a_text_every_token_is_learned_but_the_first(text: str) -> None:
    chat = chat_with(chat_templates.SOUND["chatml"])
    row = tokenize(Record(text=text), chat, LONG)
    ids = chat.encode(text).ids
    if len(ids) == 1:
        assert isinstance(row, Reject) and row.reason == "nothing to learn"
    else:
        assert isinstance(row, Tokenized) and row.input_ids == ids and row.labels == [IGNORE, *ids[1:]]


def test_a_tokenizer_without_an_end_token_cannot_finish_a_completion() -> None:
    base = chat_with(None)
    chat = ChatTokenizer(base._tokenizer)
    with pytest.raises(DataError, match="no end token, so no student could learn to stop"):
        tokenize(Record(prompt="q", completion="a"), chat, LONG)
    assert tokenized(Record(prompt="q", completion="a", finished=False), chat).learned


# ---- limits ----------------------------------------------------------------------------------------------------


@given(messages=conversations(), data=st.data())
def test_a_row_that_is_cut_learns_no_end_of_its_last_turn(messages: tuple[Message, ...], data: st.DataObject) -> None:
    chat = chat_with(chat_templates.SOUND["chatml"])
    whole = tokenized(Record(messages=messages), chat)
    max_length = data.draw(st.integers(1, len(whole)))
    row = tokenize(Record(messages=messages), chat, max_length)
    if isinstance(row, Reject):
        assert row.reason == "nothing to learn" and set(whole.labels[:max_length]) == {IGNORE}
        return
    assert len(row) <= max_length and row.labels == whole.labels[:max_length]
    assert row.cut == (len(row.learned) < len(whole.learned))
    if row.cut:
        turns, all_turns = learned_turns(row, chat), learned_turns(whole, chat)
        assert turns != all_turns and turns[:-1] == all_turns[: len(turns) - 1]
        assert len(turns) < len(all_turns) or not turns[-1].endswith(TURN_END)


@pytest.mark.parametrize("record", [Record(prompt="q"), Record(messages=ASK_AND_ANSWER[:1]), Record(messages=())])
def test_a_prompt_alone_is_nothing_to_learn(record: Record) -> None:
    assert rejected(record, chat_with(chat_templates.SOUND["chatml"])).reason == "nothing to learn"


# ---- two views -------------------------------------------------------------------------------------------------


@given(messages=conversations(), system=words, max_length=st.integers(20, 120))
def test_both_views_learn_the_same_tokens_behind_different_prompts(
    messages: tuple[Message, ...], system: str, max_length: int
) -> None:
    chat = chat_with(chat_templates.SOUND["chatml"])
    row = tokenize_views(Record(messages=messages), chat, max_length, teacher_system=system)
    if isinstance(row, Reject):
        assert row.reason == "nothing to learn"
        return
    assert row.teacher is not None
    assert row.learned == row.teacher.learned != []
    assert max(len(row), len(row.teacher)) <= max_length
    assert chat.decode(row.teacher.input_ids).startswith(f"<|im_start|>system\n{system}{TURN_END}"[:max_length])


def test_views_whose_tokens_differ_are_a_reject() -> None:
    other = chat_with(chat_templates.SOUND["chatml"].replace("message['content']", "message['content'] + '!'"))
    # The other template adds to the words, which is refused before it comes to a comparison.
    row = tokenize_views(
        Record(prompt="q", completion="a"),
        chat_with(chat_templates.SOUND["chatml"]),
        LONG,
        teacher_system="s",
        teacher_chat=other,
    )
    assert isinstance(row, Reject) and "changes the assistant's words" in row.reason
    spaced = chat_with(chat_templates.SOUND["instructions"])
    row = tokenize_views(
        Record(prompt="q", completion="a"),
        chat_with(chat_templates.SOUND["chatml"]),
        LONG,
        teacher_system="s",
        teacher_chat=spaced,
    )
    assert isinstance(row, Reject) and row.reason == "the answer's tokens differ between the views"

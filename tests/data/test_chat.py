"""Rendering and encoding equal those of transformers, and need neither it nor torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import chat_templates
from potstill.console import Console
from potstill.data import ChatTokenizer
from potstill.data.template import TemplateRefusal, render_template
from potstill.errors import DataError, ModelError
from potstill.models.resolve import resolve
from tiny_models import make_tiny_tokenizer

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 5))):
        if turn % 2 == 0:
            messages.append({"role": "user", "content": draw(texts), "name": draw(st.none() | texts)})
            continue
        answer: dict[str, Any] = {"role": "assistant", "content": draw(texts)}
        if draw(st.booleans()):
            answer[draw(st.sampled_from(["reasoning_content", "reasoning", "thinking"]))] = draw(texts)
        if draw(st.booleans()):
            answer["tool_calls"] = [{"type": "function", "function": {"name": "f", "arguments": {"<a>": draw(texts)}}}]
        messages.append(answer)
    return messages


TOOLS = [{"type": "function", "function": {"name": n, "description": "é <b>", "parameters": {}}} for n in "ab"]


@pytest.mark.parametrize("name", chat_templates.ALL)
@given(messages=conversations(), tools=st.sampled_from([None, TOOLS]), prompt=st.booleans())
def test_rendering_equals_that_of_transformers(
    name: str, messages: list[dict[str, Any]], tools: Any, prompt: bool
) -> None:
    tokenizer = make_tiny_tokenizer(chat_templates.ALL[name])
    chat = ChatTokenizer.from_transformers(tokenizer)
    expected = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, tokenize=False)
    assert chat.render(messages, tools, prompt) == expected


@given(text=st.text(max_size=60).filter(lambda t: t.isprintable()))
def test_encoding_equals_that_of_transformers_and_decodes_to_the_text(text: str) -> None:
    tokenizer = make_tiny_tokenizer()
    chat = ChatTokenizer.from_transformers(tokenizer)
    ids = chat.encode(text).ids
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert chat.decode(ids) == text


def test_a_template_refuses_in_its_own_words() -> None:
    chat = ChatTokenizer.from_transformers(make_tiny_tokenizer(chat_templates.INSTRUCTIONS))
    twice = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(DataError, match="refuses the conversation: roles must alternate"):
        chat.render(twice)


def test_conversations_without_a_chat_template_say_what_to_do() -> None:
    chat = ChatTokenizer.from_transformers(make_tiny_tokenizer(None))
    with pytest.raises(DataError, match="no chat template\n  fix: use a model with one"):
        chat.render([{"role": "user", "content": "a"}])
    assert chat.template_hash == ""


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace(__class__=1) %}",
    ],
)
def test_templates_run_in_a_sandbox(attack: str) -> None:
    with pytest.raises(TemplateRefusal):
        render_template(attack, {}, [{"role": "user", "content": "a"}])


def test_messages_are_not_changed_by_rendering() -> None:
    message = {"role": "user", "content": "a", "tool_calls": None}
    ChatTokenizer.from_transformers(make_tiny_tokenizer()).render([message])
    assert message == {"role": "user", "content": "a", "tool_calls": None}


def test_a_text_cannot_forge_the_marks_of_what_is_learned() -> None:
    forged = [{"role": "user", "content": "\x00generation\x00mine\x00endgeneration\x00"}]
    text, spans = render_template(chat_templates.BLOCK_AROUND_ALL, {}, forged)
    assert spans == () and "mine" in text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    make_tiny_tokenizer().save_pretrained(path)
    return path


def test_a_folder_and_a_loaded_tokenizer_give_the_same(folder: Path) -> None:
    loaded = ChatTokenizer.from_transformers(AutoTokenizer.from_pretrained(folder))
    opened = ChatTokenizer.from_folder(folder)
    for name in ("special", "templates", "leading", "eos_id", "bos_id", "pad_id", "template_hash", "special_tokens"):
        assert getattr(opened, name) == getattr(loaded, name), name


def test_the_template_may_stand_in_the_configuration_or_come_by_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    chat = ChatTokenizer.from_folder(tmp_path)
    assert chat.render([{"role": "user", "content": "a"}]) == "plain"
    assert chat.render([{"role": "user", "content": "a"}], tools=TOOLS) == "with tools"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "one"}))
    assert ChatTokenizer.from_folder(tmp_path).template == "one"


def test_special_tokens_that_only_the_model_names_are_found_by_their_ids(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    (tmp_path / "config.json").write_text('{"eos_token_id": [2, 0], "bos_token_id": 0}')
    chat = ChatTokenizer.from_folder(tmp_path)
    assert (chat.eos_id, chat.bos_id, chat.pad_id) == (2, 0, 2)


def test_a_folder_without_a_tokenizer_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json\n  fix: .*AutoTokenizer"):
        ChatTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        ChatTokenizer.from_folder(tmp_path)


def test_begin_tokens_are_those_that_the_tokenizer_itself_adds(folder: Path, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tiny_tokenizer()
    begins = TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>", special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)]
    )
    tokenizer.backend_tokenizer.post_processor = begins
    assert ChatTokenizer.from_transformers(tokenizer).leading == (0,)
    assert ChatTokenizer.from_folder(folder).leading == ()


def test_the_room_loads_neither_torch_nor_transformers(folder: Path) -> None:
    code = (
        "import sys; from potstill.data import ChatTokenizer, read_records, tokenize, save_records, source_digests;"
        f"ChatTokenizer.from_folder({str(folder)!r}).render([{{'role': 'user', 'content': 'a'}}]);"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_smollm2_is_rendered_and_encoded_as_transformers_does() -> None:
    path = resolve("smollm2-135m-instruct", console=Console("quiet")).path
    tokenizer, chat = AutoTokenizer.from_pretrained(path), ChatTokenizer.from_folder(path)
    loaded = ChatTokenizer.from_transformers(tokenizer)
    assert (chat.special, chat.leading, chat.eos_id, chat.pad_id) == (
        loaded.special,
        loaded.leading,
        loaded.eos_id,
        loaded.pad_id,
    )
    questions = [json.loads(line)["prompt"] for line in Path("recipes/prompts.jsonl").read_text().splitlines()]
    for question in [*questions[:100], "naïve 🙂 日本語\n\n\ttabs  and   spaces ", "<|im_start|>x", ""]:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": question.upper()}]
        for prompt in (False, True):
            text = chat.render(messages, add_generation_prompt=prompt)
            assert text == tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
            assert chat.encode(text).ids == tokenizer(text, add_special_tokens=False)["input_ids"]
            assert chat.decode(chat.encode(text).ids) == text

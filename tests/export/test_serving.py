"""Servers are told what the student was trained with: its template, its end tokens, its context; on loopback alone."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import chat_templates
from potstill.artifacts import Work
from potstill.data import ChatTokenizer
from potstill.export import serving
from potstill.export.serving import Turns, go_template, turns_of
from potstill.recipe import HuggingFaceExport
from tiny_models import make_tiny_causal_lm, make_tiny_tokenizer

TEMPLATES = {name: text for name, text in vars(chat_templates).items() if name.isupper() and isinstance(text, str)}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'Is "{{" a brace?'},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Thanks."},
]


def chat_of(template: str | None) -> ChatTokenizer:
    return ChatTokenizer.from_transformers(make_tiny_tokenizer(template))


def as_go(template: str, talk: list[dict[str, str]]) -> str:
    """A rendering by the constructs of Go's `text/template` that are written (`if`, `range`, fields, strings), read as
    Go reads them: text up to the first `{{`, an action up to the next `}}`."""
    system = "\n\n".join(turn["content"] for turn in talk if turn["role"] == "system")
    parts = re.split(r"{{(.*?)}}", template, flags=re.DOTALL)
    texts, actions = parts[::2], [action.strip() for action in parts[1::2]]

    def run(place: int, turn: dict[str, str], shown: bool) -> tuple[str, int, str]:
        """Text from behind action `place` up to the `else` or `end` that closes its block; that action's place."""
        out = texts[place + 1]
        while (place := place + 1) < len(actions):
            action = actions[place]
            if action.startswith(("else", "end")):
                return (out if shown else ""), place, action
            if action.startswith("if"):
                held = bool(system) if action == "if .System" else turn.get("role") == action.split('"')[1]
                inner, place, closing = run(place, turn, held)
                if closing != "end":
                    held = not held and (closing == "else" or turn.get("role") == closing.split('"')[1])
                    other, place, _ = run(place, turn, held)
                    inner += other
                out += inner
            elif action.startswith("range"):
                start, inner = place, ""
                for one in talk:
                    written, place, _ = run(start, one, True)
                    inner += written
                out += inner
            elif action.startswith('"'):
                out += action.strip('"')
            else:
                out += {".System": system, ".Content": turn.get("content", "")}[action]
            out += texts[place + 1]
        return out, place, ""

    return run(-1, {}, True)[0]


@pytest.mark.parametrize("name", ["BLOCK_AROUND_ALL", "CHATML", "HEADERS", "NO_END"])
def test_a_template_that_is_written_for_ollama_renders_as_the_students_own(name: str) -> None:
    chat = chat_of(TEMPLATES[name])
    turns = turns_of(chat)
    assert turns is not None
    assert turns.render(TALK) == chat.render(TALK, add_generation_prompt=True)
    assert as_go(go_template(turns, ""), TALK) == turns.render(TALK)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_what_is_written_renders_as_the_students_own_or_nothing_is(name: str) -> None:
    chat = chat_of(TEMPLATES[name])
    turns = turns_of(chat)
    assert turns is None or turns.render(TALK) == chat.render(TALK, add_generation_prompt=True)


def test_a_template_that_counts_turns_has_none() -> None:
    counts = "{% for m in messages %}{{ loop.index }}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert turns_of(chat_of(counts)) is None
    assert turns_of(chat_of(None)) is None


@given(st.lists(st.text(alphabet="ab\n {}<|>", max_size=6), min_size=8, max_size=8))
def test_any_text_around_turns_survives_the_way_through_gos_language(texts: list[str]) -> None:
    start, a, b, c, d, e, f, answer = texts
    turns = Turns(start, (a, b), (c, d), (e, f), answer)
    for talk in (TALK, TALK[1:]):
        assert as_go(go_template(turns, ""), talk) == turns.render(talk)


def test_the_begin_token_that_llama_cpp_puts_itself_is_not_put_twice() -> None:
    turns = Turns("<s>", ("<s>[S]", "[/S]"), ("[U]", ""), ("[A]", "</s>"), "[A]")
    assert "<s>" not in go_template(turns, "<s>").replace("</s>", "")
    assert go_template(turns, "").count("<s>") == 2


def test_a_modelfile_has_template_stops_and_context(tmp_path: Path) -> None:
    model = make_tiny_causal_lm(tmp_path / "model")
    work = Work(tmp_path, resumed=False)
    serving.write_modelfile(tmp_path / "model-F16.gguf", model, [2], work)
    text = (tmp_path / "Modelfile").read_text()
    assert text.startswith("FROM ./model-F16.gguf\n")
    assert "<|im_start|>user\n{{ .Content }}<|im_end|>\n" in text
    assert 'PARAMETER stop "<|im_end|>"' in text and "PARAMETER num_ctx 512" in text
    assert not work.warnings
    counts = "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}"
    other = make_tiny_causal_lm(tmp_path / "other", template=counts)
    serving.write_modelfile(tmp_path / "model-F16.gguf", other, [2], work)
    assert "TEMPLATE" not in (tmp_path / "Modelfile").read_text()
    assert work.warnings


def test_configurations_name_the_model_its_context_and_loopback(tmp_path: Path) -> None:
    model = make_tiny_causal_lm(tmp_path / "model")
    serving.write_engine_configs(("vllm", "sglang"), model, "Llama half/quick one")
    vllm, sglang = (yaml.safe_load((model / f"{name}.yaml").read_text()) for name in ("vllm", "sglang"))
    assert vllm == {
        "model": ".",
        "served-model-name": "Llama-half-quick-one",
        "host": "127.0.0.1",
        "port": 8000,
        "dtype": "auto",
        "max-model-len": 512,
    }
    assert sglang["model-path"] == "." and sglang["context-length"] == 512 and sglang["host"] == "127.0.0.1"


def test_the_script_for_llama_cpp_runs_from_anywhere_and_takes_more_arguments(tmp_path: Path) -> None:
    model = make_tiny_causal_lm(tmp_path / "model")
    out = tmp_path / "a folder"
    out.mkdir()
    serving.write_llama_server(out / "model-F16.gguf", model, "half")
    stand_in = tmp_path / "llama-server"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    command = ["sh", str(out / "llama-server.sh"), "--port", "9"]
    done = subprocess.run(
        command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        *("--model", f"{out}/model-F16.gguf", "--alias", "half", "--host", "127.0.0.1", "--port", "8080"),
        *("--ctx-size", "512", "--jinja", "--port", "9"),
    ]


def test_only_what_writes_text_is_configured_for_vllm() -> None:
    served = HuggingFaceExport(serving=("vllm",))
    assert served.why_not("causal_lm") is None
    assert "causal language models only" in str(served.why_not("sentence_embedding"))
    assert HuggingFaceExport().why_not("sentence_embedding") is None

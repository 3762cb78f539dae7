"""A conversation: whole characters as they come, the same turns for all, and no more than the model can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from export.test_gguf import student as with_a_merge

from potstill.chat import speaker as module
from potstill.chat.speaker import Speaker, student_of, teacher_of
from potstill.console import Console
from potstill.data import ChatTokenizer, prompt_ids
from potstill.errors import ModelError, RunError, UserError
from potstill.recipe.load import dump_recipe
from potstill.types import Sampling
from small_run import CHAT, SmallRun
from tiny_models import make_tiny_causal_lm, tiny_model

QUIET = Console("quiet")


def scripted(monkeypatch: pytest.MonkeyPatch, answer: str, cut: int = 0) -> Speaker:
    """A speaker that answers this text, a byte a token, without the last `cut`."""
    ids = CHAT.encode(answer).ids
    monkeypatch.setattr(module, "stream", lambda *_, **__: iter(ids[: len(ids) - cut]))
    return Speaker("student", tiny_model(), CHAT)


def test_a_character_is_shown_when_all_of_its_bytes_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = list(scripted(monkeypatch, "añ…🜍").answer("?", Sampling(99), 0))
    assert pieces == ["a", "ñ", "…", "🜍"]


def test_what_stays_half_a_character_is_shown_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = list(scripted(monkeypatch, "añ", cut=1).answer("?", Sampling(99), 0))
    assert pieces == ["a", "\ufffd"]


def test_the_two_halves_of_a_line_end_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cleaning turns \\r\\n into a line end, and \\r alone into an escape."""
    assert list(scripted(monkeypatch, "a\r\nb\r").answer("?", Sampling(99), 0)) == ["a", "\r\n", "b", "\r"]


def test_an_answer_that_was_stopped_is_a_turn_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = scripted(monkeypatch, "abc")
    pieces = speaker.answer("why?", Sampling(99), 0)
    next(pieces)
    pieces.close()
    assert [dict(turn) for turn in speaker.messages] == [
        {"role": "user", "content": "why?"},
        {"role": "assistant", "content": "a"},
    ]


def test_the_oldest_turns_make_room_and_the_system_prompt_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[int]] = []

    def listening(_: Any, prompt: list[int], *__: Any, **___: Any) -> Any:
        read.append(prompt)
        return iter(())

    monkeypatch.setattr(module, "stream", listening)
    speaker = Speaker("student", tiny_model(), CHAT, [{"role": "system", "content": "Be brief."}])
    limit = speaker.model.config.max_position_embeddings
    for _ in range(8):
        list(speaker.answer("x" * (limit // 5), Sampling(16), 0))
    assert all(len(prompt) + 16 <= limit for prompt in read)
    assert all("Be brief." in CHAT.decode(prompt) for prompt in read)
    assert len(read[-1]) > limit // 2, "no more than necessary is left out"
    speaker.forget()
    assert [turn["role"] for turn in speaker.messages] == ["system"]


def test_a_text_beyond_the_context_is_refused() -> None:
    speaker = Speaker("student", tiny_model(), CHAT)
    with pytest.raises(UserError, match="reads 512 tokens"):
        next(speaker.answer("x" * 600, Sampling(16), 0))


def test_a_run_opens_its_student_and_its_teacher_and_a_folder_its_model(tmp_path: Path) -> None:
    run = SmallRun(tmp_path)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(run.recipe))
    student, teacher = student_of(tmp_path, None, QUIET), teacher_of(tmp_path, None, QUIET)
    layers = [len(one.model.model.layers) for one in (student, teacher)]
    assert layers[0] < layers[1]
    assert student_of(run.teacher, "Be brief.", QUIET).messages
    with pytest.raises(RunError, match="names no teacher"):
        teacher_of(run.teacher, None, QUIET)
    (tmp_path / "sums").mkdir()
    with pytest.raises(RunError, match=r"no such run; did you mean 'sums'\?"):
        student_of(tmp_path / "sum", None, QUIET)


@pytest.mark.slow
@pytest.mark.needs("llama.cpp")
def test_a_gguf_file_or_a_folder_of_them_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes what llama.cpp writes from the same file."""
    from potstill.export.gguf_file import write_gguf
    from potstill.export.llama_cpp import opened

    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    model = with_a_merge(tmp_path / "model")
    chat = ChatTokenizer.from_folder(model)
    file = tmp_path / "export.gguf" / "model.gguf"
    file.parent.mkdir()
    write_gguf(model, file, "f16", end_tokens=[], name="student")
    with opened(file) as engine:
        prompt = prompt_ids([{"role": "user", "content": "Hello"}], chat)
        written = chat.decode(engine.write(prompt, 12, [chat.eos_id]), skip_special_tokens=True)
    for place in (file, file.parent):
        assert "".join(student_of(place, None, QUIET).answer("Hello", Sampling(12, 0.0), 0)) == written


def test_a_model_without_template_has_no_system_prompt(tmp_path: Path) -> None:
    folder = make_tiny_causal_lm(tmp_path / "base", template=None)
    with pytest.raises(ModelError, match="no chat template"):
        student_of(folder, "Be brief.", QUIET)

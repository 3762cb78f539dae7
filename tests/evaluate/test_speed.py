"""Claims about rates and peak memory: measured in turn, in one precision, each memory in a process of its own."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from potstill.console import Console
from potstill.data import Tokenized
from potstill.errors import ModelError
from potstill.evaluate import speed
from potstill.evaluate.compared_models import ComparedModel
from potstill.evaluate.held_out import of_tokens
from potstill.evaluate.speed import Peak, Seconds, Writing, forget_peak, one_pass, peak_of, peak_resident
from potstill.evaluate.stage import stage
from potstill.measures import Measures
from potstill.recipe import LocalTeacher
from small_run import SmallRun
from tiny_models import make_tiny_causal_lm, tiny_model

SIXTY = Writing((5,) * 60, speed.NEW_TOKENS)


def measured(folder: Path, name: str = "student") -> ComparedModel:
    return ComparedModel(name, LocalTeacher(model=str(folder), device="cpu"), "causal_lm")


def test_a_pass_writes_as_many_tokens_as_asked_with_a_cache() -> None:
    model = tiny_model()
    widths: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    seconds = one_pass(model, tuple(range(3, 23)), new_tokens=5)
    assert widths == [20, 1, 1, 1, 1, 1]
    assert seconds.prefill > 0 and seconds.decode > 0


def test_models_take_turns_and_the_first_repetition_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = make_tiny_causal_lm(tmp_path / "teacher")
    student = make_tiny_causal_lm(tmp_path / "student", layers=2)
    order: list[int] = []

    def passed(model: torch.nn.Module, prompt: list[int], new_tokens: int) -> Seconds:
        order.append(model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
        return Seconds(prefill=float(len(order)), decode=1.0)

    monkeypatch.setattr(speed, "one_pass", passed)
    monkeypatch.setattr(speed, "peak_of", lambda *args: Peak(7, "a process"))
    models = [measured(teacher, "teacher"), measured(student)]
    rates = speed.measure_speed(models, SIXTY, "float32", Console("quiet"))
    found = rates.speeds
    assert sorted(order[:2]) == sorted(order[2:4]) == [2, 4] and order[:2] != order[2:4]
    assert len(order) == 2 * (1 + speed.MOST_REPETITIONS)
    counted = [place + 1 for place, layers in enumerate(order) if layers == 2 and place >= 2]
    assert found["student"].prefill_tokens_per_second == pytest.approx(60 / sorted(counted)[len(counted) // 2])
    assert found["student"].prefill_spread == (pytest.approx(60 / max(counted)), pytest.approx(60 / min(counted)))
    assert found["student"].decode_tokens_per_second == speed.NEW_TOKENS
    assert rates.repetitions == speed.MOST_REPETITIONS
    assert (found["teacher"].dtype, found["teacher"].peak_bytes) == ("float32", 7)


def test_slow_models_get_fewer_repetitions_and_never_too_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "peak_of", lambda *args: Peak(7, "a process"))
    monkeypatch.setattr(speed, "one_pass", lambda *args: Seconds(1.0, 1.0))
    monkeypatch.setattr(speed, "ENOUGH_SECONDS", 0.0)
    models = [measured(make_tiny_causal_lm(tmp_path / "student"))]
    rates = speed.measure_speed(models, SIXTY, "float32", Console("quiet"))
    assert rates.repetitions == speed.LEAST_REPETITIONS


def test_a_prompt_is_as_long_as_asked_and_leaves_room_to_write() -> None:
    rows = [Tokenized([1, 2], [-100, 2]), Tokenized([3], [3])]
    held_out = of_tokens([], rows, 0)
    assert speed.writing_of(held_out) == Writing(((1, 2, 3) * 100)[: speed.PROMPT_TOKENS], speed.NEW_TOKENS)
    assert len(speed.writing_of(held_out, positions=100).prompt) == 100 - speed.NEW_TOKENS
    assert len(speed.writing_of(held_out, positions=10_000).prompt) == speed.PROMPT_TOKENS


@pytest.mark.needs("resettable peaks")
def test_an_earlier_peak_is_forgotten() -> None:
    # Not a bytearray: an allocator gives one out of what it holds already, and keeps it.
    held = mmap.mmap(-1, 300_000_000)
    held.write(bytes(300_000_000))
    before = peak_resident()
    held.close()
    assert forget_peak()
    assert peak_resident() < before - 250_000_000


def test_peak_memory_sees_what_the_model_takes(tmp_path: Path) -> None:
    work = Writing(tuple(range(3, 35)), 2)
    small = peak_of(measured(make_tiny_causal_lm(tmp_path / "small")), work, "float32")
    # 50,000 × 1,024 embeddings in fp32, tied: 205 MB.
    large_folder = make_tiny_causal_lm(tmp_path / "large", layers=1, hidden=1024, vocab=50_000)
    large = peak_of(measured(large_folder), work, "float32")
    assert 150e6 < large.bytes - small.bytes < 400e6
    assert small.of == large.of and "process of its own" in small.of


def test_a_process_that_dies_is_an_error_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ModelError, match="peak memory of student could not be measured: it ended with 1") as caught:
        peak_of(measured(tmp_path), Writing((3, 4), 1), "float32")
    assert "speed: false" in str(caught.value)


def test_the_stage_measures_teacher_and_student_in_one_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "peak_of", lambda *args: Peak(7, "a process"))
    for name, few in (("PROMPT_TOKENS", 16), ("NEW_TOKENS", 2), ("MOST_REPETITIONS", 2)):
        monkeypatch.setattr(speed, name, few)
    run = SmallRun(tmp_path, text_only=False, evaluate={"speed": True, "samples_shown": 0})
    context = run.context()
    stage(run.recipe).write(context)
    found = Measures.load(context.out / "measures.json")
    teacher, student = found.models["teacher"].speed, found.models["student"].speed
    assert teacher is not None and student is not None and found.models["untrained"].speed is None
    assert teacher.dtype == student.dtype == speed.speed_dtype(measured(tmp_path))
    assert student.decode_spread[0] <= student.decode_tokens_per_second <= student.decode_spread[1]
    said = next(note for note in found.notes if note.startswith("Rates: one sequence"))
    assert "of 2 repetitions" in said and said.endswith("Peak memory is that of a process.")

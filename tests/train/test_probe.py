from __future__ import annotations

from pathlib import Path

import pytest
from train.recipes import write_recipe

from potstill.console import Console
from potstill.data import Tokenized, read_sides, reader_of
from potstill.errors import DataError
from potstill.recipe import load_recipe
from potstill.train import probe
from potstill.train.probe import _nll_line, probe_training

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"


def test_a_probe_says_what_training_will_take(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, tiny_llama))
    lines, figures = probe_training(recipe, Console("quiet"))
    assert any("same tokens" in line for line in lines)
    assert figures["head_difference"] < 1e-6
    assert figures["steps"] == 2 * -(-32 // 4), "32 of 40 records train, two epochs in steps of 4"
    assert figures["step_tokens"] > 0 and figures["step_seconds"] > 0


def test_a_probe_states_peak_memory_apart_and_together_and_the_teachers_own_nll(
    tmp_path: Path, tiny_llama: Path
) -> None:
    recipe = load_recipe(write_recipe(tmp_path, tiny_llama))
    lines, figures = probe_training(recipe, Console("quiet"))
    assert set(figures["peak_bytes"]) == {"teacher", "student", "together"}
    assert all(size > 50e6 for size in figures["peak_bytes"].values()), "of the process, torch included"
    assert 0 < figures["teacher_nll"] < 12 and any("the teacher's own NLL of" in line for line in lines)


def test_with_a_store_a_probe_says_how_long_the_teacher_reads_for_it(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides of the data, at the rate at which it read a few batches: here two tokens a second."""
    monkeypatch.setattr(probe, "_teacher_alone", lambda *_: probe._Read(1.0, 1, 259, 2.0))
    recipe = load_recipe(write_recipe(tmp_path, tiny_llama, capture={"kind": "threshold"}))
    lines, figures = probe_training(recipe, Console("quiet"))
    reader, sides = reader_of(recipe, tiny_llama, ()), read_sides(recipe.data)
    rows = [row for record in (*sides.train, *sides.held_out) for row in reader.rows(record)]
    tokens = sum(len(row) for row in rows if isinstance(row, Tokenized))
    assert figures["capture_seconds"] == pytest.approx(tokens / 2, rel=0.05)
    assert any("the store of the teacher's signals: about" in line for line in lines)


def test_the_teacher_reads_some_rows_at_a_rate(tmp_path: Path, tiny_llama: Path) -> None:
    _, figures = probe_training(load_recipe(write_recipe(tmp_path, tiny_llama)), Console("quiet"))
    assert figures["teacher_tokens_per_second"] > 0 and "capture_seconds" not in figures


def test_a_teacher_that_the_text_surprises_is_named() -> None:
    assert "is it its template" in _nll_line(4.0, 100, 259) and "is it its template" not in _nll_line(2.5, 100, 259)


def test_prompts_that_are_yet_to_be_answered_count_with_their_longest_answers(tmp_path: Path, tiny_llama: Path) -> None:
    path = write_recipe(tmp_path, tiny_llama, generate={"kind": "sequence", "max_new_tokens": 30})
    (tmp_path / "data.jsonl").write_text("\n".join(f'{{"prompt": "say {i}"}}' for i in range(10)))
    _, figures = probe_training(load_recipe(path, ["data.held_out=0"]), Console("quiet"))
    asked = len("say 1") + len("user\n") + len("\n") + len("assistant\n") + 3
    assert figures["step_tokens"] == 4 * (asked + 30)


def test_a_probe_without_anything_to_learn_from_says_so(tmp_path: Path, tiny_llama: Path) -> None:
    path = write_recipe(tmp_path, tiny_llama)
    (tmp_path / "data.jsonl").write_text('{"prompt": "a"}')
    with pytest.raises(DataError, match="nothing to learn from"):
        probe_training(load_recipe(path, ["data.held_out=0"]), Console("quiet"))


@pytest.mark.slow
def test_the_demos_pair_can_be_trained() -> None:
    shorter = ["generate.max_new_tokens=16", "data.limit=24", "train.args.per_device_train_batch_size=4"]
    lines, figures = probe_training(load_recipe(DEMO, shorter), Console("quiet"))
    layer = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576
    assert figures["student_parameters"] == 49_152 * 576 + 15 * layer + 576
    assert figures["head_difference"] < 1e-4
    assert any("tokens/s" in line for line in lines)

"""The teacher is measured once per held-out set, and what is kept is what would be computed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.evaluate import evaluation, teacher_memory
from potstill.evaluate.stage import stage
from potstill.measures import Measures
from potstill.models.cache import cache_dir
from small_run import SmallRun

QUIET = {"resamples": 50, "samples_shown": 0, "speed": False}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))


def run_of(folder: Path, **changes: Any) -> SmallRun:
    folder.mkdir()
    return SmallRun(folder, text_only=False, evaluate=QUIET | changes.pop("evaluate", {}), **changes)


def evaluated(run: SmallRun) -> tuple[Measures, str]:
    context = run.context()
    stage(run.recipe).write(context)
    return Measures.load(context.out / "measures.json"), str(context.work.facts["teacher"])


def test_another_student_does_not_measure_the_teacher_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, how = evaluated(run_of(tmp_path / "a"))
    assert how == "measured"
    other = run_of(tmp_path / "b", student={"kind": "from_teacher", "layers": [0]})

    def refuse(*_: Any) -> None:
        raise AssertionError("the teacher was opened and measured again")

    monkeypatch.setattr(evaluation, "measure_teacher", refuse)
    second, how = evaluated(other)
    assert how == "kept from an earlier measurement"
    assert second.models["teacher"] == first.models["teacher"]
    assert second.models["student"] != first.models["student"]


def test_what_is_kept_gives_the_very_measures(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a")
    (first, _), (second, how) = evaluated(run), evaluated(run)
    assert how.startswith("kept") and second == first


@pytest.mark.parametrize(
    "changes",
    [
        {"records": 26},
        {"evaluate": {"tokens_per_batch": 64}},
        {"evaluate": {"measures": [{"kind": "fidelity"}]}},
    ],
)
def test_other_records_batches_or_columns_are_measured(tmp_path: Path, changes: dict[str, Any]) -> None:
    evaluated(run_of(tmp_path / "a"))
    assert evaluated(run_of(tmp_path / "b", **changes))[1] == "measured"


def test_other_weights_are_measured(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a")
    evaluated(run)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run.teacher)
    model.model.norm.weight.data.mul_(1.01)
    model.save_pretrained(run.teacher)
    assert evaluated(run)[1] == "measured"


def test_a_damaged_entry_is_measured_again(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a")
    first, _ = evaluated(run)
    entry = next(folder for folder in (cache_dir() / teacher_memory.ROOM).iterdir() if folder.is_dir())
    next(entry.glob("rows-*")).write_bytes(b"")
    second, how = evaluated(run)
    assert how == "measured" and second == first


def test_entries_unused_for_a_day_go_first_when_there_is_too_much(tmp_path: Path) -> None:
    room = cache_dir() / teacher_memory.ROOM
    for name, age in (("new", 0), ("old", 2), ("older", 3)):
        (room / name).mkdir(parents=True)
        (room / name / "x").write_bytes(bytes(100))
        at = time.time() - age * 86400
        os.utime(room / name, (at, at))
    teacher_memory.forget_unused(most_bytes=250)
    assert {folder.name for folder in room.iterdir()} == {"new", "old"}
    teacher_memory.forget_unused(most_bytes=0)
    assert {folder.name for folder in room.iterdir()} == {"new"}


def test_scores_come_back_as_they_were() -> None:
    from potstill.evaluate.scores import Scores

    scores = Scores(
        nll=np.array([0.5, 1.5], np.float32),
        hit=np.array([True, False]),
        nll_at={0.85: np.array([0.25, 2.0], np.float32)},
        more={"classes": np.array([[0.5, 0.5], [0.1, 0.9]], np.float32)},
    )
    back = teacher_memory._scores_of(teacher_memory._columns_of(scores))
    assert back.hit is not None and back.hit.dtype == np.bool_ and back.kl is None
    assert np.array_equal(back.more["classes"], scores.more["classes"])
    assert list(back.nll_at) == [0.85] and np.array_equal(back.nll_at[0.85], scores.nll_at[0.85])

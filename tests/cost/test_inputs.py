"""Every input has a source; what was measured is marked, what is given wins, what is missing is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from potstill.cli import app
from potstill.cost.cascade import fit_cascade
from potstill.cost.economics import Price, Situation
from potstill.cost.inputs import cascade_of, economics_of, parse_given
from potstill.cost.text import lines_of
from potstill.errors import UserError
from potstill.measures import Measures, ModelMeasures, Speed
from potstill.recipe import Recipe, parse_recipe

SPEEDS = {
    "teacher": Speed(1, "float32", 1000.0, (1, 1), 20.0, (1, 1)),
    "student": Speed(1, "float32", 2000.0, (1, 1), 40.0, (1, 1)),
}
MANIFESTS: dict[str, dict[str, Any]] = {
    "generate": {"state": "done", "seconds": 1800.0, "facts": {}},
    "train": {"state": "done", "seconds": 5400.0, "facts": {}},
}


def measures(**speeds: Speed) -> Measures:
    models = {
        name: ModelMeasures(name=name, parameters=1, bytes=1, layers=1, metrics={}, speed=speed)
        for name, speed in speeds.items()
    }
    return Measures(models, {}, (), groups=2, records=2, targets=2, confidence=0.95, resamples=10)


def recipe(teacher: dict[str, Any] | None = None) -> Recipe:
    return parse_recipe(
        {
            "name": "n",
            "teacher": teacher or {"kind": "local", "model": "acme/teacher"},
            "data": {"kind": "jsonl", "path": "x.jsonl", "format": "prompt"},
            "generate": {"kind": "sequence"},
        },
        base=Path("/"),
    )


def test_measured_speeds_and_hours_are_marked() -> None:
    found = economics_of(recipe(), measures(**SPEEDS), MANIFESTS, parse_given(["price_per_hour=0.36"]))
    assert found.inputs["student_written_per_second"].source == "measured"
    assert found.inputs["machine_hours"].value == 2.0 and round(found.spent.machine, 2) == 0.72
    assert found.inputs["price_per_hour"].source == "given" and found.inputs["utilisation"].source == "assumed"
    # 0.36 $/h ÷ 3600 ÷ 0.5 = 0.0002 $ per second of work; 1/1000 and 1/20 of it per token, half each.
    assert round(found.situation.teacher_per_million, 2) == 5.10
    assert round(found.situation.student_per_million, 2) == 2.55
    text = "\n".join(lines_of(found))
    assert "2.0 × cheaper" in text and "measured" in text and "assumed" in text


def test_a_price_in_the_recipe_makes_the_teacher_an_api() -> None:
    teacher = {
        "kind": "endpoint",
        "base_url": "http://127.0.0.1:1/v1",
        "model": "m",
        "price": {"input": 2.5, "output": 10},
    }
    found = economics_of(
        recipe(teacher), measures(student=SPEEDS["student"]), MANIFESTS, parse_given(["read_share=0.8"])
    )
    assert found.teacher_machine is None and found.inputs["teacher_price_read"].source == "given"
    assert round(found.situation.teacher_per_million, 2) == 4.00


def test_a_speed_that_was_not_measured_is_asked_for() -> None:
    with pytest.raises(UserError, match="student_read_per_second"):
        economics_of(recipe(), measures(teacher=SPEEDS["teacher"]), MANIFESTS, {})


def test_a_teacher_that_costs_nothing_is_no_division_by_zero() -> None:
    given = parse_given(["teacher_price_read=0", "teacher_price_written=0"])
    found = economics_of(recipe(), measures(**SPEEDS), MANIFESTS, given)
    assert "the teacher costs nothing" in "\n".join(lines_of(found))
    assert "never: nothing is saved per token" in "\n".join(lines_of(found))


def test_half_a_price_is_not_passed_over() -> None:
    with pytest.raises(UserError, match="teacher_price_written is not"):
        economics_of(recipe(), measures(**SPEEDS), MANIFESTS, parse_given(["teacher_price_read=3"]))


@pytest.mark.parametrize(
    "given", ["price=1", "utilisation=0", "fall_back=1.5", "price_per_hour=many", "read_share=-1", "people_rate=inf"]
)
def test_inputs_that_make_no_sense_are_refused(given: str) -> None:
    with pytest.raises(UserError):
        parse_given([given])


def test_the_command_refuses_a_folder_that_is_no_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["cost", str(tmp_path)])
    assert result.exit_code != 0 and "not a run's folder" in str(result.exception)


def test_a_cascade_keeps_the_sure_and_reports_on_the_other_half() -> None:
    """The student is right where it is sure, the teacher always: half of the examples fall back."""
    draws = np.random.default_rng(0)
    sure = draws.random(2000) < 0.5
    confidence = np.where(sure, 0.9, 0.4) + draws.uniform(-0.05, 0.05, 2000)
    found = fit_cascade(confidence, sure, np.ones(2000, bool), [f"g{i}" for i in range(2000)])
    assert found is not None
    assert abs(found.chosen.fall_back - 0.5) < 0.05 and found.chosen.accuracy > 0.97
    assert found.curve[0].fall_back == 0.0 and found.curve[-1].fall_back == 1.0
    assert abs(found.student - 0.5) < 0.05 and found.teacher == 1.0


def test_a_student_as_good_as_its_teacher_asks_nobody() -> None:
    right = np.arange(100) % 10 > 0
    found = fit_cascade(np.linspace(0, 1, 100), right, right, [f"g{i}" for i in range(100)])
    assert found is not None and found.chosen.fall_back == 0.0


def test_one_group_has_no_two_halves() -> None:
    assert fit_cascade(np.ones(3), np.ones(3, bool), np.ones(3, bool), ["g"] * 3) is None


def test_a_language_model_is_sure_of_the_problems_that_it_solves(tmp_path: Path) -> None:
    """Its confidence is that of its own answers; what was cut has none, and falls back first."""
    count = 400
    solved = [i % 2 == 0 for i in range(count)]
    columns = {
        "group": [f"g{i}" for i in range(count)],
        "solved_student": solved,
        "solved_teacher": [True] * count,
        "confidence_student": [0.9 if one else 0.0 for one in solved],
    }
    pq.write_table(pa.table(columns), tmp_path / "solved.parquet")
    found = cascade_of(tmp_path)
    assert found is not None and found.chosen.accuracy == 1.0
    assert found.chosen.threshold == 0.9 and found.chosen.fall_back == 1 - found.student
    pq.write_table(pa.table(columns).drop_columns("confidence_student"), tmp_path / "solved.parquet")
    assert cascade_of(tmp_path) is None


def test_without_problems_the_tokens_of_held_out_text_fall_back_one_at_a_time(tmp_path: Path) -> None:
    """Right is what the teacher would have written; the share of whole answers is not taken from it."""
    count = 400
    agree = [i % 4 > 0 for i in range(count)]
    columns = {
        "group": [f"g{i // 2}" for i in range(count)],
        "agree_student": agree,
        "probability_student": [0.8 if one else 0.3 for one in agree],
    }
    pq.write_table(pa.table(columns), tmp_path / "tokens.parquet")
    found = cascade_of(tmp_path)
    assert found is not None and found.of == "tokens" and found.teacher == 1.0
    assert found.chosen.threshold == 0.8 and found.chosen.fall_back == pytest.approx(1 - found.student)
    priced = economics_of(recipe(), measures(**SPEEDS), MANIFESTS, {}, found)
    assert priced.inputs["fall_back"].source == "assumed"
    text = "\n".join(lines_of(priced))
    assert "held-out tokens" in text and "the teacher's first choice" in text


def test_what_a_token_costs_where_the_teacher_reads_along() -> None:
    """By hand: half is read. Student $1 read and $3 written, teacher $10 and $30, a fifth falls back.

    Student (1 + 3) / 2 = 2; the teacher reads prompts for 10 / 2 = 5, and what is written costs
    (0.2 · 30 + 0.8 · 10) / 2 = 7.
    """
    situation = Situation(Price(10, 30), Price(1, 3), spent=0, read_share=0.5, tokens_per_day=1e6)
    assert round(situation.token_by_token(0.2), 2) == 14.00
    assert situation.token_by_token(0.0) == situation.student_per_million == 2.00
    assert situation.token_by_token(1.0) == 2.00 + situation.teacher_per_million == 22.00

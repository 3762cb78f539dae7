"""Tasks of multiple choice: which choice is likeliest, tests of pairs, and what is kept above chance."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from potstill.errors import DataError
from potstill.evaluate.accuracies import detectable, kept_of, least_lost, losses_of, mcnemar
from potstill.evaluate.measures.base import Draws, Setting
from potstill.evaluate.measures.capability import (
    Question,
    by_teacher_alone,
    found_of,
    scores_of,
    solved_of,
)
from potstill.evaluate.measures.solved import Solution, Solvers
from potstill.evaluate.questions import choices_of, task_problems
from potstill.evaluate.scores import Scores
from potstill.evaluate.stage import stage
from potstill.measures import Figures, Measures
from potstill.recipe.data import FileData
from potstill.recipe.measures import Capability, ChoiceTask, WrittenTask
from potstill.recipe.verify import Judge, Numeric
from potstill.types import Record
from small_run import CHAT, SmallRun, held_out, records

DRAWS = Draws(200, 0.95, 0)
TASK = ChoiceTask(name="sums", data=FileData(kind="jsonl", path=Path("sums.jsonl")))


def questions(count: int, choices: int = 2) -> list[Question]:
    return [Question((1,), tuple((c,) for c in range(choices)), (1,) * choices, 0, f"g{n}") for n in range(count)]


def logs(right: list[bool]) -> list[list[float]]:
    return [[math.log(0.8), math.log(0.2)] if one else [math.log(0.2), math.log(0.8)] for one in right]


def test_the_likeliest_choice_depends_on_what_it_is_divided_by() -> None:
    # A long right choice of log-probability −6 in 3 tokens and 12 bytes, and a short wrong one: −3, 1 token, 3 bytes.
    question = Question((1,), ((1, 2, 3), (4,)), (12, 3), 0, "g")
    found = scores_of([question], [[-6.0, -3.0]], "bytes").more
    assert [bool(found[kind][0]) for kind in ("none", "tokens", "bytes")] == [False, True, True]
    found = scores_of([question], [[-6.0, -1.2]], "bytes").more
    assert [bool(found[kind][0]) for kind in ("none", "tokens", "bytes")] == [False, False, False]
    assert found["nll"][0] == pytest.approx(math.log(1 + math.exp(4.8)))


def told_apart(lost: int, won: int, count: int = 300) -> tuple[Scores, Scores]:
    """Student and teacher, of questions of which the last third is beyond both."""
    theirs = np.arange(count) < count * 2 // 3
    mine = theirs.copy()
    mine[:lost] = False
    mine[count - won :] = True
    chance = {"chance": np.zeros(count)}
    return Scores(correct=mine, more=chance), Scores(correct=theirs, more=chance)


def test_the_least_that_is_lost_is_that_of_the_exact_test_of_pairs() -> None:
    student, teacher = told_apart(8, 0)
    # Clopper and Pearson: of eight questions that tell both apart, at least 0.025^(1/8) = 0.6306 are the teacher's.
    assert least_lost([student], teacher, 0.95) == pytest.approx(8 * (2 * 0.6306 - 1) / 300, abs=1e-6)
    assert least_lost([teacher], teacher, 0.95) == 0


@pytest.mark.parametrize(
    ("lost", "won", "named"), [(5, 0, False), (8, 0, False), (12, 0, True), (20, 9, False), (40, 9, True)]
)
def test_a_task_is_lost_where_the_exact_test_says_so_too(lost: int, won: int, named: bool) -> None:
    """Of 13 losses that are looked for, 5 % in all: one-sided p < 0.0038, which 8 to 0 has not by this margin."""
    student, teacher = told_apart(lost, won)
    scores = {"teacher": [teacher], "student": [student]}
    (loss,) = losses_of("sums", "capability", scores, DRAWS.of([f"g{n}" for n in range(300)]))
    assert loss.beyond_noise(0.95, 13) == named
    assert loss.size.value == pytest.approx((lost - won) / 200)


def test_mcnemars_test_by_hand() -> None:
    # 2 · P(X ≤ 1 | 6, ½) = 2 · 7 / 64.
    assert mcnemar(1, 5) == pytest.approx(14 / 64) and mcnemar(5, 1) == mcnemar(1, 5)
    assert mcnemar(0, 0) == 1.0 and mcnemar(3, 3) == 1.0


def test_the_least_detectable_difference_is_that_of_a_test_of_80_percent_power() -> None:
    assert detectable(0.01, 0.95) == pytest.approx(0.01 * (1.959964 + 0.841621), rel=1e-5)


def test_what_is_kept_is_counted_from_chance() -> None:
    right = [True] * 60 + [False] * 40
    teacher = scores_of(questions(100), logs([True] * 80 + [False] * 20), "none")
    student = scores_of(questions(100), logs(right), "none")
    bootstrap = DRAWS.of([f"g{n}" for n in range(100)])
    assert bootstrap.value(kept_of(student, teacher)) == pytest.approx((0.6 - 0.5) / (0.8 - 0.5))


def found_for(teacher: list[bool], student: list[bool]) -> Any:
    asked = questions(len(teacher))
    scores = {
        "teacher": [scores_of(asked, logs(teacher), "none")],
        "student": [scores_of(asked, logs(student), "none")],
    }
    return found_of(TASK, asked, scores, DRAWS)


def test_no_share_is_given_where_the_teacher_is_at_chance() -> None:
    half = [n % 2 == 0 for n in range(100)]
    found = found_for(half, half[::-1])
    assert any("no share of its accuracy" in note for note in found.notes)
    (figures,) = found.findings
    assert isinstance(figures, Figures)
    assert "sums_kept" not in {spec.name for spec, _ in figures.rows} and found.losses == ()


def test_without_a_question_that_tells_them_apart_no_least_difference_is_given() -> None:
    same = [n % 10 != 0 for n in range(100)]
    (figures,) = found_for(same, same).findings
    assert "0.0 points" not in figures.text and "No question tells them apart" in figures.text


def test_a_worse_student_is_named_with_its_test() -> None:
    found = found_for([n % 10 != 0 for n in range(100)], [n % 10 < 6 and n % 10 != 0 for n in range(100)])
    (figures,), (loss,) = found.findings, found.losses
    assert "The teacher alone is right on 40 questions, the student alone on 0" in figures.text
    assert "p < 0.001" in figures.text and "points would be seen in 80 % of cases" in figures.text
    assert loss.beyond_noise(0.95) and loss.text == "gets fewer questions of sums right: 50.0 %, its teacher 90.0 %"
    kept = {spec.name: values for spec, values in figures.rows}["sums_kept"]
    # Half is chance: nothing is kept, so all is lost.
    assert kept["student"].value == pytest.approx(0.0) and loss.share == pytest.approx(1.0)
    assert loss.per == "what its teacher gets right above chance"


def test_an_equal_student_is_accused_in_few_of_many_tries() -> None:
    rng = np.random.default_rng(0)
    accused = 0
    for _ in range(200):
        easy = rng.random(150)
        teacher, student = (list(rng.random(150) < 0.5 + 0.4 * easy) for _ in range(2))
        accused += found_for(teacher, student).losses[0].beyond_noise(0.95)
    assert accused / 200 <= 0.05


@pytest.mark.parametrize(("reference", "right"), [("red", 0), ("B", 1), ("b", 1), ("1", 1), (1, 1)])
def test_a_reference_is_a_text_a_letter_or_a_number(reference: Any, right: int) -> None:
    record = Record(prompt="Which?", metadata={"choices": ["red", "blue"], "reference": reference})
    assert choices_of(record, "here")[1] == right


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"choices": ["a b", "c d"], "reference": "green"}, "is none of its choices"),
        ({"choices": "ab", "reference": "a"}, "is no question with choices"),
        ({"choices": ["a", " "], "reference": "a"}, "a choice of row 3 is empty, and has no probability"),
        ({"reference": "a"}, "is no question with choices"),
    ],
)
def test_what_is_no_question_is_refused(metadata: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        choices_of(Record(prompt="Which?", metadata=metadata, row=3), "here")
    assert "row 3" in str(caught.value) and "fix" in str(caught.value)


def test_an_evaluation_asks_all_models_and_keeps_every_answer(tmp_path: Path) -> None:
    file = tmp_path / "choices.jsonl"
    rows = [{"prompt": f"Is {n} even?", "choices": ["yes", "no"], "reference": ["yes", "no"][n % 2]} for n in range(12)]
    file.write_text("\n".join(map(json.dumps, rows)))
    task = {"name": "even", "data": {"kind": "jsonl", "path": str(file), "format": "prompt"}, "limit": 10}
    measures = [{"kind": "fidelity"}, {"kind": "capability", "tasks": [task]}]
    run = SmallRun(tmp_path, text_only=False, evaluate={"samples_shown": 0, "speed": False, "measures": measures})
    context = run.context()
    stage(run.recipe).write(context)
    found = Measures.load(context.out / "measures.json")
    assert {name for name, m in found.models.items() if m.get("even_accuracy")} == {"teacher", "student", "untrained"}
    assert found.comparison("student", "teacher", "even_accuracy") is not None
    table = pq.read_table(context.out / "choices.parquet").to_pydict()
    assert len(table["task"]) == 10 and set(table) >= {"correct_student", "correct_teacher", "right"}
    student = found.models["student"].get("even_accuracy")
    assert student is not None and student.value == pytest.approx(sum(table["correct_student"]) / 10)


def test_written_answers_are_judged_by_a_verifier_and_paired_with_the_teachers(tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    # What a tiny model writes is no sum: one pattern of two is found in any answer.
    rows = [
        {"prompt": f"Add {n} and {n}.", "metadata": {"pattern": "[a-z]" if n % 2 else "^never$"}} for n in range(20)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    task = {
        "name": "sums",
        "data": {"kind": "jsonl", "path": str(file), "format": "prompt"},
        "verify": {"kind": "regex", "key": "pattern"},
        "max_new_tokens": 6,
    }
    asked = [{"kind": "fidelity"}, {"kind": "capability", "written": [task]}]
    run = SmallRun(tmp_path, evaluate={"samples_shown": 0, "measures": asked})
    context = run.context()
    stage(run.recipe).write(context)
    measures = Measures.load(context.out / "measures.json")
    table = pq.read_table(context.out / "sums.parquet").to_pydict()
    for name in ("teacher", "student", "text_only", "untrained"):
        found = measures.models[name].metrics["sums_accuracy"].value
        assert found == pytest.approx(np.mean(table[f"solved_{name}"]))
    (figures,) = (f for f in measures.findings if isinstance(f, Figures) and f.section == "capability")
    assert "McNemar" in figures.text and figures.title == "sums: 20 problems"
    assert len((context.out / "sums.jsonl").read_text().splitlines()) == 20


def test_a_capability_without_a_task_is_refused() -> None:
    with pytest.raises(ValidationError, match="capability has no task"):
        Capability()


def test_problems_that_every_seed_fails_and_the_teacher_solves_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    lines = [{"prompt": f"Add {n} and {n}.", "metadata": {"reference": str(2 * n)}} for n in range(30)]
    file.write_text("\n".join(map(json.dumps, lines)))
    data = FileData(kind="jsonl", path=file, format="prompt")
    task = WrittenTask(name="sums", data=data, verify=Numeric())
    run = SmallRun(tmp_path, evaluate={"samples_shown": 0})
    context = run.context()
    setting = Setting(
        run.recipe, CHAT, context.work, context.console, held_out(records(2)), tmp_path, tmp_path / "run", None
    )
    solvers = Solvers(task, setting, task_problems(task, CHAT, context.work.count))
    for name, solved in (("teacher", "110110"), ("student", "000100"), ("student", "001010")):
        solvers.take(name, [asdict(Solution("", "accept" if one == "1" else "reject")) for one in 5 * solved])
    (examples,) = by_teacher_alone(task, solvers)
    assert [one.text for one in examples.examples[:3]] == ["Add 0 and 0.", "Add 1 and 1.", "Add 6 and 6."]
    assert len(examples.examples) == 10 and examples.examples[1].target == "2"
    assert examples.title == "To read: sums, where all 2 students fail and the teacher does not"
    (loss,) = solved_of(task, solvers, DRAWS).losses
    assert loss.text == "gets fewer questions of sums right: 25.0 %, its teacher 66.7 %"
    assert loss.share == pytest.approx(1 - 1.5 / 4) and loss.per == "what its teacher gets right"
    solvers.take("student", [asdict(Solution("", "accept"))] * 30)
    assert by_teacher_alone(task, solvers) == ()


@pytest.mark.parametrize("name", ["tokens", "Choices", "solved"])
def test_a_task_has_no_name_of_a_file_of_the_evaluation(name: str) -> None:
    with pytest.raises(ValidationError, match="an evaluation writes a file of that name"):
        WrittenTask(name=name, data=FileData(kind="jsonl", path=Path("x.jsonl")), verify=Numeric())


def test_a_judge_cannot_judge_a_task() -> None:
    with pytest.raises(ValidationError, match="add the measure judged"):
        WrittenTask(name="x", data=FileData(kind="jsonl", path=Path("x.jsonl")), verify=Judge())

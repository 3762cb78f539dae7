"""The course: its texts, its questions, the test, and progress that is never lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from studio.conftest import Site

from potstill.console import Console
from potstill.errors import RunError, UserError
from potstill.studio.course import content, labs
from potstill.studio.course.command import run_lab
from potstill.studio.course.progress import PASS_SHARE, QUESTIONS, Progress
from potstill.studio.workspace import Workspace

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", content.LESSONS)
def test_a_lesson_has_800_to_1500_words_and_its_citations_are_in_the_bibliography(number: int) -> None:
    text = content.lesson(number)
    assert 800 <= len(text.split()) <= 1500
    cited = re.findall(r"\[([a-z0-9]+)\](?!\()", text)
    assert cited and set(cited) <= set(content.bibliography())
    html, headings = content.lesson_html(number, "/sources")
    assert len(headings) >= 5
    assert html.count("<figure") == text.count("```figure") and "[" + cited[0] + "]" not in html


def test_every_source_is_cited_and_every_figure_shown() -> None:
    texts = " ".join(map(content.lesson, content.LESSONS))
    cited = set(re.findall(r"\[([a-z0-9]+)\]", texts))
    questions = [q for n in content.LESSONS for q in content.quiz(n)] + list(content.bank())
    cited |= {source for q in questions for source in q.source}
    assert cited == set(content.bibliography())
    assert set(re.findall(r"```figure\n(\w+)", texts)) == set(content.figures())
    assert all(figure["source"] for figure in content.figures().values())


def test_figures_from_the_log_are_in_the_log() -> None:
    """Each number of a lesson's figure that comes from the log stands there, under the date that is given."""
    log = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    for name, figure in content.figures().items():
        if not figure["source"].startswith("docs/log.md") or figure["kind"] != "bars":
            continue
        for label, value in figure["values"]:
            assert re.search(rf"(?<![\d.]){value:g}(?!\d)", log), f"{name}: {label} {value}"


def test_what_popular_accounts_have_wrong_is_said_as_the_papers_say_it() -> None:
    assert "0, 2,\n4, 7, 9 and 11" in content.lesson(2) or "0, 2, 4, 7, 9 and 11" in content.lesson(2).replace(
        "\n", " "
    )
    assert "text-davinci-003" in content.lesson(1)


@pytest.mark.parametrize("number", content.LESSONS)
def test_a_quiz_explains_every_choice(number: int) -> None:
    questions = content.quiz(number)
    assert len(questions) == 3
    for question in questions:
        assert sum(choice.right for choice in question.choices) == 1
        assert len(question.choices) >= 3
        assert all(len(choice.why) > 10 for choice in question.choices)


def test_the_bank_has_sixty_questions_with_one_right_choice_each() -> None:
    bank = content.bank()
    assert len(bank) >= 60 and len({question.ask for question in bank}) == len(bank)
    for question in bank:
        texts = [choice.text for choice in question.choices]
        assert sum(choice.right for choice in question.choices) == 1
        assert len(texts) == len(set(texts)) == 4
        assert question.why and question.source


def test_a_test_has_fifteen_questions_of_all_lessons_in_a_shuffled_order(tmp_path: Path) -> None:
    places = set()
    for seed in range(20):
        test = Progress(tmp_path / "p.json").begin_test(seed)
        lessons = [question.lesson for question, _ in test.asked()]
        assert len(test.questions) == len(set(test.questions)) == QUESTIONS
        assert all(lessons.count(number) >= 3 for number in content.LESSONS)
        places |= {order.index(question.right) for question, order in test.asked()}
    assert places == {0, 1, 2, 3}


@pytest.mark.parametrize(("wrong", "passed"), [(0, True), (3, True), (4, False), (15, False)])
def test_four_fifths_pass(tmp_path: Path, wrong: int, passed: bool) -> None:
    progress = Progress(tmp_path / "p.json")
    test = progress.begin_test(1)
    answers = {question.key: order.index(question.right) for question, order in test.asked()}
    for key in list(answers)[:wrong]:
        answers[key] = (answers[key] + 1) % 4
    progress.end_test(answers)
    assert test.right == QUESTIONS - wrong
    assert test.passed is passed is (test.right >= PASS_SHARE * QUESTIONS)


def test_what_is_not_answered_is_wrong(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "p.json")
    progress.begin_test(1)
    assert progress.end_test({}).right == 0


def test_progress_is_read_back_as_it_was(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "p.json", name="Ada", read=[1, 2], quiz={"1-1": 0})
    progress.begin_test(3)
    progress.save()
    assert Progress.load(tmp_path / "p.json") == progress


def test_a_damaged_file_of_progress_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{half")
    assert Progress.load(tmp_path / "p.json").read == []
    assert (tmp_path / "p.json.damaged").read_text() == "{half"


def test_every_page_of_the_course_is_there(site: Site) -> None:
    pages = ["learn", "learn/test", "learn/certificate", "learn/sources"]
    pages += [f"learn/{n}{part}" for n in content.LESSONS for part in ("", "/lab")]
    for path in pages:
        assert site.get(path).status_code == 200, path
    assert site.get("learn/5").status_code == 404


def test_a_quiz_says_why_after_an_answer_and_not_before(site: Site) -> None:
    question = content.quiz(1)[0]
    assert question.choices[1].why not in site.get("learn/1").text
    site.post("learn/1", **{question.key: "1"})
    page = site.get("learn/1").text
    assert "That is not right" in page
    site.post("learn/1", **{question.key: str(question.right)})
    assert "That is right." in site.get("learn/1").text


def test_from_the_test_to_a_certificate(site: Site) -> None:
    assert "No certificate yet" in site.get("learn/certificate").text
    site.post("learn/test", do="begin")
    progress = Progress.load(site.studio.workspace.own / "course.json")
    assert progress.test is not None
    asked = progress.test.asked()
    page = site.get("learn/test").text
    assert all(question.why[:30] not in page for question, _ in asked)  # nothing is given away
    site.post("learn/test", do="end", **{q.key: str(order.index(q.right)) for q, order in asked})
    assert "passed" in site.get("learn/test").text
    site.post("learn/certificate", name="Ada <b>Lovelace</b>")
    page = site.get("learn/certificate").text
    assert "Ada &lt;b&gt;Lovelace" in page and "15 of 15" in page
    assert "no lab yet" in page


def test_a_step_that_this_version_cannot_do_says_what_it_needs(site: Site, tmp_path: Path) -> None:
    for number in content.LESSONS:
        for step in content.lab(number).steps:
            why = labs.missing(step)
            assert bool(why) == bool(step.needs and not _there(step.needs)), step.key
            if why:
                assert why in site.get(f"learn/{number}/lab").text.replace("&#39;", "'")
            else:
                assert callable(labs.step_of(number, step.key))


def _there(needs: tuple[str, ...]) -> bool:
    from importlib.util import find_spec

    return all(find_spec(need) for need in needs)


def test_labs_take_at_most_a_quarter_of_an_hour_by_their_own_account() -> None:
    for number in content.LESSONS:
        assert sum(step.seconds for step in content.lab(number).steps) <= 15 * 60


def test_the_command_line_refuses_what_is_not_there(tmp_path: Path) -> None:
    quiet = Console("quiet")
    with pytest.raises(UserError, match="did you mean 'distribution'"):
        run_lab(tmp_path, 1, ["distributoin"], {}, quiet, ask=None)
    with pytest.raises(UserError, match="no field"):
        run_lab(tmp_path, 1, [], {"promt": "x"}, quiet, ask=None)
    assert run_lab(tmp_path, 1, [], {}, quiet, ask=lambda _: False) == {}


def test_a_field_that_makes_no_sense_is_an_error_for_the_reader(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no digit"):
        run_lab(tmp_path, 4, ["plant"], {"digit": "seven"}, Console("quiet"), ask=None)
    events = [json.loads(line) for line in (tmp_path / ".studio/labs/4/events.jsonl").read_text().splitlines()]
    assert events[-1]["state"] == "failed"


def test_a_lab_is_done_by_one_process_at_a_time(tmp_path: Path) -> None:
    import fcntl

    workspace = Workspace(tmp_path)
    folder = labs.lab_folder(workspace, 4)
    folder.mkdir(parents=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="at work already"):
            labs.run_steps(workspace, 4, ["plant"], {}, Console("quiet"))
        with pytest.raises(RunError, match="at work already"):
            labs.start_step(workspace, 4, "plant", {})


@pytest.mark.slow
def test_a_planted_loss_is_found_where_it_was_planted(tmp_path: Path) -> None:
    came = run_lab(tmp_path, 4, ["plant"], {"digit": "8"}, Console("quiet"), ask=None)
    assert came["plant"]["passed"]
    outcome = labs.outcomes(Workspace(tmp_path), 4)["plant"]
    recall = dict(outcome.blocks[0]["values"])
    assert min(recall, key=recall.__getitem__) == "8"
    assert recall["8"] < 80 < sum(recall.values()) / 10


def test_sampling_a_distribution_is_unbiased_and_cutting_it_is_not() -> None:
    import numpy as np

    from potstill.studio.course.lab2 import estimates

    p = np.random.default_rng(1).dirichlet(np.full(500, 0.1))
    found = estimates(p, 400, np.random.default_rng(0))
    assert found["50 drawn"][1] < 0.05 * found["50 drawn"][2]
    assert found["top-12, rescaled"][1] > found["top-50, rescaled"][1] > 0

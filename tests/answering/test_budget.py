"""The token budget: a stated limit is a hard limit."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from generate.fake_teacher import FakeTeacher, FakeTeacherSettings
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.answering.budget import TokenBudget
from potstill.answering.journal import Journal
from potstill.answering.local import JournaledTeacher, Question, plan_batches
from potstill.console import Console
from potstill.errors import PotstillError
from potstill.types import Answer, Request, Sampling


class Auditor(FakeTeacher):
    """Adds up what was really written."""

    written = 0

    def generate(self, requests, *, seed, wrote=None):  # type: ignore[no-untyped-def]
        answers = super().generate(requests, seed=seed)
        self.written += sum(a.completion_tokens for a in answers)
        return answers


def questions(count: int, samples: int, sampling: Sampling) -> list[Question]:
    return [
        Question(tuple(Request(sampling, prompt=f"p{i}", sample=s) for s in range(samples)), "train", i)
        for i in range(count)
    ]


@settings(deadline=None, max_examples=40)  # every example flushes to a disk, whose speed is no claim of ours
@given(
    cap=st.integers(1, 600),
    count=st.integers(1, 25),
    samples=st.integers(1, 3),
    batch_size=st.integers(1, 8),
    longest=st.integers(1, 40),
    beams=st.booleans(),
    seed=st.integers(0, 5),
)
def test_a_budget_is_never_exceeded_by_one_token_and_is_used_to_the_last_answer_that_fits(
    cap: int, count: int, samples: int, batch_size: int, longest: int, beams: bool, seed: int
) -> None:
    sampling = Sampling(longest, beams=4) if beams else Sampling(longest, temperature=1.0)
    asked = questions(count, samples, sampling)
    teacher = Auditor(FakeTeacherSettings())
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.sqlite") as journal:
        budget = TokenBudget(cap)
        journaled = JournaledTeacher(teacher, journal, budget=budget, seed=seed, console=Console("quiet"))
        batches = plan_batches(asked, teacher.identity, batch_size=batch_size, seed=seed)
        answered = [r for batch, _, _ in journaled.answer(batches) for r in batch.requests]
        first = teacher.written
        # Again, from the journal: the same answers, and not one token more.
        again = JournaledTeacher(teacher, journal, budget=TokenBudget(cap), seed=seed, console=Console("quiet"))
        assert [r for batch, _, _ in again.answer(batches) for r in batch.requests] == answered
    assert teacher.written == first == budget.spent <= cap
    assert budget.reserved == 0
    assert len(answered) + len(journaled.unanswered) == count * samples
    if journaled.unanswered:
        assert cap - budget.spent < longest * (samples if beams else 1)


def test_without_a_cap_everything_fits() -> None:
    budget = TokenBudget(None)
    assert budget.fits(10**12) and budget.left is None


def test_a_reservation_that_does_not_fit_is_refused() -> None:
    budget = TokenBudget(10)
    budget.reserve(6)
    assert not budget.fits(5) and budget.fits(4)
    with pytest.raises(PotstillError, match="do not fit"):
        budget.reserve(5)
    budget.settle(6, 2)
    assert budget.left == 8


def test_a_teacher_that_writes_more_than_it_was_allowed_is_found_out(tmp_path: Path) -> None:
    class Chatty(FakeTeacher):
        def generate(self, requests, *, seed, wrote=None):  # type: ignore[no-untyped-def]
            return [Answer("word " * 9, "stop", 1, 9) for _ in requests]

    teacher = Chatty(FakeTeacherSettings())
    batches = plan_batches(questions(1, 1, Sampling(8)), teacher.identity, batch_size=4, seed=0)
    with Journal(tmp_path / "journal.sqlite") as journal:
        asked = JournaledTeacher(teacher, journal, budget=TokenBudget(100), seed=0, console=Console("quiet"))
        with pytest.raises(PotstillError, match="broke its limit"):
            list(asked.answer(batches))


def test_progress_moves_with_the_tokens_of_a_batch_and_ends_at_what_was_written(tmp_path: Path) -> None:
    shown: list[float] = []

    class Telling(FakeTeacher):
        def generate(self, requests, *, seed, wrote=None):  # type: ignore[no-untyped-def]
            for _ in range(9):
                wrote(len(requests))
            return [Answer("word " * 10, "length", 1, 10) for _ in requests]

    class Recording(Console):
        @contextmanager
        def task(self, label, total, unit=""):  # type: ignore[no-untyped-def]
            yield SimpleNamespace(advance=lambda amount=1.0, note="", total=None: shown.append(amount))

    teacher = Telling(FakeTeacherSettings())
    with Journal(tmp_path / "journal.sqlite") as journal:
        journaled = JournaledTeacher(teacher, journal, budget=TokenBudget(None), seed=0, console=Recording("quiet"))
        batches = plan_batches(questions(2, 1, Sampling(10)), teacher.identity, batch_size=2, seed=0)
        list(journaled.answer(batches))
    assert shown == [2] * 9 + [2], "every step, and at the end what the steps did not show"

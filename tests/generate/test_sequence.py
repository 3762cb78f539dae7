"""Sequence-level distillation: what is asked, what is kept, and what is said of the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
from generate.fake_teacher import CHATML, FakeTeacher, FakeTeacherSettings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.answering.budget import TokenBudget
from potstill.answering.journal import Journal
from potstill.answering.local import JournaledTeacher, LocalAnswering
from potstill.artifacts import Work
from potstill.console import Console
from potstill.errors import DataError
from potstill.generate.sequence import Sequence as SequenceOf
from potstill.recipe import SequenceProgram
from potstill.types import Answer, Provenance, Record, Reject, Request, Sampling, group_of

SOURCE = Provenance(source="prompts.jsonl", licence="CC0-1.0")


def prompt(text: str, row: int = 1) -> Record:
    return Record(prompt=text, group=group_of(text), row=row, provenance=SOURCE)


def chat(*turns: str, row: int = 1, **more: Any) -> Record:
    messages = tuple({"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(turns))
    return Record(messages=messages, group=group_of(turns[0]), row=row, provenance=SOURCE, **more)


class Written(NamedTuple):
    records: list[Record]
    rejects: list[Reject]


class Listener(FakeTeacher):
    """Keeps what it was asked; answers as it is told, else as the fake does."""

    def __init__(self, say: Callable[[Request], Answer] | None = None, template: str | None = CHATML) -> None:
        super().__init__(FakeTeacherSettings(template=template))
        self.asked: list[Request] = []
        self.say = say

    def generate(self, requests: Sequence[Request], *, seed: int, wrote: Any = None) -> list[Answer]:
        self.asked.extend(requests)
        return [self.say(r) for r in requests] if self.say else super().generate(requests, seed=seed)


def write(
    tmp_path: Path,
    records: Sequence[Record],
    teacher: FakeTeacher,
    cap: int | None = None,
    context_length: int | None = None,
    **settings: Any,
) -> tuple[Written, Work]:
    work = Work(tmp_path, resumed=False)
    program = SequenceProgram(**settings)
    teacher.context_length = context_length
    with Journal(tmp_path / "journal.sqlite") as journal:
        journaled = JournaledTeacher(teacher, journal, budget=TokenBudget(cap), seed=0, console=Console("quiet"))
        answering = LocalAnswering(journaled, batch_size=program.batch_size)
        came = list(
            SequenceOf(program).write(
                records,
                answering,
                side_of=lambda record: "held_out" if record.row % 4 == 0 else "train",
                work=work,
            )
        )
    records_of = [item for item in came if isinstance(item, Record)]
    return Written(records_of, [item for item in came if not isinstance(item, Record)]), work


def test_every_prompt_is_answered_and_rows_stand_in_the_order_of_the_data(tmp_path: Path) -> None:
    records = [prompt(f"{'long ' * (40 - n)}{n}", row=n) for n in range(1, 41)]
    written, work = write(tmp_path, records, Listener(), samples=3, temperature=1.0, batch_size=6)
    assert [(r.row, r.sample) for r in written.records] == [(n, s) for n in range(1, 41) for s in range(3)]
    assert all(not r.is_prompt for r in written.records)
    assert [r.group for r in written.records[::3]] == [r.group for r in records]
    assert work.counts["prompts"] == 40 and len(written.records) == 120


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.booleans()), max_size=20), st.randoms())
def test_every_request_is_asked_whatever_stands_beside_it(
    tmp_path: Path, mix: list[tuple[int, int, bool]], draw: Random
) -> None:
    asked = [
        Request(Sampling(4, 1.0 if warm else 0.0), prompt=f"prompt {'long ' * n}", sample=sample)
        for n, sample, warm in mix
    ]
    (tmp_path / "journal.sqlite").unlink(missing_ok=True)
    heard = []
    for _ in range(2):
        teacher = Listener(lambda r: Answer(f"{r.prompt} {r.sample} {r.sampling.temperature}", "stop", 3, 1))
        with Journal(tmp_path / "journal.sqlite") as journal:
            journaled = JournaledTeacher(teacher, journal, budget=TokenBudget(None), seed=0, console=Console("quiet"))
            came = list(LocalAnswering(journaled, batch_size=3).answers(asked))
        assert [a.request for a in came] == asked
        assert [a.answer and a.answer.text for a in came] == [
            f"{r.prompt} {r.sample} {r.sampling.temperature}" for r in asked
        ]
        heard.append(teacher.asked)
        draw.shuffle(asked)
    # Each once; in another order they are in the same batches, which the journal has.
    assert sorted(map(repr, heard[0])) == sorted(set(map(repr, asked))) and not heard[1]


def test_two_questions_that_show_the_same_are_both_asked_after_a_single_one(tmp_path: Path) -> None:
    """As calls of self_instruct that happen to show the same examples."""
    asked = [Request(Sampling(4, 1.0), prompt="p", sample=0)]
    asked += [Request(Sampling(4, 1.0), prompt="another", sample=n) for n in (1, 2)]
    with Journal(tmp_path / "journal.sqlite") as journal:
        journaled = JournaledTeacher(Listener(), journal, budget=TokenBudget(None), seed=0, console=Console("quiet"))
        came = list(LocalAnswering(journaled, batch_size=3).answers(asked))
    assert [a.failure for a in came] == [None] * 3


def test_an_answer_becomes_a_turn_of_the_conversation_and_tools_stay(tmp_path: Path) -> None:
    tools = ({"type": "function", "function": {"name": "look"}},)
    record = chat("Hello", tools=tools)
    teacher = Listener(lambda r: Answer("Hi.", "stop", 3, 2, reasoning="They greet me."))
    written, _ = write(tmp_path, [record], teacher)
    (answered,) = written.records
    assert answered.messages == (
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi.", "reasoning_content": "They greet me."},
    )
    assert answered.tools == tools and teacher.asked[0].tools == tools
    assert answered.finished


def test_a_reference_answer_is_dropped_and_its_prompt_answered(tmp_path: Path) -> None:
    conversation = chat("First", "An answer", "Second", "The reference", row=1)
    pair = replace(prompt("Third", row=2), completion="The reference")
    teacher = Listener(lambda r: Answer("New", "stop", 3, 1))
    written, work = write(tmp_path, [conversation, pair], teacher)
    asked = {tuple(m["content"] for m in r.messages or ()) for r in teacher.asked}
    assert asked == {("First", "An answer", "Second"), ("Third",)}
    said = [[m["content"] for m in r.messages or ()] for r in written.records]
    assert said == [["First", "An answer", "Second", "New"], ["Third", "New"]]
    assert work.counts["reference answers dropped"] == 2


def test_a_plain_prompt_is_the_users_turn_or_continued_as_it_stands(tmp_path: Path) -> None:
    """As the data room renders it for the student: answered behind the very tokens that it is learned behind."""
    instructed, base = Listener(), Listener(template=None)
    (turns,) = write(tmp_path, [prompt("Once")], instructed)[0].records
    (text,) = write(tmp_path, [prompt("Once")], base)[0].records
    assert instructed.asked[0].messages == ({"role": "user", "content": "Once"},) == (turns.messages or ())[:1]
    assert (turns.prompt, turns.completion) == (None, None) and turns.group == group_of("Once")
    assert base.asked[0].prompt == "Once" == text.prompt and text.completion and text.messages is None


def test_a_conversation_that_the_template_refuses_is_a_reject_and_without_a_template_an_error(tmp_path: Path) -> None:
    picky = Listener(template="{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}hi")
    system = Record(messages=({"role": "system", "content": "Be kind."},), group="s", row=1)
    written, _ = write(tmp_path, [system, chat("Hello", row=2)], picky)
    assert [(r.row, r.reason, r.detail) for r in written.rejects] == [
        (1, "the chat template refuses it", "the chat template refuses the conversation: user first")
    ]
    assert len(written.records) == 1
    with pytest.raises(DataError, match="no chat template"):
        write(tmp_path, [chat("Hello")], Listener(template=None))


def test_what_has_no_prompt_is_a_reject_with_its_reason(tmp_path: Path) -> None:
    document = Record(text="Once upon a time", group="g", row=3, provenance=SOURCE)
    only_answer = Record(messages=({"role": "assistant", "content": "Yes."},), row=4, provenance=SOURCE)
    twice = prompt("Same", row=5), replace(prompt("Same", row=6), completion="with a reference")
    written, _ = write(tmp_path, [document, only_answer, *twice], Listener())
    assert [(r.row, r.reason) for r in written.rejects] == [
        (3, "a text has no prompt to answer"),
        (4, "no message to answer"),
        (6, "same prompt as an earlier record"),
    ]
    assert written.rejects[0].source == "prompts.jsonl" and written.rejects[0].excerpt == "Once upon a time"


def test_a_prompt_that_leaves_no_room_is_kept_out_and_little_room_is_counted(tmp_path: Path) -> None:
    records = [prompt("x" * n, row=n) for n in (9, 10, 4)]
    written, work = write(tmp_path, records, Listener(template=None), context_length=10, max_new_tokens=5)
    (full,) = written.rejects
    assert (full.row, full.reason, full.detail) == (10, "the prompt fills the teacher's context", "10 tokens of 10")
    assert [r.row for r in written.records] == [9, 4]
    assert work.counts["prompts with less room than max_new_tokens"] == 1


def test_an_answer_cut_short_is_marked_or_kept_out_as_the_recipe_says(tmp_path: Path) -> None:
    teacher = Listener(lambda r: Answer("On and on", "length" if "long" in str(r.messages) else "stop", 3, 8))
    records = [prompt("long", row=1), prompt("short", row=2)]
    kept, _ = write(tmp_path, records, teacher, max_new_tokens=8)
    assert [r.finished for r in kept.records] == [False, True]
    strict, _ = write(tmp_path, records, teacher, max_new_tokens=8, keep_unfinished=False)
    assert [r.row for r in strict.records] == [2]
    assert [(r.reason, r.excerpt) for r in strict.rejects] == [("unfinished answer", "On and on")]
    assert len(teacher.asked) == 2  # what is kept is decided after the journal


def test_an_empty_answer_is_kept_out(tmp_path: Path) -> None:
    written, _ = write(tmp_path, [prompt("p")], Listener(lambda r: Answer(" \n", "stop", 3, 1)))
    assert not written.records and [r.reason for r in written.rejects] == ["empty answer"]


def test_every_answer_that_the_budget_leaves_out_is_listed(tmp_path: Path) -> None:
    records = [prompt(f"{n} {'word ' * (n % 9)}", row=n) for n in range(1, 81)]
    written, _ = write(tmp_path, records, Listener(), cap=300, max_new_tokens=20, batch_size=8)
    left_out = [r.row for r in written.rejects if r.reason == "token budget"]
    assert left_out and sorted([*left_out, *(r.row for r in written.records)]) == list(range(1, 81))
    answered = Counter("held_out" if r.row % 4 == 0 else "train" for r in written.records)
    assert answered["held_out"] >= 4 and answered["train"] >= 8


def test_a_record_says_where_it_comes_from(tmp_path: Path) -> None:
    written, _ = write(tmp_path, [prompt("p")], Listener(), temperature=0.7, top_k=40)
    provenance = written.records[0].provenance
    identity = Listener().identity
    assert (provenance.source, provenance.licence) == ("prompts.jsonl", "CC0-1.0")
    assert (provenance.teacher, provenance.revision, provenance.route) == ("fake", "d", "fake")
    assert provenance.template == identity["template"]
    assert provenance.sampling == {"max_new_tokens": 256, "temperature": 0.7, "top_p": 1.0, "top_k": 40, "beams": 1}
    assert provenance.seed is not None
    greedy, _ = write(tmp_path, [prompt("p")], Listener())
    assert greedy.records[0].provenance.seed is None

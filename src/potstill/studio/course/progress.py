"""What a reader has done, kept on disk: lessons read, quizzes answered, tests taken."""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from potstill.artifacts import parse_json, write_atomically
from potstill.studio.course.content import LESSONS, Question, bank, quiz

QUESTIONS = 15
PASS_SHARE = 0.8


@dataclass
class Test:
    """A test: which questions of the bank, the order of their choices, and what was answered (places in that order)."""

    questions: list[str]
    orders: list[list[int]]
    answers: dict[str, int] = field(default_factory=dict)
    ended: str = ""
    right: int = 0

    @property
    def passed(self) -> bool:
        return bool(self.ended) and self.right >= PASS_SHARE * len(self.questions)

    def __post_init__(self) -> None:
        if len(self.questions) != len(self.orders):
            raise ValueError("each question has one order")
        for key, order in zip(self.questions, self.orders, strict=True):
            known = next((question for question in bank() if question.key == key), None)
            if known is not None and sorted(order) != list(range(len(known.choices))):
                raise ValueError("an order holds each choice once")

    def asked(self) -> list[tuple[Question, list[int]]]:
        """The questions with the order of their choices."""
        known = {question.key: question for question in bank()}
        return [(known[k], order) for k, order in zip(self.questions, self.orders, strict=True) if k in known]

    def grade(self, answers: dict[str, int]) -> None:
        """Count what is right. What was not answered is wrong."""
        self.answers = answers
        self.right = sum(
            order[answers[question.key]] == question.right
            for question, order in self.asked()
            if answers.get(question.key, -1) in range(len(order))
        )
        self.ended = time.strftime("%Y-%m-%d")


@dataclass
class Progress:
    """The progress of one folder's reader. Saved whole after each change."""

    path: Path
    name: str = ""
    read: list[int] = field(default_factory=list)
    quiz: dict[str, int] = field(default_factory=dict)
    test: Test | None = None
    best: Test | None = None

    @classmethod
    def load(cls, path: Path) -> Progress:
        """What was saved; a file that cannot be read is put aside, never overwritten."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return cls(path)
        except UnicodeDecodeError:
            text = ""
        try:
            return cls(path, **vars(_SAVED.validate_python(parse_json(text))))
        except ValueError:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside if not aside.exists() else aside.with_name(f"{aside.name}-{time.time_ns()}"))
            return cls(path)

    def save(self) -> None:
        """Write it, whole."""
        facts = {name: value for name, value in asdict(self).items() if name != "path"}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(facts, indent=1))

    def quiz_done(self, lesson: int) -> bool:
        """Whether all questions of a lesson were answered rightly."""
        return all(self.quiz.get(question.key) == question.right for question in quiz(lesson))

    def begin_test(self, seed: int | None = None) -> Test:
        """Draw a test: fifteen questions, at least three of each lesson, choices shuffled."""
        draw = random.Random(seed)
        by_lesson = {number: [q for q in bank() if q.lesson == number] for number in LESSONS}
        drawn = [question for number in LESSONS for question in draw.sample(by_lesson[number], 3)]
        rest = [question for question in bank() if question not in drawn]
        drawn += draw.sample(rest, QUESTIONS - len(drawn))
        draw.shuffle(drawn)
        orders = [draw.sample(range(len(q.choices)), len(q.choices)) for q in drawn]
        self.test = Test([question.key for question in drawn], orders)
        return self.test

    def end_test(self, answers: dict[str, int]) -> Test:
        """Grade the test under way; the best one is kept."""
        assert self.test is not None
        self.test.grade(answers)
        if self.best is None or self.test.right >= self.best.right:
            self.best = self.test
        return self.test


@dataclass
class _Saved:
    """The file, as `Progress.save` writes it."""

    name: str
    read: list[int]
    quiz: dict[str, int]
    test: Test | None
    best: Test | None


_SAVED = TypeAdapter(_Saved)

"""What a million tokens cost, and after how many of them a distillation has paid for itself. In dollars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

MILLION = 1_000_000


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens read (the prompt) and written (the answer)."""

    read: float
    written: float

    def mixed(self, read_share: float) -> float:
        """Dollars per million tokens of which `read_share` (0 to 1) are read and the rest written."""
        return read_share * self.read + (1 - read_share) * self.written


@dataclass(frozen=True)
class Machine:
    """A machine that runs one model.

    Attributes:
        dollars_per_hour: its price.
        read_per_second: tokens of prompts that it reads in a second of work. written_per_second: that it writes.
        utilisation: share of the paid time in which it works, above 0 and at most 1.
    """

    dollars_per_hour: float
    read_per_second: float
    written_per_second: float
    utilisation: float

    @property
    def price(self) -> Price:
        """Dollars per million tokens: seconds per token × dollars per second ÷ utilisation."""
        per_second = self.dollars_per_hour / 3600 / self.utilisation
        return Price(MILLION * per_second / self.read_per_second, MILLION * per_second / self.written_per_second)


@dataclass(frozen=True)
class Spent:
    """What the distillation cost, in dollars: the teacher's tokens, machine hours, people's hours."""

    teacher: float
    machine: float
    people: float

    @property
    def total(self) -> float:
        return self.teacher + self.machine + self.people


@dataclass(frozen=True)
class BreakEven:
    """Tokens after which what was saved equals what was spent, and days at the given volume."""

    tokens: float
    days: float


@dataclass(frozen=True)
class Situation:
    """Everything that decides whether a student pays.

    Attributes:
        teacher, student: their prices.
        spent: dollars for the distillation.
        read_share: share of tokens that are read rather than written.
        tokens_per_day: volume, read and written together.
        fall_back: share of tokens (0 to 1) for which the student's answer is dropped and the teacher asked: both are
            paid.
    """

    teacher: Price
    student: Price
    spent: float
    read_share: float
    tokens_per_day: float
    fall_back: float = 0.0

    @property
    def teacher_per_million(self) -> float:
        return self.teacher.mixed(self.read_share)

    @property
    def student_per_million(self) -> float:
        """Of the student alone."""
        return self.student.mixed(self.read_share)

    @property
    def cascade_per_million(self) -> float:
        """Of the student, and of the teacher for what falls back to it."""
        return self.student_per_million + self.fall_back * self.teacher_per_million

    def token_by_token(self, fall_back: float) -> float:
        """Dollars per million tokens of a cascade whose tokens fall back one at a time: the teacher reads whatever is
        read or written, and writes this share (0 to 1) of what is written. At 0 there is no teacher."""
        if fall_back == 0:
            return self.student_per_million
        written = fall_back * self.teacher.written + (1 - fall_back) * self.teacher.read
        return self.student_per_million + Price(self.teacher.read, written).mixed(self.read_share)

    @property
    def saved_per_million(self) -> float:
        """Below 0: the student costs more."""
        return self.teacher_per_million - self.cascade_per_million

    @property
    def saved_per_day(self) -> float:
        return self.saved_per_million * self.tokens_per_day / MILLION

    @property
    def times_cheaper(self) -> float | None:
        """Teacher's price over the cascade's; None where the cascade costs nothing."""
        return self.teacher_per_million / self.cascade_per_million if self.cascade_per_million > 0 else None

    @property
    def break_even(self) -> BreakEven | None:
        """None: never, since nothing is saved."""
        if self.saved_per_million <= 0:
            return None
        tokens = self.spent / self.saved_per_million * MILLION
        return BreakEven(tokens, tokens / self.tokens_per_day)


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    tokens_per_day: float
    utilisation: float
    fall_back: float
    situation: Situation


def grid(
    situation: Situation,
    student: Machine,
    teacher: Machine | None,
    *,
    volumes: Sequence[float],
    utilisations: Sequence[float],
    shares: Sequence[float],
) -> Iterator[Cell]:
    """The situation at other volumes, utilisations of the machines and shares that fall back. A teacher behind an API
    (None) has the same price at every utilisation."""
    for volume in volumes:
        for utilisation in utilisations:
            for share in shares:
                changed = replace(
                    situation,
                    student=replace(student, utilisation=utilisation).price,
                    teacher=situation.teacher if teacher is None else replace(teacher, utilisation=utilisation).price,
                    tokens_per_day=volume,
                    fall_back=share,
                )
                yield Cell(volume, utilisation, share, changed)

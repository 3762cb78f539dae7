"""The last sentence of an answer is about what the question asks for, in its units."""

from __future__ import annotations

import pytest

from potstill.verify.asked import of_another
from potstill.verify.units import unasked
from potstill.verify.values import with_points

RAN = "Natalia ran 3 miles on Monday and 10 on Tuesday. How many miles did she run altogether?"
DESKS = "A school bought 14 desks for $85 each and 6 lamps for $20 each. How much did the desks cost in total?"
SON = "Emma is 3 times as old as her son. The sum of their ages is 48. How old is the son?"
BLUE = "A bag has 4 red, 5 green and 6 blue marbles. How many more blue marbles than red marbles are there?"


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (RAN, "She ran 13 miles on Tuesday."),
        (RAN, "On Tuesday she ran 13 miles."),
        (SON, "Emma is 12 years old."),
        (DESKS, "The desks and lamps cost $1190."),
        (DESKS, "The lamps cost $1,190 in total."),
        (DESKS, "1190 desks"),
        ("A bus has 52 seats; 38 are taken. How many seats are free?", "14 seats are taken."),
        ("It makes 240 toys in 8 hours. At this rate, how many toys in 5 hours?", "It makes 150 toys per hour."),
        ("The population fell from 400 to 340. By what percentage did it fall?", "It rose by 15%."),
        (BLUE, "There are 2 more red marbles than blue ones."),
        (BLUE, "There are 2 blue marbles."),
        ("What is the sum of 1, 1/2, 1/4, …?", "The ratio is 2."),
        ("A bank pays 4 % per year. How much interest does $1,500 earn in 3 years?", "It earns $180 per year."),
        ("Express 45 minutes as a fraction of an hour.", "3/4 of a minute"),
    ],
)
def test_a_value_of_something_else_in_the_question_is_seen(question: str, said: str) -> None:
    assert of_another(question, said) is not None


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (RAN, "Natalia ran 13 miles altogether."),
        (RAN, "13"),
        (SON, "The son is 12 years old."),
        (SON, "He is 12."),
        (DESKS, "The desks cost **$1,190** in total."),
        ("A bus has 52 seats; 38 are taken. How many seats are free?", "14 seats are free."),
        ("A jacket costs $80 and is 25% off. What is the sale price?", "The jacket now costs $60."),
        (BLUE, "There are 2 more blue marbles than red marbles."),
        ("How many integers less than 100 are divisible by 7?", "Hence there are 14 such integers."),
        ("Express 45 minutes as a fraction of an hour.", "It is 3/4 of an hour."),
        ("A class has 12 boys and 15 girls. How many students are there?", "There are 27 students in the class."),
        ("The ratio of boys to girls is 12 to 18. Simplify the ratio.", "The ratio of boys to girls is 2:3."),
    ],
)
def test_what_is_asked_for_is_accounted_for(question: str, said: str) -> None:
    assert of_another(question, said) is None


@pytest.mark.parametrize(
    ("unit", "question", "other"),
    [
        ("°F", "It was 5 °C. What is the temperature now?", "°F"),
        ("gal", "A car uses 7.5 litres per 100 km. How much does it use for 400 km?", "gal"),
        ("km/h", "A train covers 180 km in 2 hours. What is its speed?", None),
        ("m/s", "Convert 72 km/h to m/s.", None),
        ("$", "How much does she pay?", None),
        ("cm", "The radius is 2 cm. Find the area.", "cm"),
        ("cm^2", "The radius is 2 cm. Find the area.", None),
        ("m^2", "It is 8 m long and 5 m wide. Find its perimeter.", "m^2"),
        ("apple", "It is 8 m long. How many apples?", None),
    ],
)
def test_a_unit_is_one_that_the_question_speaks_of(unit: str, question: str, other: str | None) -> None:
    assert unasked(unit, question) == other


def test_decimal_commas_are_read_where_the_question_writes_them() -> None:
    german = "Ein Tank verliert 2,5 Liter pro Stunde. Wie viele Liter in 3 Stunden?"
    assert with_points("Er verliert 7,5 Liter.", german) == "Er verliert 7.5 Liter."
    assert with_points("Er verliert 1.250,75 Liter.", german) == "Er verliert 1250.75 Liter."
    assert with_points("(1, 2) und 3,4,5", german) == "(1, 2) und 3,4,5"
    assert with_points("The point is (7,5).", "Where do 2.5 x and 3 meet?") == "The point is (7,5)."
    assert with_points("(7,5)", "Find the point (1,2) of the line.") == "(7,5)"

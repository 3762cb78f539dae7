r"""Verifier of mathematical answers: exact comparison of plain values, computer algebra for expressions."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple

from potstill.recipe.verify import Math
from potstill.registry import implements
from potstill.types import Record, Verdict
from potstill.verify.answer_extraction import without_reasoning
from potstill.verify.asked import of_another
from potstill.verify.base import question_text, references, shown
from potstill.verify.sizes import is_too_large
from potstill.verify.surroundings import known_words
from potstill.verify.units import is_known
from potstill.verify.values import (
    DECIMAL_COMMA,
    Value,
    answer_value,
    is_expression,
    marks_in,
    names_in_passing,
    other_unit,
    plus_minus_in,
    read_value,
    reference_value,
    relations_in,
    with_points,
)
from potstill.verify.workers import WorkerVerifier

# ---- whether two values are the same, kind by kind -------------------------------------------------------------------


MOST_SIDES = 6
"""Longer chains of equations are not checked."""
MOST_UNORDERED = 60
"""Sets with more values are not compared: the comparison is quadratic."""


class Judgement(NamedTuple):
    """An outcome and its reason."""

    outcome: Literal["accept", "reject", "cannot_judge"]
    reason: str


Symbolic = Callable[[str, str], Judgement]
"""Compares two expressions by computer algebra: reference, answer."""

SAME = Judgement("accept", "the same value")
ANOTHER_ORDER = Judgement(
    "cannot_judge", "the same values in another order, and the reference does not say if order counts"
)


def compare(reference: Value, answer: Value, symbolic: Symbolic) -> Judgement:
    """Judge an answer against a reference. Exact where both kinds are plain; by `symbolic` where one is an
    expression."""
    if answer.kind == "nothing":
        return Judgement("reject", "no answer")
    if reference.kind == "nothing":
        return Judgement("cannot_judge", "the reference is empty")
    if reference.kind == "expression" and reference.unit and answer.unit != reference.unit:
        return Judgement("cannot_judge", f"the unit {reference.unit} is not stated, or another one")
    if answer.text and _plain(reference.text) == _plain(answer.text) and reference.of == answer.of:
        return SAME
    if answer.kind == "unclear":
        return Judgement("cannot_judge", "the words or signs around the value are not known to be harmless")
    if reference.kind == "unclear":
        return Judgement("cannot_judge", "the reference is not understood")
    if reference.of and answer.of and reference.of != answer.of:
        return Judgement("cannot_judge", f"the reference gives {reference.of}, and the answer {answer.of}")
    kinds = {reference.kind, answer.kind}
    if "based" in kinds:
        if len(kinds) == 1 and reference.text.partition("_")[2] == answer.text.partition("_")[2]:
            return Judgement("reject", "another number in this base")
        return Judgement("cannot_judge", "bases are not converted")
    if "expression" in kinds:
        return _expressions(reference, answer, symbolic)
    if kinds <= {"number", "percent"}:
        return _numbers(reference, answer)
    if kinds <= {"number", "quantity"}:
        return _quantities(reference, answer)
    if kinds in ({"set", "list"}, {"set"}):
        return _sets(reference, answer, symbolic)
    if kinds <= {"ordered", "list"}:
        return _ordered(reference, answer, symbolic)
    if reference.number is not None and DECIMAL_COMMA.match(answer.text):
        return Judgement("cannot_judge", "a comma between digits may be a decimal one")
    if answer.kind == "list" and any(part.of or "=" in part.text for part in answer.parts):
        return Judgement("cannot_judge", "several equations, of which one may be the answer")
    if len(kinds) > 1:
        return Judgement("reject", f"the reference is {_a(reference)}, and the answer {_a(answer)}")
    if reference.kind in ("date", "time"):
        return _moments(reference, answer)
    if reference.kind == "ratio":
        return _ratios(reference, answer)
    return SAME if reference.text == answer.text else Judgement("reject", "other words")


def _a(value: Value) -> str:
    names = {"ordered": "a tuple or interval", "list": "a list of values", "word": "a word", "percent": "a percentage"}
    return names.get(value.kind, f"a {value.kind}")


def _plain(text: str) -> str:
    """Without spaces, but for those between two digits or letters."""
    return re.sub(r"(?<![A-Za-z\d])\s+|\s+(?![A-Za-z\d])", "", text)


def _expressions(reference: Value, answer: Value, symbolic: Symbolic) -> Judgement:
    if {reference.kind, answer.kind} & {"word", "date", "time", "percent", "quantity", "ratio"}:
        plain, other = (reference, answer) if reference.kind != "expression" else (answer, reference)
        if plain.kind == "word" and not (len(plain.text) == 1 and other.kind == "expression"):
            return Judgement("reject", f"the reference is {_a(reference)}, and the answer {_a(answer)}")
        if plain.kind != "word":
            return Judgement("cannot_judge", f"{_a(plain)} beside an expression")
    for states, what in ((relations_in, "an inequality"), (plus_minus_in, "±")):
        if states(reference.text) != states(answer.text):
            return Judgement("cannot_judge", f"only one of both states {what}")
    if marks_in(reference.text) or marks_in(answer.text):
        return Judgement("cannot_judge", "computer algebra does not read primes, transposes or a single bar")
    if is_too_large(reference.text) or is_too_large(answer.text):
        return Judgement("cannot_judge", "a power or factorial is too large to compute")
    return symbolic(reference.text, answer.text)


def _numbers(reference: Value, answer: Value) -> Judgement:
    if reference.number == answer.number:
        return SAME
    if reference.kind != answer.kind:
        return Judgement("reject", f"the reference is {_a(reference)}, and the answer {_a(answer)} of another value")
    return Judgement("reject", "another number")


def _quantities(reference: Value, answer: Value) -> Judgement:
    same_number = reference.number == answer.number
    units = {reference.unit, answer.unit}
    if len(units) == 1 or "" in units:
        return SAME if same_number else Judgement("reject", "another number")
    if not any(is_known(u) for u in units):
        # The units name counted things: "12 apples" and "12 red apples" mean the same.
        words = [set(u.split()) for u in (reference.unit, answer.unit)]
        if words[0] <= words[1] or words[1] <= words[0]:
            return SAME if same_number else Judgement("reject", "another number")
        return Judgement("cannot_judge", f"counts of other things: {reference.unit} and {answer.unit}")
    if same_number:
        return Judgement("reject", f"another unit: {answer.unit} for {reference.unit}")
    return Judgement("cannot_judge", f"units are not converted: {answer.unit} for {reference.unit}")


def _sets(reference: Value, answer: Value, symbolic: Symbolic) -> Judgement:
    if len(reference.parts) != len(answer.parts):
        return Judgement("reject", f"{len(answer.parts)} values, and the reference has {len(reference.parts)}")
    if len(reference.parts) > MOST_UNORDERED:
        return Judgement("cannot_judge", f"more than {MOST_UNORDERED} values without an order")
    left, doubt = list(answer.parts), None
    for part in reference.parts:
        judged = [compare(part, other, symbolic) for other in left]
        found = next((i for i, j in enumerate(judged) if j.outcome == "accept"), None)
        if found is not None:
            left.pop(found)
        elif any(j.outcome == "cannot_judge" for j in judged):
            doubt = next(j for j in judged if j.outcome == "cannot_judge")
        else:
            return Judgement("reject", f"{part.text} is missing")
    return doubt or SAME


def _ordered(reference: Value, answer: Value, symbolic: Symbolic) -> Judgement:
    brackets = {reference.brackets, answer.brackets} - {""}
    if len(brackets) > 1 and not brackets <= {"()", "⟨⟩"}:
        return Judgement("reject", f"other brackets: {answer.brackets} for {reference.brackets}")
    if reference.brackets not in ("", "()", "⟨⟩") and not answer.brackets:
        return Judgement("cannot_judge", f"the reference has brackets, {reference.brackets}, and the answer none")
    if len(reference.parts) != len(answer.parts):
        return Judgement("reject", f"{len(answer.parts)} values, and the reference has {len(reference.parts)}")
    judged = [compare(r, a, symbolic) for r, a in zip(reference.parts, answer.parts, strict=True)]
    wrong = next((j for j in judged if j.outcome == "reject"), None)
    if wrong is None:
        return next((j for j in judged if j.outcome == "cannot_judge"), SAME)
    if not brackets and _sets(reference, answer, symbolic).outcome == "accept":
        # Values of one unknown, "x = 2 or x = 3", have no order.
        names = {part.of for part in (*reference.parts, *answer.parts)}
        return SAME if len(names) == 1 and "" not in names else ANOTHER_ORDER
    place = judged.index(wrong) + 1
    return Judgement("reject", f"value {place}: {wrong.reason}")


def _moments(reference: Value, answer: Value) -> Judgement:
    if reference.when == answer.when and (len(reference.when) == 1 or reference.kind == "time"):
        return SAME
    if not reference.when & answer.when:
        return Judgement("reject", f"another {reference.kind}")
    if reference.text == answer.text:
        return SAME
    return Judgement("cannot_judge", f"{answer.text} may or may not be {reference.text}")


def _ratios(reference: Value, answer: Value) -> Judgement:
    left, right = ([p.number for p in v.parts] for v in (reference, answer))
    if left == right:
        return SAME
    terms = list(zip(left, right, strict=False))
    if len(left) == len(right) and len({a / b for a, b in terms if a and b}) == 1 and all(a and b for a, b in terms):
        return Judgement("cannot_judge", "the same ratio in other terms")
    return Judgement("reject", "another ratio")


# ---- the verifier ----------------------------------------------------------------------------------------------------


@implements(Math)
class MathVerifier(WorkerVerifier[Math]):
    r"""Compares the final answer with the reference as mathematical values.

    1. The final answer is the content of the last `\boxed{…}`, else of `<answer>…</answer>`, else the text after "the
       answer is", else the whole text if it is one value, else the one value that the last sentence names.
    2. Answer and reference are read as typed values: number, percentage, quantity, date, time, ratio, tuple or
       interval, set, list, word, expression. Numbers are fractions of integers: nothing is rounded, and there is no
       tolerance.
    3. Plain kinds are compared exactly; different kinds are a rejection.
    4. Expressions go to `math-verify` in a worker, and an acceptance is checked again at 50 digits.

    It cannot judge without a reference, if words or signs around the value are not known to be harmless, if neither
    comparison decides, or past the deadline.
    """

    contract = 7
    function = "potstill.verify.algebra:judge"
    package = ("math_verify", "math-verify", "math")

    def judge(self, record: Record, completion: str) -> Verdict:
        known = references(record, self._settings.reference)
        if not known:
            return self.cannot_judge(f"the record has no metadata[{self._settings.reference!r}]")
        text_of_question = question_text(record)
        question, completion = known_words(text_of_question), with_points(completion, text_of_question)
        judged = []
        for text in known:
            reference = reference_value(text)
            answer = answer_value(completion, question, equation="=" in reference.text)
            if answer is None:
                return self.reject("no final answer was found")
            if (unit := other_unit(reference, answer, text_of_question)) is not None:
                return self.cannot_judge(f"{shown(answer.text)}: the question does not ask for {unit}")
            if "=" not in reference.text:
                answer = self._last_of_chain(answer, question)
            found = compare(reference, answer, self._symbolic)
            reason = f"{shown(answer.text)} for {shown(text)}: {found.reason}"
            if found.outcome == "accept":
                other = of_another(text_of_question, without_reasoning(completion))
                if other is not None:
                    return self.cannot_judge(f"the answer speaks of {shown(other)}, and the question asks for another")
                return self.accept(reason)
            doubtful = reference.number is not None and names_in_passing(completion, reference.number)
            judged.append(("cannot_judge" if doubtful else found.outcome, reason))
        doubts = [reason for outcome, reason in judged if outcome == "cannot_judge"]
        return self.cannot_judge(doubts[0]) if doubts else self.reject(judged[-1][1])

    def _last_of_chain(self, answer: Value, known: frozenset[str]) -> Value:
        """The last side of a chain of expressions that are all equal, "(x + 2)(x − 3) = … = x² − x − 6"; otherwise the
        value as it is."""
        sides = [side.strip() for side in answer.text.split("=")]
        if answer.kind != "expression" or not 3 <= len(sides) <= MOST_SIDES or not all(map(is_expression, sides)):
            return answer
        if any(marks_in(side) or plus_minus_in(side) or relations_in(side) or is_too_large(side) for side in sides):
            return answer
        if any(self._symbolic(one, other).outcome != "accept" for one, other in pairwise(sides)):
            return answer
        return read_value(sides[-1], known)

    def _symbolic(self, reference: str, answer: str) -> Judgement:
        found = self.ask({"reference": reference, "answer": answer})
        if isinstance(found, Verdict):
            return Judgement(found.outcome, found.reason)
        return Judgement(found["outcome"], found["reason"])

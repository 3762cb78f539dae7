r"""Verifier of mathematical answers: exact comparison of plain values, computer algebra for expressions."""

from __future__ import annotations

from potstill.recipe.verify import Math
from potstill.registry import implements
from potstill.types import Record, Verdict
from potstill.verify.answer_extraction import without_reasoning
from potstill.verify.asked import of_another
from potstill.verify.base import question_text, references, shown
from potstill.verify.compare import Judgement, compare
from potstill.verify.surroundings import known_words
from potstill.verify.units import asked_units
from potstill.verify.values import answer_value, other_unit, reference_value
from potstill.verify.workers import WorkerVerifier


@implements(Math)
class MathVerifier(WorkerVerifier[Math]):
    r"""Compares the final answer with the reference as mathematical values.

    1. The final answer is the content of the last `\boxed{…}`, else of `<answer>…</answer>`, else the text after "the
       answer is", else the whole text if it is one value, else the one value that the last sentence names.
    2. Answer and reference are read as typed values: number, percentage, quantity, date, time, ratio, tuple or
       interval, set, list, word, expression. Numbers are fractions of integers: nothing is rounded, there is no
    tolerance. 3. Plain kinds are compared exactly; different kinds are a rejection.
    4. Expressions go to `math-verify` in a worker, and an acceptance is checked again at 50 digits.

    It cannot judge without a reference, if words or signs around the value are not known to be harmless, if neither
    comparison decides, or past the deadline.
    """

    contract = 4
    function = "potstill.verify.algebra:judge"
    package = ("math_verify", "math-verify", "math")

    def judge(self, record: Record, completion: str) -> Verdict:
        known = references(record, self._settings.reference)
        if not known:
            return self.cannot_judge(f"the record has no metadata[{self._settings.reference!r}]")
        text_of_question = question_text(record)
        question, asked = known_words(text_of_question), asked_units(text_of_question)
        judged = []
        for text in known:
            reference = reference_value(text)
            answer = answer_value(completion, question, equation="=" in reference.text)
            if answer is None:
                return self.reject("no final answer was found")
            if other_unit(reference, answer, asked):
                return self.cannot_judge(f"{shown(answer.text)}: the question asks for {' or '.join(sorted(asked))}")
            found = compare(reference, answer, self._symbolic)
            reason = f"{shown(answer.text)} for {shown(text)}: {found.reason}"
            if found.outcome == "accept":
                other = of_another(text_of_question, without_reasoning(completion))
                if other is not None:
                    return self.cannot_judge(f"the answer speaks of {shown(other)}, and the question asks for another")
                return self.accept(reason)
            judged.append((found.outcome, reason))
        doubts = [reason for outcome, reason in judged if outcome == "cannot_judge"]
        return self.cannot_judge(doubts[0]) if doubts else self.reject(judged[-1][1])

    def _symbolic(self, reference: str, answer: str) -> Judgement:
        found = self.ask({"reference": reference, "answer": answer})
        if isinstance(found, Verdict):
            return Judgement(found.outcome, found.reason)
        return Judgement(found["outcome"], found["reason"])

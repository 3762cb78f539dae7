"""Verifiers accept, reject, or cannot judge an answer, with a reason. A module implements one kind, or a family.

base.py               the base of all, and of those that compare with a reference
workers.py            those that judge in a worker, under a hard deadline
text.py               text, number, choice
length_language.py    length and language
pattern.py            a pattern or a JSON Schema
similarity.py         similarity to a reference
refusal.py            refusals
math.py               mathematics; algebra.py in its worker, sizes.py against towers of powers
gym.py                problems of reasoning-gym
judge.py              a model as judge
composite.py          combinations
programs.py           Python programs by tests: program_tests.py, program_candidate.py, program_wire.py
sandbox.py            untrusted programs; isolation.py and new_root.py contain them

answer_extraction.py  the final answer in a text
values.py             its value, typed; dates.py dates and times of day
numbers.py            exact numbers
units.py              units and counted nouns
surroundings.py       words that leave a value unchanged
asked.py              answers about another subject than the question's
scope.py              a last sentence that is about something else in the question

preconditions.py      problems that lack what a verifier needs
decontaminate.py      evaluation sets in training records

A record's reference answer is in its metadata; `open_verifier` opens the verifier of some settings. Importing this
needs no optional package; a verifier that does raises MissingExtra when it is opened.
"""

from potstill.verify import composite, gym, judge, length_language, math, pattern, programs, refusal, similarity, text
from potstill.verify.base import Ask, Verifier, open_verifier, verdicts
from potstill.verify.decontaminate import Decontaminated, Decontaminator, Match, decontaminate

VERIFIERS = (composite, gym, judge, length_language, math, pattern, programs, refusal, similarity, text)

__all__ = [
    "Ask",
    "Decontaminated",
    "Decontaminator",
    "Match",
    "VERIFIERS",
    "Verifier",
    "decontaminate",
    "open_verifier",
    "verdicts",
]

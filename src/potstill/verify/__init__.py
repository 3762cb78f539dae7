"""Verifiers accept, reject, or cannot judge an answer, with a reason. A module implements one kind, or a family.

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

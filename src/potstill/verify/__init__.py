"""Verifiers: of an answer they say accept, reject, or cannot judge, and why. A module implements one kind, or a family.

A record's reference answer stands in its metadata; `open_verifier` gives the verifier of some settings. What needs an
optional package says so when it is opened, and importing this needs none.
"""

from potstill.verify import composite, form, gym, judge, math, pattern, programs, refusal, text
from potstill.verify.base import Ask, Verifier, open_verifier, verdicts
from potstill.verify.decontaminate import Decontaminated, Decontaminator, Match, decontaminate

VERIFIERS = (composite, form, gym, judge, math, pattern, programs, refusal, text)

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

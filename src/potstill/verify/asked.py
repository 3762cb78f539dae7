"""Detects answers about another subject than the question's: "28 boys" to a question that counts 21 boys and asks for
girls; "Ana has 36" to one that asks what Tom has. The number alone would not reveal this."""

from __future__ import annotations

import re
from itertools import takewhile

from potstill.verify.answer_extraction import conclusion, last_sentence
from potstill.verify.numbers import NUMBER_WORDS
from potstill.verify.scope import asked_by, out_of_scope
from potstill.verify.surroundings import known_words, words_in

_HOW_MANY = re.compile(r"\b(?:how\s+(?:many|much)|number\s+of)\s+((?:[A-Za-z'’-]+\s*){1,4})", re.IGNORECASE)
_ENDS_NOUN = frozenset(
    "are is was were does did do will can could would should must has have had in on at per remain remains".split()
)
_COUNTED = re.compile(rf"(?:\d|\b(?:{'|'.join(sorted(NUMBER_WORDS))}))\s+((?:[a-z-]+\s+){{0,3}}[a-z-]+)", re.IGNORECASE)
_ENDS_COUNTED = frozenset("and or of with for to each the a an from by as so then that which".split())
_GIVEN = re.compile(
    r"\bthe\s+(?:[a-z-]+\s+){0,2}?([a-z-]+)\s+(?:is|are|was|were|=|equals)\s+(-?\d[\d.,/]*)", re.IGNORECASE
)
_DIFFERS = re.compile(
    r"(?:\b(by|saves?|saved)\s+[$€£]?\s*-?\d[\d.,]*[^\d]*"
    r"|\d\s*\$?\s*(?:[A-Za-z]+\s+)?\b(more|less|fewer|older|younger|taller|shorter|longer|heavier|lighter|higher|lower|cheaper"
    r"|larger|smaller|faster|slower|farther|further|earlier|later)\b[^\d]*)$",
    re.IGNORECASE,
)
_PORTION = re.compile(r"\b([a-z]+)\s+of\s+((?:[a-z]+\s+)?[a-z]+)", re.IGNORECASE)
_LATER = re.compile(
    r"\b(in|within|after)\s+\d[\d.,]*\s+((?:second|minute|hour|day|week|month|year)s?)\b[^\d]*$", re.IGNORECASE
)
"""A time from now: no age and no amount."""
_AN_HOUR = re.compile(r"(?<=\d)[^\d\s]*\s+an?\s+(second|minute|hour|day|week|month|year)\b", re.IGNORECASE)
_IN_ALL = re.compile(r"\b(?:in\s+(?:total|all)|altogether|all\s+together)\b", re.IGNORECASE)
_PART = re.compile(
    r"\W*(half|twice|double|(?:a|one)\s+(?:third|quarter|half))\s+(?:of\s+)?(?:the|its|his|her|their)\s+([a-z]+)\b",
    re.IGNORECASE,
)
_RATIO_OF = re.compile(r"\bratio\s+of\s+([a-z]+)\s+to\s+([a-z]+)", re.IGNORECASE)
_RATE = frozenset({"per", "each", "apiece"})
_ASKS_RATE = _RATE | {"every", "average", "rate"}
_TOTALS = frozenset({"together", "altogether", "combined"})
"""Words that refer to anyone, and so answer no question about one person."""
_NAME = re.compile(r"(?<=[a-z,]\s)[A-Z][a-z]+\b")
_NAMED = re.compile(r"\b[A-Z][a-z]+\b")


def of_another(question: str, said: str) -> str | None:
    """The subject of an answer's last sentence, if it differs from the subject of the question; None if nothing
    indicates a difference.

    Args:
        question: its text. The last sentence with a question mark states the subject.
        said: the answer, without reasoning.
    """
    asking = [s for s in re.split(r"(?<=[.!?])\s+|\n", question[-4_000:]) if "?" in s]
    last = last_sentence(said)
    if last is None:
        return None
    if turned := _turned_round(question[-4_000:], last):
        return turned
    wanted = asked_by(question)
    if wanted is not None and (word := out_of_scope(wanted, conclusion(last))):
        return word
    if not asking:
        return None
    return (
        _other_noun(question[-4_000:], asking[-1], conclusion(last))
        or _other_name(question[-4_000:], asking[-1], conclusion(last))
        or _other_quantity(asking[-1], last)
        or _difference(asking[-1], last)
        or _rate_or_total(asking[-1], last)
        or _part_of(asking[-1], last)
    )


def _other_noun(question: str, asking: str, last: str) -> str | None:
    wanted = [noun for m in _HOW_MANY.finditer(asking) if (noun := " ".join(_up_to_verb(m[1].split())))]
    if not wanted:
        return None
    asked = known_words(" ".join(wanted))
    # "cups of sugar" where sugar is asked for.
    asked |= {form for m in _PORTION.finditer(question) if known_words(m[2]) & asked for form in known_words(m[1])}
    nouns = [m[1].split() for m in _COUNTED.finditer(question)]
    counted = {form for words in nouns for form in known_words(" ".join(_up_to_verb(words)))} - asked
    plain = re.sub(r"\\text\s*\{([^{}]*)\}|[*$}]|\\[ ,;]", lambda m: f" {m[1] or ''} ", last)
    values = [m[1].split() for m in _COUNTED.finditer(plain)]
    if not values:
        return None
    rate = next((word for word in values[-1] if word in _RATE), None)
    if rate and not _ASKS_RATE & {word.lower() for word in words_in(question)}:
        return " ".join(values[-1])
    said = [" ".join(_up_to_verb(words)) for words in values]
    if any(known_words(noun) & asked for noun in said):
        return None
    return said[-1] if known_words(said[-1]) & counted else None


def _other_quantity(asking: str, last: str) -> str | None:
    """ "The sum is 10 and the product is 7" where the sum is asked for: the quantity of the last value, if the sentence
    gives the one that is asked for another value."""
    given = [(m[1].lower(), m[2]) for m in _GIVEN.finditer(re.sub(r"[*$]", "", last))]
    if len(given) < 2:
        return None
    asked = {word.lower() for word in words_in(asking)}
    name, value = given[-1]
    asked_for = [other for noun, other in given[:-1] if noun in asked]
    return name if name not in asked and asked_for and value not in asked_for else None


def _difference(asking: str, last: str) -> str | None:
    """ "It falls by 30", "you save $30", "15 years older": the word that makes the last value a difference, if the
    question does not have it."""
    later = _LATER.search(re.sub(r"[*]", "", last))
    asks_when = {"when", "long", "soon"} | ({later[1].lower()} if later else set())
    if later and not (asks_when | known_words(later[2])) & known_words(asking):
        return later[1]
    found = _DIFFERS.search(re.sub(r"[*]", "", last))
    word = next(filter(None, found.groups()), None) if found is not None else None
    return word if word and word.lower() not in {w.lower() for w in words_in(asking)} else None


def _rate_or_total(asking: str, last: str) -> str | None:
    """ "$111 an hour" where an amount is asked for, "$29 in total" where each one's is: the words that say so."""
    asked = {word.lower() for word in words_in(asking)}
    rate, total = _AN_HOUR.search(last), _IN_ALL.search(last)
    if rate and not asked & (_ASKS_RATE | {rate[1].lower()}):
        return rate[0].strip()
    return total[0] if total and asked & _ASKS_RATE and not asked & {"total", "all", *_TOTALS} else None


def _part_of(asking: str, last: str) -> str | None:
    """ "Half the perimeter is 26" where the perimeter is asked for: the part."""
    found = _PART.match(last)
    asked = {word.lower() for word in words_in(asking)}
    return found[0] if found and found[2].lower() in asked and found[1].lower() not in asked else None


def _turned_round(question: str, last: str) -> str | None:
    """ "The ratio of girls to boys is …" where that of boys to girls is asked for."""
    asked, said = _RATIO_OF.search(question), _RATIO_OF.search(last)
    turned = asked and said and known_words(asked[1]) == known_words(said[2]) != known_words(asked[2])
    return said[0] if said and turned else None


def _up_to_verb(words: list[str]) -> list[str]:
    """The counted noun phrase, up to the verb: `loose rolls` of "loose rolls are left"."""
    return list(takewhile(lambda word: word.lower() not in _ENDS_NOUN | _ENDS_COUNTED, words))


def _other_name(question: str, asking: str, last: str) -> str | None:
    names = set(_NAME.findall(question))
    wanted = names & set(_NAMED.findall(asking))
    totals = [
        word for word in words_in(last) if word.lower() in _TOTALS and not _TOTALS & set(words_in(asking.lower()))
    ]
    said = [word for word in words_in(last) if word in names] + totals
    return said[0] if wanted and said and not wanted & set(said) else None

"""Detects answers whose last sentence is about less than the question, or about something else in it: "13 miles on
Wednesday" where the miles of all days are asked for, "Emma is 12" where her son's age is.

A word of the last sentence is accounted for if the question's asking sentence has it. A word that only the rest of the
question has ("Wednesday", "Emma") names another thing than the one asked for, unless a pronoun of the asking sentence
may refer to it.
"""

from __future__ import annotations

import re
from itertools import takewhile
from typing import NamedTuple

from potstill.verify.numbers import NUMBER_WORDS
from potstill.verify.surroundings import CLAIMS, known_words, words_in
from potstill.verify.units import is_known, unit_of

_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=\S)|\n")
_IMPERATIVE = re.compile(
    r"\W*(?:find|compute|calculate|determine|what|which|how|when|evaluate|express|simplify|solve|list|give|state"
    r"|write|convert|estimate|expand|factor|name)\b",
    re.IGNORECASE,
)
_PRONOUNS = frozenset("it its they their them he his him she her hers this these that there".split())
_PREPOSITIONS = frozenset(
    "on in during for from at by to after before until with without via into onto through between among".split()
)
_NARROWING = frozenset("alone apiece each every only other another former latter".split())
"""Words that restrict a value to one of several things."""
_DEFINITE = re.compile(
    r"\b(?:(?:do|does|did|will|would|can|could|should|must)\s+(?:the|his|her|their|its)\s+([A-Za-z-]+)"
    r"|(?:the|his|her|their|its)\s+((?:[A-Za-z-]+\s+){0,2}[A-Za-z-]+))",
    re.IGNORECASE,
)
_MORE = re.compile(r"\b(?:more|fewer|less)\s+(?P<more>[a-z\s-]*?)\s*\bthan\b\s*(?P<than>[a-z\s-]*)", re.IGNORECASE)
_HOW_MANY_MORE = re.compile(rf"\bhow\s+(?:many|much)\s+{_MORE.pattern}", re.IGNORECASE)
_COMPARES = frozenset("more fewer less than difference".split())
_MATH = re.compile(r"\$[^$]*\$|\\\(.*?\\\)|\\\[.*?\\\]|\\(?:text|mathrm)\s*\{[^{}]*\}|\\[A-Za-z]+|[*_`]")
_NUMERAL = re.compile(r"\d")
_SPLIT = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d[\d.,/]*|[,;:]")


class Asked(NamedTuple):
    """The words of a question, in base forms."""

    text: str
    """The sentence that asks."""
    words: frozenset[str]
    """Of the sentence that asks."""
    others: frozenset[str]
    """Of the rest of the question only."""
    setting: frozenset[str]
    """Of those, the ones before the first number, which name no part of what is counted: "A class has 12 boys …"."""
    things: frozenset[str]
    """Of what the asking sentence calls "the …", and of names in it."""
    refers: bool
    """Whether the asking sentence has a pronoun."""


def asked_by(question: str) -> Asked | None:
    """The asking sentence of a question, and its words; None if no sentence asks."""
    sentences = [one for one in _SENTENCES.split(question[-4_000:]) if words_in(one)]
    at = next((i for i in range(len(sentences) - 1, -1, -1) if "?" in sentences[i]), None)
    if at is None:
        at = next((i for i in range(len(sentences) - 1, -1, -1) if _IMPERATIVE.match(sentences[i])), None)
    if at is None:
        return None
    text, before = " ".join(sentences[at:]), " ".join(sentences[:at])
    words = known_words(text)
    nouns = [" ".join(_noun(m[1] or m[2])) for m in _DEFINITE.finditer(text)]
    things = known_words(" ".join([*nouns, *(word for word in words_in(text)[1:] if word[0].isupper())]))
    refers = any(word.lower() in _PRONOUNS for word in words_in(text))
    start = _PREPOSITIONAL.sub(" ", _COUNT.split(before, maxsplit=1)[0])
    return Asked(text, words, known_words(before) - words, known_words(start), things, refers)


def _noun(text: str) -> list[str]:
    return list(takewhile(lambda word: word.lower() not in CLAIMS | _PREPOSITIONS | {"of", "that"}, text.split()))


def out_of_scope(asked: Asked, last: str) -> str | None:
    """A word of an answer's last sentence that makes its value the value of something else than the question asks for;
    None if every word is accounted for.

    Args:
        last: the conclusion of the last sentence.
    """
    plain = _MATH.sub(lambda m: " 0 " if _NUMERAL.search(m.group()) else " ", last)
    for other_than in (_opposite, _comparison, _counts, _rate, _share, _quantity):
        if (other := other_than(asked, plain)) is not None:
            return other
    tokens: list[str] = _SPLIT.findall(plain)
    at_value = max((i for i, token in enumerate(tokens) if token[0].isdigit()), default=len(tokens))
    subject, preposition, counted = list[str](), False, 0
    for at, token in enumerate(tokens):
        low = token.lower()
        if not low[0].isalpha() or low in CLAIMS:
            preposition, counted = False, 3 if low[0].isdigit() else 0
            continue
        if low in _PREPOSITIONS or low == "of":
            preposition, counted = low != "of" and not (low == "to" and "ratio" in tokens), 0
            continue
        forms, counted = known_words(low), max(counted - 1, 0)
        if forms & asked.words or low in _GLUE:
            continue
        if low in _NARROWING:
            return token
        if tokens[at - 1 : at] == ["per"]:
            continue  # judged by `_rate`
        if counted or not forms & asked.others or len(low) == 1:
            continue  # `asked._other_noun` compares counted nouns
        if (preposition or at > at_value) and not forms & asked.setting:
            return token
        if at < at_value:
            if tokens[at - 1 : at] == ["and"]:
                return token
            subject.append(token)
    if asked.refers or asked.things & known_words(plain) or _PRONOUNS & set(plain.lower().split()):
        return None
    shares = (asked.words & known_words(plain)) - _GLUE - CLAIMS
    return subject[0] if subject and asked.things and (shares or subject[0][0].isupper()) else None


_COUNT = re.compile(rf"\d|\b(?:{'|'.join(sorted(NUMBER_WORDS))})\b", re.IGNORECASE)
_PREPOSITIONAL = re.compile(rf"\b(?:{'|'.join(sorted(_PREPOSITIONS))})\b(?:\s+(?:a|an|the))?\s+\w+", re.IGNORECASE)
_GLUE = frozenset(
    """a an the and or so thus hence therefore then he she it they his her its their this that these those there have
    has had do does did will would can be been is are was were who which as all total both together""".split()
)


def _comparison(asked: Asked, plain: str) -> str | None:
    """ "2 more red ones than blue ones" where those for blue and red are asked for, and "2 blue ones"."""
    wanted, said = _HOW_MANY_MORE.search(asked.text), _MORE.search(plain)
    if wanted is None:
        return None
    if said is None:
        counts = re.search(r"\d\s+[a-z]{3,}", plain)
        return plain.strip() if counts and not _COMPARES & {w.lower() for w in words_in(plain)} else None
    more, than = known_words(wanted["more"]), known_words(wanted["than"])
    return said[0] if (known_words(said["more"]) - more) & than else None


_RATE = re.compile(
    r"(?:\d|%)[^\d]*?\b((?:per|each|every|apiece|pro|par|por|je)\b|an?\s+(?:second|minute|hour|day|week|month|year)\b)",
    re.IGNORECASE,
)
_ASKS_RATE = re.compile(
    r"\b(?:per|each|every|apiece|average|(?<!this )(?<!that )(?<!same )rate|speed|fast|velocity|density|unit|daily"
    r"|hourly|weekly|monthly|yearly|annual|annually|one|pro|par|por|je|an?\s+(?:second|minute|hour|day|week|month|year))\b",
    re.IGNORECASE,
)


def _rate(asked: Asked, plain: str) -> str | None:
    """ "$180 per year" where the amount of three years is asked for."""
    found = _RATE.search(plain)
    return str(found[1]) if found and not _ASKS_RATE.search(asked.text) else None


_MONEY = re.compile(r"\bhow\s+much\s+(?:money|did|does|do|will|would|must|should|can)\b", re.IGNORECASE)
_COUNTED = re.compile(r"(?<![$€£\d.,])\d[\d.,]*\s+([a-z]+)", re.IGNORECASE)


def _counts(asked: Asked, plain: str) -> str | None:
    """ "1190 desks" where the question is how much they cost."""
    found = list(_COUNTED.finditer(plain))
    if not found or not _MONEY.search(asked.text) or is_known(unit_of(found[-1][1]) or ""):
        return None
    noun = str(found[-1][1])
    return noun if noun.lower() not in _GLUE and known_words(noun) & (asked.words | asked.others) else None


_SHARE = re.compile(r"\d\s*%?\s+of\s+(?:a|an|the)\s+([a-z]+)", re.IGNORECASE)


def _share(asked: Asked, plain: str) -> str | None:
    """ "3/4 of a minute" where the fraction of an hour is asked for."""
    found = _SHARE.search(plain)
    wholes = known_words(" ".join(_WHOLE.findall(asked.text))) or asked.words
    return str(found[1]) if found and not known_words(found[1]) & wholes else None


_WHOLE = re.compile(r"\bof\s+(?:a|an|the)\s+([a-z]+)", re.IGNORECASE)
_QUANTITY = re.compile(
    r"\bthe\s+((?:[a-z-]+\s+){0,6}?[a-z-]+)\s+(?:is|are|was|were|equals)\s+[^a-z]*\d",
    re.IGNORECASE,
)
_ANY_QUANTITY = frozenset(
    """answer result value total solution solutions number amount final required desired correct expression
    simplified limit derivative integral antiderivative""".split()
)

_COMPUTED = frozenset("sum difference product quotient remainder ratio".split())
"""Names of a computation, which a question may state in signs."""


def _quantity(asked: Asked, plain: str) -> str | None:
    """ "The ratio is 2" where a sum is asked for."""
    found = next(iter(list(_QUANTITY.finditer(plain))[-1:]), None)
    said = {word.lower() for word in words_in(found[1])} if found else set()
    if found is None or said & _ANY_QUANTITY or (said & _COMPUTED and not asked.words & _COMPUTED):
        return None
    return str(found[1]) if not known_words(found[1]) & asked.words else None


_OPPOSITES = (
    ("rise increase grow climb gain up rose grew", "fall decrease drop shrink decline lose down fell lost"),
    ("profit earn gain", "loss lose lost"),
    ("save", "spend spent waste"),
    ("buy bought receive", "sell sold give gave"),
    ("larger greater bigger largest greatest biggest maximum", "smaller lesser smallest least minimum"),
    ("older oldest taller longer heavier faster", "younger youngest shorter lighter slower"),
    ("first before earlier", "last after later"),
    ("even", "odd"),
)


def _opposite(asked: Asked, plain: str) -> str | None:
    """ "It rose by 15 %" where a fall is asked for: a word whose opposite the question has, and not itself."""
    said, wanted = known_words(plain), asked.words
    for sides in _OPPOSITES:
        one, other = (set(side.split()) for side in sides)
        for here, there in ((one, other), (other, one)):
            if said & here and wanted & there and not wanted & here:
                return min(said & here)
    return None

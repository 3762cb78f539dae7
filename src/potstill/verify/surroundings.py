"""Words around a value: which of them are known to leave it unchanged.

An allow-list. "7 apples are left" gives 7 because "apples", "are" and "left" are known to be harmless; "7 squared",
"half of 7" and "7 florins short" give no value that can be judged. A word is harmless if it is in `harmless_words.txt`,
inflected or not, if the question uses it, or if it is a name. Words that change a number or express doubt are never
harmless, whatever the question contains.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

OPERATIONS = frozenset(
    """minus negative plus times multiplied divided half halves halved third thirds quarter quarters fourth fourths
    fifth fifths sixth sixths seventh eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth
    thousandths double doubled doubles doubling twice triple tripled triples thrice quadruple quadrupled square
    squared squares cube cubed cubes root roots power powers factorial factorials percent percentage percentages
    dozen dozens score scores pair pairs couple couples gross hundred hundreds thousand thousands million millions
    billion billions ten tens reciprocal inverse opposite complement logarithm log ln sine cosine tangent modulo mod
    remainder quotient product base binary octal hexadecimal hex add added adding subtract subtracted subtracting
    multiply divide increase increased decrease decreased reduced rounded round ceiling floor absolute conjugate
    negated negation more less fewer greater smaller larger higher lower before after off away over under above
    below beyond within between close near short versus vs""".split()
)
"""Words that change the value beside them. They may stand before "is", away from the value: "half of 16 is 8"."""

DOUBTS = frozenset(
    """not never no none nothing nobody neither nor cannot cant wont isnt wasnt arent unless if whether either or maybe
    perhaps possibly might could would about around approximately approx roughly nearly almost least most until
    except excluding wrong incorrect false untrue mistaken mistake mistakenly error erroneous invalid impossible
    unlikely doubt doubtful unknown unclear unsure uncertain undecided undetermined guess guessed estimate estimated
    assume assuming suppose supposing probably presumably supposedly allegedly apparently seemingly refuse refused
    deny denied reject rejected instead rather wait actually oops sorry correction hmm anything else than without
    exceed exceeds exceeding ish somewhat upto besides despite range differs different unequal hardly barely
    scarcely hypothetically otherwise""".split()
)
"""Words that deny a value, hedge it, or make it conditional. They are harmful anywhere in its sentence."""

CLAIMS = frozenset(
    {"is", "are", "was", "were", "equals", "equal", "totals", "gives", "yields", "becomes", "comes", "="}
)
"""Words after which a sentence states its value. The words before them may describe a computation."""

MEASURED = frozenset(
    """total sum amount number cost price profit loss speed distance value length width height depth score rate fee
    salary income weight mass area volume perimeter revenue wage tax tip bill balance budget payment age temperature
    duration time population answer result count""".split()
)
"""Nouns after which "of" leads to the value itself: "a total of 7", and not "a third of 7"."""

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_TAKEN_BACK = re.compile(
    r"\b(?:wait|actually|scratch\s+that|correction|oops|sorry|hmm+|instead|rather|however|on\s+(?:second\s+thoughts?|reflection)|come\s+to\s+think|mistaken"
    r"|mistakes?|wrong|incorrect|not\s+(?:correct|right|true)|errors?|never\s+mind|recheck|reconsider"
    r"|(?:is|was|be|are)\s+not|(?:is|was|are)n['’]t|ignore|disregard|revised?|rethink|doubled?|halved?|subtract|must\s+be)\b",
    re.IGNORECASE,
)


def words_in(text: str) -> list[str]:
    """The words of a text, as written."""
    return _WORD.findall(text)


def is_harmless(word: str, known: frozenset[str] = frozenset()) -> bool:
    """Whether a word leaves the value beside it unchanged.

    Args:
        known: base forms of the question's words.
    """
    low = word.casefold().replace("’", "'")
    if low.endswith("n't") or low in OPERATIONS or low in DOUBTS:
        return False
    forms = _base_forms(low.removesuffix("'s").rstrip("'"))
    if any(form in OPERATIONS or form in DOUBTS for form in forms if form not in _harmless()):
        return False
    return any(form in _harmless() or form in known for form in forms) or (
        all(is_harmless(part, known) for part in low.split("-") if "-" in low) and "-" in low
    )


def is_doubt(word: str) -> bool:
    """Whether a word denies, hedges or limits the value of its sentence."""
    low = word.casefold().replace("’", "'")
    return low.endswith("n't") or low in DOUBTS or any(part in DOUBTS for part in low.split("-"))


def is_operation(word: str) -> bool:
    """Whether a word changes the value beside it."""
    low = word.casefold()
    return low in OPERATIONS or any(part in OPERATIONS for part in low.split("-"))


def is_name(word: str) -> bool:
    """Whether a word looks like a proper name. Names do not change a value."""
    return len(word) > 1 and word[0].isupper() and not is_operation(word) and not is_doubt(word) and not word.isupper()


def known_words(question: str) -> frozenset[str]:
    """Base forms of a question's words, which are harmless in an answer. Only the first 20,000 characters are read."""
    return frozenset(form for word in words_in(question[:20_000]) for form in _base_forms(word.casefold()))


def is_taken_back(following: str) -> bool:
    """Whether the text after an answer withdraws or changes it."""
    return bool(_TAKEN_BACK.search(following))


def all_harmless(words: Iterable[str], known: frozenset[str], *, names: bool = True) -> bool:
    """Whether every word leaves a value beside it unchanged. With `names`, proper names count as harmless."""
    return all(is_harmless(word, known) or (names and is_name(word)) for word in words)


@cache
def _harmless() -> frozenset[str]:
    lines = Path(__file__).with_name("harmless_words.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


@cache
def _base_forms(word: str) -> frozenset[str]:
    """A word, and the base forms that it may be inflected from."""
    forms = {word}
    for ending, replacements in _ENDINGS:
        if word.endswith(ending) and len(word) > len(ending) + 1:
            stem = word[: -len(ending)]
            forms |= {stem + replacement for replacement in replacements}
            if ending in ("ing", "ed") and len(stem) > 2 and stem[-1] == stem[-2]:
                forms.add(stem[:-1])
    return frozenset(forms)


_ENDINGS = (
    ("ies", ("y",)),
    ("ied", ("y",)),
    ("es", ("", "e")),
    ("s", ("",)),
    ("ed", ("", "e")),
    ("ing", ("", "e")),
    ("ly", ("",)),
)

"""Whether an expression holds a number that is too large to compute, told from its text: a tower of powers, a factorial
of a factorial. Computer algebra would run into its deadline and lose its worker."""

from __future__ import annotations

import re

from potstill.verify.numbers import exact_number, plain_signs

MOST_POWER_BITS = 1_000_000
"""Bits of a power that are still computed: bits of its base times its exponent."""
MOST_FACTORIAL = 10_000
MOST_STACKED = 2
"""Powers in one another's exponents, within an exponent whose value is not known."""

_LETTER_BITS = 4
"""Assumed of a base that is no plain number."""


def is_too_large(text: str) -> bool:
    """Whether a power or factorial in a text of mathematics exceeds the limits. Linear in the text for each power, of
    which `MOST_SIGNS` are read; a text with more is too large."""
    text = re.sub(r"\\left|\\right|\\[,;:! ]|\s+", "", plain_signs(text).replace("**", "^"))
    signs = [at for at, sign in enumerate(text) if sign in "^!"]
    return len(signs) > MOST_SIGNS or any(
        _power_too_large(text, at) if text[at] == "^" else _factorial_too_large(text, at) for at in signs
    )


MOST_SIGNS = 64


def _power_too_large(text: str, at: int) -> bool:
    exponent = _operand_after(text, at + 1)
    size = None if re.search(r"[A-Za-z]", exponent) else exact_number(_inside(exponent))
    if size is None:
        plain = re.search(r"[A-Za-z]", exponent) is None
        return _depth(exponent) >= MOST_STACKED or (plain and ("^" in exponent or "!" in exponent))
    base = _operand_before(text, at)
    number = exact_number(_inside(base))
    if number is None and "^" in base and not re.search(r"[A-Za-z]", base):
        return True
    bits = _LETTER_BITS if number is None else max(number.numerator.bit_length(), number.denominator.bit_length())
    return bits * abs(size) > MOST_POWER_BITS


def _factorial_too_large(text: str, at: int) -> bool:
    operand = _operand_before(text, at)
    if re.search(r"[A-Za-z]", operand):
        return False
    number = exact_number(_inside(operand))
    return (
        "!" in operand
        or text[max(at - 2, 0) : at] == "!!"
        or (number is None and "^" in operand)
        or (number is not None and number > MOST_FACTORIAL)
    )


_CLOSES = {"(": ")", "{": "}", "[": "]"}
_OPENS = {close: opening for opening, close in _CLOSES.items()}


def _operand_after(text: str, at: int) -> str:
    """The exponent that begins at a place: a group, with a power of it, or a signed run of digits or one letter."""
    start = at
    while at < len(text) and text[at] in "+-":
        at += 1
    if at < len(text) and text[at] in _CLOSES:
        depth = 0
        for end in range(at, len(text)):
            depth += (text[end] in _CLOSES) - (text[end] in _OPENS)
            if depth == 0:
                at = end + 1
                break
        else:
            return text[start:]
    else:
        found = re.compile(r"[\d.,]+|\\?[A-Za-z]+|").match(text, at)
        at = found.end() if found is not None else at
    if at < len(text) and text[at] == "^":  # 9^9^9: the upper two belong together
        return text[start : at + 1] + _operand_after(text, at + 1)
    return text[start:at]


def _operand_before(text: str, at: int) -> str:
    """The base or argument that ends at a place: a group, or a run of digits or letters, with factorials after it."""
    end = at
    while at and text[at - 1] == "!":
        at -= 1
    if at and text[at - 1] in _OPENS:
        depth = 0
        for start in range(at - 1, -1, -1):
            depth += (text[start] in _OPENS) - (text[start] in _CLOSES)
            if depth == 0:
                return text[start:end]
        return text[:end]
    found = re.search(r"(?:[\d.,]+|[A-Za-z]+)$", text[:at])
    return text[found.start() : end] if found is not None else text[at:end]


def _inside(group: str) -> str:
    """Without one pair of brackets around all of it."""
    whole = len(group) > 1 and group[0] in _CLOSES and group[-1] == _CLOSES[group[0]]
    return group[1:-1] if whole else group


def _depth(text: str) -> int:
    """How many powers stand in one another's exponents in a text."""
    found, at = 0, text.find("^")
    while at >= 0:
        exponent = _operand_after(text, at + 1)
        found = max(found, 1 + _depth(exponent))
        at = text.find("^", at + 1 + len(exponent))
    return found

r"""Numbers, exactly: from text (plain, LaTeX, Unicode) to `Fraction`, with no floating point anywhere.

A small grammar: integers (also `1,234` and `1{,}234`), decimals, `1.5e3`, `½`, `\frac{1}{2}`, mixed numbers (`1 1/2`),
the four operations, powers with integer exponents, parentheses. What it does not read is not a number here.
"""

from __future__ import annotations

import re
from fractions import Fraction

MOST_BITS = 40_000
"""A number with more bits than that in numerator or denominator is not computed."""

_TOKENS = re.compile(
    r"""\s*(?:
      (?P<number>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)(?:[eE](?P<exponent>[-+]?\d{1,5})(?!\d))?
    | (?P<frac>\\frac)
    | (?P<power>\^|\*\*)
    | (?P<times>\*|\\times|\\cdot)
    | (?P<divided>/|\\div)
    | (?P<sign>[-+])
    | (?P<open>[({]) | (?P<close>[)}])
    )""",
    re.VERBOSE,
)
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5"}
_VULGAR |= {"⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "﹣": "-", "－": "-", "＋": "+", "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "⁄": "/",
        "∕": "/", "．": ".", "，": ",", "（": "(", "）": ")", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "∗": "*",
    }
)  # fmt: skip


def plain_signs(text: str) -> str:
    """Unicode's many minus signs, dots and digits as the plain ones; superscripts as powers; `½` as `(1/2)`."""
    text = text.translate(_SIGNS)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", text)
    for sign, value in _VULGAR.items():
        text = re.sub(rf"(?<=\d)\s*{sign}", f" {value}", text).replace(sign, f"({value})")
    return "".join(str(ord(c) - 0xFF10) if "０" <= c <= "９" else c for c in text)


class _NotANumber(Exception):
    pass


def exact_number(text: str) -> Fraction | None:
    """The number that a text is, or None. Division by zero and numbers beyond `MOST_BITS` are None too."""
    text = plain_signs(text).strip()
    text = (
        text.replace("{,}", ",").replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace(r"\cfrac", r"\frac")
    )
    text = re.sub(r"\\[,!;: ]|~|\\left|\\right", " ", text)
    if len(text) > 2000 or not re.search(r"\d", text):
        return None
    # `1 1/2` is one and a half; spaces between the other digits are of thousands, or make no number.
    text = re.sub(r"(?<![\d./^{*)])(-?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)(?!\s*[\d^./])", r"\1(\2+\3/\4)", text)
    text = re.sub(r"(?<![\d.^}/])(\d+)\s*\\frac\s*\{(\d+)\}\s*\{(\d+)\}", r"(\1+\2/\3)", text)
    if re.fullmatch(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?", text):
        text = text.replace(" ", "")
    try:
        reader = _Reader(text)
        value = reader.sum()
        reader.end()
    except (_NotANumber, ZeroDivisionError, RecursionError):
        return None
    return value


class _Reader:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text):
            found = _TOKENS.match(text, at)
            if found is None or found.lastgroup is None:
                raise _NotANumber
            kind = "number" if found.group("number") else found.lastgroup
            self.tokens.append((kind, found.group().strip()))
            at = found.end()
        self.at = 0

    def next(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else "end"

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1][1]

    def end(self) -> None:
        if self.next() != "end":
            raise _NotANumber

    def sum(self) -> Fraction:
        value = self.product()
        while self.next() == "sign":
            value = bounded(value + self.product()) if self.take() == "+" else bounded(value - self.product())
        return value

    def product(self) -> Fraction:
        value = self.signed()
        while self.next() in ("times", "divided"):
            divided = self.next() == "divided"
            self.take()
            other = self.signed()
            value = bounded(value / other) if divided else bounded(value * other)
        return value

    def signed(self) -> Fraction:
        if self.next() == "sign":
            return -self.signed() if self.take() == "-" else self.signed()
        return self.power()

    def power(self) -> Fraction:
        base = self.atom()
        if self.next() != "power":
            return base
        self.take()
        exponent = self.signed()
        if exponent.denominator != 1 or abs(exponent) > MOST_BITS:
            raise _NotANumber
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent) > MOST_BITS:
            raise _NotANumber
        if base == 0 and exponent <= 0:
            raise _NotANumber
        return base ** int(exponent)

    def atom(self) -> Fraction:
        kind = self.next()
        if kind == "number":
            return _of_digits(self.take())
        if kind == "open":
            closing = {"(": ")", "{": "}"}[self.take()]
            value = self.sum()
            if self.next() != "close" or self.take() != closing:
                raise _NotANumber
            return value
        if kind == "frac":
            self.take()
            over = self.argument()
            return bounded(over / self.argument())
        raise _NotANumber

    def argument(self) -> Fraction:
        r"""Of `\frac`: a group in braces, or one digit (`\frac12`)."""
        if self.next() != "number":
            return self.atom()
        digits = self.take()
        if not digits.isdigit():
            raise _NotANumber
        if len(digits) > 1:
            self.at -= 1
            self.tokens[self.at] = ("number", digits[1:])
        return Fraction(int(digits[0]))


def _of_digits(text: str) -> Fraction:
    mantissa, _, exponent = text.replace(",", "").lower().partition("e")
    if abs(int(exponent or 0)) > MOST_BITS // 4:
        raise _NotANumber
    return bounded(Fraction(f"{mantissa.rstrip('.') or '0'}e{exponent or 0}"))


def bounded(value: Fraction) -> Fraction:
    """The same number, if it is not beyond `MOST_BITS`."""
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise _NotANumber
    return value

r"""Exact numbers from text (plain, LaTeX, Unicode, English words) as `Fraction`, without floating point.

The grammar: integers (also `1,234` and `1{,}234`), decimals, `1.5e3`, `½`, `\frac{1}{2}`, mixed numbers (`1 1/2`),
repeating decimals (`0.\overline{3}`), the four operations, powers with integer exponents, parentheses; "twenty-five",
"three quarters", "two and a half", "2.5 million", "minus 7". Any other text is not a number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

MOST_BITS = 40_000
"""Maximum bits of numerator and denominator; larger numbers are not computed."""

MOST_CHARACTERS = 1_000
"""Maximum length in characters; a longer text is not read as a number."""

MOST_DEPTH = 40
"""Maximum nesting of parentheses, signs and powers."""

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
    """Replace Unicode minus signs, dots and digits by ASCII, superscripts by powers, `½` by `(1/2)`, and the `x` of
    `4.5 x 10^-5` by a sign."""
    text = text.translate(_SIGNS)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", " * ", text)  # 4.5 x 10^-5
    for sign, value in _VULGAR.items():
        text = re.sub(rf"(?<=\d)\s*{sign}", f" {value}", text).replace(sign, f"({value})")
    return text if text.isascii() else "".join(_plain_digit(c) for c in text)


def _plain_digit(sign: str) -> str:
    digit = unicodedata.decimal(sign, None) if not sign.isascii() else None
    return sign if digit is None else str(digit)


class _NotANumber(Exception):
    pass


def exact_number(text: str) -> Fraction | None:
    """The number that a text states; None if it is not a number, divides by zero, or exceeds `MOST_BITS`."""
    text = plain_signs(text).strip()
    if len(text) > MOST_CHARACTERS:
        return None
    text = (
        text.replace("{,}", ",").replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace(r"\cfrac", r"\frac")
    )
    text = re.sub(r"\\[,!;: ]|\\left|\\right", " ", text).strip()
    signed = re.fullmatch(r"(minus|negative|plus|positive)\s+([\w.(\\].*)", text, re.IGNORECASE)
    if signed:
        value = None if _SIGN_WORD.match(signed[2]) else exact_number(signed[2])
        return -value if value is not None and signed[1].lower() in ("minus", "negative") else value
    if re.match(r"[-+]?\s*[A-Za-z]", text) or re.search(r"[A-Za-z]$", text) or " and " in text:
        return _spoken(text)
    if not re.search(r"\d", text):
        return None
    repeating = re.fullmatch(r"([-+]?)(\d*)\.(\d*)\\(?:overline|bar)\s*\{?\s*(\d+)\s*\}?", text)
    if repeating:
        return _repeating(*repeating.groups())
    # `1 1/2` is one and a half. Other spaces between digits group thousands, or the text is not a number.
    text = re.sub(r"(?<![\d./^{*)])(-?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)(?!\s*[\d^./])", r"\1(\2+\3/\4)", text)
    text = re.sub(r"(?<![\d.^}/])(\d+)\s*\\frac\s*\{(\d+)\}\s*\{(\d+)\}", r"(\1+\2/\3)", text)
    if re.fullmatch(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?", text):
        text = text.replace(" ", "")
    try:
        reader = _Reader(text)
        value = reader.sum()
        reader.end()
    except (_NotANumber, ZeroDivisionError):
        return None
    return value


_SIGN_WORD = re.compile(r"[-+]|(?:minus|negative|plus|positive)\b", re.IGNORECASE)
_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
_ONES += "seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SMALL = {word: number for number, word in enumerate(_ONES)} | {word: 20 + 10 * n for n, word in enumerate(_TENS)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4, "hundredth": 100, "thousandth": 1000}
_ORDINALS = "third fourth fifth sixth seventh eighth ninth tenth".split()
_PARTS |= {word: 3 + n for n, word in enumerate(_ORDINALS)}
_PARTS |= {f"{word}s": under for word, under in list(_PARTS.items()) if word.endswith(("d", "h"))}
NUMBER_WORDS = frozenset([*_SMALL, *_SCALES, *_PARTS, "hundred", "dozen"])
"""English number words; "a" and "and" may stand among them."""


def _spoken(text: str) -> Fraction | None:
    """A number in English words, or a numeral before a scale or a fraction word ("2.5 million", "7 tenths")."""
    whole, joined, part = text.lower().rpartition(" and ")
    if joined and (fraction := _fraction_words(part)) is not None:
        number = exact_number(whole)
        if number is None or number.denominator != 1 or not 0 < fraction < 1:
            return None
        return number + fraction if number >= 0 else number - fraction
    numeral = re.fullmatch(r"([-+]?[\d.,]+)\s+([a-z]+)", text.lower())
    if numeral:
        scale = {"hundred": 100, "dozen": 12, **_SCALES}.get(numeral[2])
        under = _PARTS.get(numeral[2])
        number = exact_number(numeral[1]) if scale or under else None
        return None if number is None else number * (scale or Fraction(1, under or 1))
    found = _fraction_words(text.lower())
    return found if found is not None else _cardinal(re.split(r"[\s-]+", text.lower().replace(",", " ").strip()))


def _fraction_words(text: str) -> Fraction | None:
    """`half`, `a third`, `three quarters`, `3/4`."""
    if re.fullmatch(r"\d+\s*/\s*\d+", text):
        return exact_number(text)
    *count, part = re.split(r"[\s-]+", text.strip())
    if part not in _PARTS or (not count and part != "half"):
        return None
    over = _cardinal(["one"] if count in ([], ["a"], ["an"]) else count)
    return None if over is None else over / _PARTS[part]


def _cardinal(words: Sequence[str]) -> Fraction | None:
    """`one thousand two hundred and thirty-four`: each word must be compatible with the one before it."""
    if len(words) > 1 and words[0] in ("a", "an"):
        words = ["one", *words[1:]]
    if not words or words[0] == "and" or words[-1] == "and" or len(words) > 40:
        return None
    total, group, last_scale, seen = 0, 0, 10**15, False
    for word in words:
        if word == "and":
            if not seen:
                return None
        elif word in _SMALL:
            number = _SMALL[word]
            room = group % 100 if number >= 10 else group % 10 if group % 100 >= 20 or group % 100 == 0 else 1
            if room or (seen and number == 0):
                return None
            group, seen = group + number, True
        elif word in ("hundred", "dozen"):
            if not 0 < group < 100:
                return None
            group *= 100 if word == "hundred" else 12
        elif word in _SCALES:
            if not 0 < group < 1000 * 10 or _SCALES[word] >= last_scale:
                return None
            total, group, last_scale = total + group * _SCALES[word], 0, _SCALES[word]
        else:
            return None
    return Fraction(total + group)


def _repeating(sign: str, whole: str, fixed: str, repeated: str) -> Fraction:
    places = 10 ** len(fixed)
    value = Fraction(int(whole + fixed or 0), places) + Fraction(int(repeated), (10 ** len(repeated) - 1) * places)
    return -value if sign == "-" else value


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
        self.depth = 0

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
        while self.next() in ("times", "divided") or self.tokens[self.at : self.at + 1] == [("open", "(")]:
            divided = self.next() == "divided"
            if self.next() != "open":  # `2(1/2)` is a product
                self.take()
            other = self.signed()
            value = bounded(value / other) if divided else bounded(value * other)
        return value

    def signed(self) -> Fraction:
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise _NotANumber
        if self.next() == "sign":
            value = -self.signed() if self.take() == "-" else self.signed()
        else:
            value = self.power()
        self.depth -= 1
        return value

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
        if kind == "frac" and self.depth < MOST_DEPTH:
            self.take()
            self.depth += 1
            over = self.argument()
            value = bounded(over / self.argument())
            self.depth -= 1
            return value
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
    """The number, or None if it exceeds `MOST_BITS`."""
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise _NotANumber
    return value

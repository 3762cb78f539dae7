r"""What kind of value a final answer is, read from text. Kinds are told apart before anything is compared, because
`12:30` is no ratio, `2024-01-05` no subtraction, `AB` no product, and (1, 2) no set."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from typing import Literal

from potstill.verify.dates import dates, times
from potstill.verify.final import boxed
from potstill.verify.numbers import exact_number, plain_signs
from potstill.verify.units import SCALES, UNIT, unit_of

Kind = Literal[
    "nothing", "number", "percent", "quantity", "date", "time", "ratio", "ordered", "set", "list", "word", "expression"
]


@dataclass(frozen=True)
class Value:
    """A value and its kind. `text` is what was read, cleaned; the other fields hold what the kind has."""

    kind: Kind
    text: str
    number: Fraction | None = None
    unit: str = ""
    parts: tuple[Value, ...] = ()
    brackets: str = ""
    when: frozenset[date] | frozenset[int] = frozenset()
    of: str = ""
    """The left side of an equation that gives the value: `x` in `x = 5`."""


_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname|emph)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"(?<!\\)\\[,!;: ]|\\quad|\\qquad|~|\\left(?![a-z])|\\right(?![a-z])|\\displaystyle")
_GIVEN = re.compile(r"(?P<of>[A-Za-z](?:_\{?\w+\}?)?(?:\([a-z]\))?|[a-z]+)\s*=\s*(?P<value>[^=]+)")
_CLAUSE = re.compile(r",?\s+(?:because|since|as|which|where|given|so)\s.*", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+(?:[ '’.\-][^\W\d_]+)*\.?")
_PAIRS = {"(": ")", "[": "]", "{": "}", "⟨": "⟩"}
_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
_UNITS += "seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBER_WORDS = {word: number for number, word in enumerate(_UNITS)}
_NUMBER_WORDS |= {word: 20 + 10 * number for number, word in enumerate(_TENS)}
_NUMBER_WORDS |= {f"{ten}-{_UNITS[n]}": 20 + 10 * i + n for i, ten in enumerate(_TENS) for n in range(1, 10)}
_NAMES = {"pi": r"\pi", "π": r"\pi", "infinity": r"\infty", "∞": r"\infty", "∅": r"\emptyset"}


def clean(text: str) -> str:
    """Without what only dresses a value: `$…$`, `\\text{…}`, thin spaces, bold, a full stop at the end."""
    text = plain_signs(text).strip()
    for opening, closing in (
        ("$$", "$$"),
        (r"\(", r"\)"),
        (r"\[", r"\]"),
        ("**", "**"),
        ("`", "`"),
        ('"', '"'),
        ("“", "”"),
    ):
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)].strip()
    text = text.rstrip(".").strip() if not re.search(r"[ap]\.m\.$", text) else text
    if len(text) > 2 and text[0] == text[-1] == "$" and text.count("$") == 2:
        text = text[1:-1].strip()
    box = boxed(text)
    text = box if box is not None else text
    while _TEXT.search(text):
        text = _TEXT.sub(r" \1 ", text)
    text = text.replace(r"\%", "%").replace(r"\$", "$").replace(r"^{\circ}", "°").replace(r"^\circ", "°")
    text = (
        text.replace(r"\langle", "⟨").replace(r"\rangle", "⟩").replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    )
    text = _SPACES.sub(" ", text.replace("{,}", ",").replace(r"\!", ""))
    text = re.sub(r"√\s*(?:\(([^()]+)\)|(\w+))", lambda m: r"\sqrt{" + (m[1] or m[2]) + "}", text)
    return " ".join(text.split()).strip(" .") if not re.search(r"[ap]\.m\.$", text) else " ".join(text.split())


def read_value(text: str) -> Value:
    """The value of a text, of the first kind that it fits."""
    said = clean(text)
    return _read(said) if said else Value("nothing", "")


def trimmed(text: str) -> str:
    """Without a clause that gives a reason (`12, because …`)."""
    return _CLAUSE.sub("", text)


def _read(said: str) -> Value:
    given = _GIVEN.fullmatch(said)
    if given and "," not in said:
        inner = _read(given["value"].strip())
        return Value(
            inner.kind, inner.text, inner.number, inner.unit, inner.parts, inner.brackets, inner.when, given["of"]
        )
    for reader in (_name, _word, _when, _number, _measured, _ratio, _bracketed, _list):
        value = reader(said)
        if value is not None:
            return value
    return Value("expression", said)


def _name(said: str) -> Value | None:
    name = _NAMES.get(said.lower())
    return Value("expression", name) if name else None


def _word(said: str) -> Value | None:
    single = re.fullmatch(r"\(([A-Za-z])\)", said)
    said = single[1] if single else said
    if not _WORD.fullmatch(said):
        return None
    number = _NUMBER_WORDS.get(said.lower())
    if number is not None:
        return Value("number", said, Fraction(number))
    words = said.rstrip(".").replace("’", "'").split()
    if len(words) > 1 and words[0].lower() in ("the", "a", "an"):
        words = words[1:]
    plain = " ".join(words)
    return Value("word", plain if len(plain) == 1 else plain.casefold())


def _when(said: str) -> Value | None:
    on = dates(said)
    if on:
        return Value("date", said, when=on)
    at = times(said)
    return Value("time", said, when=at) if at else None


def _number(said: str) -> Value | None:
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", said):  # a date that there is not, and no subtraction
        return Value("word", said)
    number = exact_number(said)
    return Value("number", said, number) if number is not None else None


def _measured(said: str) -> Value | None:
    """Percentages, money, numbers with a scale ("2 million") or a unit."""
    percent = re.fullmatch(r"(.+?)\s*(?:%|per\s?cent)", said, re.IGNORECASE)
    if percent:
        number = exact_number(percent[1])
        return Value("percent", said, number / 100) if number is not None else None
    money = re.fullmatch(r"([-+]?)\s*(?:US)?([$€£])\s*(\S.*)", said)
    if money:
        inner = _read(money[1] + money[3])
        if inner.kind == "number" or (inner.kind == "quantity" and inner.unit == money[2]):
            return Value("quantity", said, inner.number, money[2])
        return None
    found = UNIT.fullmatch(said)
    if not found:
        return None
    name = found["unit"]
    first, _, rest = name.partition(" ")
    scale = SCALES.get(first.lower())
    number, unit = exact_number(found["number"]), unit_of(rest if scale else name) if rest or not scale else ""
    if number is None or unit is None or (not found["gap"] and not _adjoins(unit)):
        return None
    number *= scale or 1
    return Value("quantity", said, number, unit) if unit else Value("number", said, number)


def _adjoins(unit: str) -> bool:
    """Whether a unit may follow its number without a space: `5cm` may, and `5x` is a product."""
    return (len(unit.partition("^")[0]) > 1 and unit.isascii()) or unit.startswith(("°", "€", "£", "¢"))


def _ratio(said: str) -> Value | None:
    parts = [exact_number(p) for p in said.split(":")]
    if len(parts) < 2 or any(p is None for p in parts):
        return None
    return Value("ratio", said, parts=tuple(Value("number", str(p), p) for p in parts))


def _bracketed(said: str) -> Value | None:
    opening = r"\{" if said.startswith(r"\{") else said[0]
    if opening == r"\{":
        closing, bracket = r"\}", "{"
        inner = said[2:-2].strip()
    else:
        bracket, closing = opening, said[-1]
        inner = said[1:-1].strip()
    if bracket not in _PAIRS or not said.endswith(closing) or len(said) < len(opening) + len(closing):
        return None
    if closing[-1] not in ")]}⟩" or not _closes_last(said, opening):
        return None
    pieces = split_at_top(inner)
    if bracket == "{":
        return Value("set", said, parts=tuple(_read(p) for p in pieces))
    if len(pieces) < 2:
        return _read(inner) if bracket == "(" and closing == ")" and inner else None
    return Value("ordered", said, parts=tuple(_read(p) for p in pieces), brackets=bracket + closing)


def _closes_last(said: str, opening: str) -> bool:
    depth, at = 0, 0
    while at < len(said):
        if said[at] in "([{⟨":
            depth += 1
        elif said[at] in ")]}⟩":
            depth -= 1
            if depth == 0 and at < len(said) - 1:
                return False
        at += 1
    return depth == 0


def _list(said: str) -> Value | None:
    pieces = split_at_top(said)
    if not pieces:
        return None
    if len(pieces) == 1:
        pieces = re.split(r"\s+(?:and|or)\s+", said)
    else:
        pieces[-1] = re.sub(r"^(?:and|or)\s+", "", pieces[-1])
    if len(pieces) < 2 or not all(pieces):
        return None
    parts = tuple(_read(p) for p in pieces)
    return Value("list", said, parts=parts) if all(p.kind != "list" for p in parts) else None


def split_at_top(text: str) -> list[str]:
    """Split at the commas (or, where there are any, semicolons) that no bracket encloses."""
    separator = ";" if ";" in text else ","
    pieces, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign in "([{⟨") - (sign in ")]}⟩")
        if sign == separator and depth == 0:
            pieces.append(text[start:at].strip())
            start = at + 1
    pieces.append(text[start:].strip())
    return [p for p in pieces if p] if text.strip() else []

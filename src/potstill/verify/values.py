r"""Typed values of final answers, read from text. The kind is determined before anything is compared: `12:30` is not a
ratio, `2024-01-05` not a subtraction, `AB` not a product, and (1, 2) not a set.

Reading is strict. Every character of a text must belong to its value, to a unit, or to words that are known to be
harmless; any other text is of kind `unclear`, which no verifier accepts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import date
from fractions import Fraction
from typing import Literal

from potstill.verify.answer_extraction import (
    boxed,
    final_value,
    follows_value,
    last_sentence,
    leads_to_value,
    locate,
    region_of,
    with_unit,
    without_reasoning,
)
from potstill.verify.dates import dates, times
from potstill.verify.numbers import exact_number, plain_signs
from potstill.verify.surroundings import is_doubt, words_in
from potstill.verify.units import UNIT, asked_units, is_known, unasked, unit_of

# ---- values ----------------------------------------------------------------------------------------------------------


Kind = Literal[
    "nothing", "unclear", "number", "based", "percent", "quantity", "date", "time", "ratio", "ordered", "set", "list",
    "word", "expression",
]  # fmt: skip

MOST_CHARACTERS = 2_000
"""Maximum length in characters; a longer text is `unclear`."""

MOST_DEPTH = 12
"""Maximum nesting of tuples, sets and lists; a deeper one is `unclear`."""

MOST_PARTS = 500
"""Maximum values of a tuple, set or list; a longer one is `unclear`."""


@dataclass(frozen=True)
class Value:
    """A value and its kind. `text` is the text that was read, without markup; the other fields depend on the kind."""

    kind: Kind
    text: str
    number: Fraction | None = None
    unit: str = ""
    parts: tuple[Value, ...] = ()
    brackets: str = ""
    when: frozenset[date] | frozenset[Fraction] = frozenset()
    of: str = ""
    """The left side of an equation that gives the value: `x` in `x = 5`."""


_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname|emph)\s*\{([^{}]*)\}")
_SPACES = re.compile(
    r"(?<!\\)\\[,!;: ]|\\quad|\\qquad|~(?=\\?[a-zA-Z])|\\left(?![a-z])|\\right(?![a-z])|\\displaystyle"
)
_GIVEN = re.compile(
    r"(?P<of>[A-Z]\^\{-1\}|[A-Za-z](?:_\{?\w+\}?)?(?:\([a-z]\))?|[a-z]+)\s*(?:=|∈|\\in(?![a-z]))\s*(?P<value>[^=]+)"
)
_MATRIX = re.compile(r"\\begin\s*\{p?matrix\}((?:(?!\\begin).)*)\\end\s*\{p?matrix\}")
_GROUPS = re.compile(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])")
_PLUS_OR_MINUS = re.compile(r"(?:±|\\pm(?![a-z]))\s*([^±\s]+)")
_DURATION = re.compile(
    r"(?:(\d+)\s*(?:days?|d)[\s,]+(?:and\s+)?)?(\d+)\s*(?:hours?|hrs?|h)[\s,]*(?:and\s+)?(\d+)\s*(?:minutes?|mins?|m)",
    re.IGNORECASE,
)
_PI_WITH_UNIT = re.compile(
    r"\$?(?P<number>[^A-Za-z$]*(?:\\pi(?![A-Za-z])|π))\s*\$?\s*(?P<unit>[A-Za-z][A-Za-z ]*(?:\s?\^\{?[23]\}?|[²³])?)"
)
_WORD = re.compile(r"[^\W\d_]+(?:[ '’.\-][^\W\d_]+)*\.?")
_PAIRS = {"(": ")", "[": "]", "{": "}", "⟨": "⟩"}
_NAMES = {"pi": r"\pi", "π": r"\pi", "infinity": r"\infty", "∞": r"\infty", "∅": r"\emptyset"}
_DRESS = (("$$", "$$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ('"', '"'), ("“", "”"))
_FORMULAS = re.compile(r"\$[^$]+\$(?:\s*(?:,|,?\s+and|,?\s+or)\s*\$[^$]+\$)+")
"""A list of formulas, each in dollar signs of its own."""
_CLOCK = re.compile(r"[ap]\.m\.$", re.IGNORECASE)
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()


def clean(text: str) -> str:
    r"""Remove markup around a value: `$…$`, `\text{…}`, thin spaces, bold, a full stop at the end."""
    text = plain_signs(text[: MOST_CHARACTERS + 1]).strip()
    for opening, closing in _DRESS:
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)].strip()
    text = _without_stop(text)
    if _FORMULAS.fullmatch(text):
        text = text.replace("$", "")
    if len(text) > 2 and text[0] == text[-1] == "$" and text.count("$") == 2:
        text = _without_stop(text[1:-1])
    if text.startswith(("\\boxed", "\\fbox")) and text.endswith("}"):
        text = boxed(text) or text
    for _ in range(MOST_DEPTH):
        text, found = _TEXT.subn(r" \1 ", text)
        if not found:
            break
    text = text.replace(r"\%", "%").replace(r"\$", "$").replace(r"^{\circ}", "°").replace(r"^\circ", "°")
    text = (
        text.replace("{bmatrix}", "{pmatrix}")
        .replace(r"\varnothing", r"\emptyset")
        .replace(r"\langle", "⟨")
        .replace(r"\rangle", "⟩")
        .replace(r"\dfrac", r"\frac")
        .replace(r"\tfrac", r"\frac")
    )
    text = _SPACES.sub(" ", re.sub(r"(?<=\d)\{,\}(?=\d{3})", ",", text).replace(r"\!", ""))
    text = re.sub(r"√\s*(?:\(([^()]+)\)|(\w+))", lambda m: r"\sqrt{" + (m[1] or m[2]) + "}", text)
    return _without_stop(" ".join(text.split()))


def _without_stop(text: str) -> str:
    text = text.strip()
    return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") and not _CLOCK.search(text) else text


def read_value(text: str, known: frozenset[str] = frozenset()) -> Value:
    """The value of a text, of the first kind that fits all of it; `unclear` if none does.

    Args:
        known: base forms of the question's words, which may name counted things.
    """
    if len(text) > MOST_CHARACTERS:
        return Value("unclear", text[:MOST_CHARACTERS])
    said = clean(text)
    return _read(said, known, 0) if said else Value("nothing", "")


def _read(said: str, known: frozenset[str], depth: int) -> Value:
    if depth > MOST_DEPTH:
        return Value("unclear", said)
    given = _GIVEN.fullmatch(said)
    if given and len(split_at_top(said)) == 1:
        inner = _read(given["value"].strip(), known, depth + 1)
        return inner if inner.kind == "unclear" else replace(inner, of=given["of"])
    if both := _PLUS_OR_MINUS.fullmatch(said):
        parts = tuple(_read(sign + both[1], known, depth + 1) for sign in ("", "-"))
        if parts[0].kind == "number":
            return Value("set", said, parts=parts)
    value = (
        _name(said) or _number(said) or _percent(said) or _word(said) or _when(said) or _measured(said, known, depth)
    )
    value = (
        value
        or _matrix(said, known, depth)
        or _ratio(said)
        or _bracketed(said, known, depth)
        or _list(said, known, depth)
    )
    if value is not None:
        return value
    return Value("expression" if is_expression(said) else "unclear", said)


def _name(said: str) -> Value | None:
    name = _NAMES.get(said.lower().removeprefix("-"))
    return Value("expression", ("-" if said[0] == "-" else "") + name) if name else None


def _word(said: str) -> Value | None:
    single = re.fullmatch(r"\(([A-Za-z])\)", said)
    said = single[1] if single else said
    ordinal = re.fullmatch(r"(?:the )?(\d{1,9})(?:st|nd|rd|th)", said.lower())
    if ordinal:
        return Value("word", f"{int(ordinal[1])}.")
    if said.lower().removeprefix("the ") in _ORDINALS:
        return Value("word", f"{_ORDINALS.index(said.lower().removeprefix('the ')) + 1}.")
    if not _WORD.fullmatch(said):
        return None
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
    if re.fullmatch(r"\d{4}-\d{1,2}-\d{1,2}", said):  # a date, or one that does not exist: no subtraction
        return None if dates(said) else Value("word", said)
    if re.fullmatch(r"[(\[{]\s*[-+]?\d{1,3}(?:,\d{3})+\s*[)\]}]", said):
        return None  # (1,234) may be a pair
    number = exact_number(said)
    if number is not None:
        return Value("number", said, number)
    based = re.fullmatch(r"([-+]?[0-9A-Za-z]+)_\{?(\d{1,2})\}?", said)
    if based and re.search(r"\d", based[1]) and 2 <= int(based[2]) <= 36:
        return Value("based", f"{based[1].lower()}_{int(based[2])}")
    return None


def _percent(said: str) -> Value | None:
    percent = re.fullmatch(r"(.+?)\s*(?:%|per\s?cent)", said, re.IGNORECASE)
    number = exact_number(percent[1]) if percent else None
    return Value("percent", said, number / 100) if number is not None else None


def _measured(said: str, known: frozenset[str], depth: int) -> Value | None:
    """Money, and numbers with a unit or a counted noun."""
    money = re.fullmatch(r"([-+]?)\s*(?:US|USD\s?)?([$€£])\s*(\S.*)", said) or re.fullmatch(
        r"([-+]?)(USD|EUR|GBP)\s+(\d.*)", said
    )
    if money:
        inner = _read(money[1] + money[3], known, depth + 1)
        currency = unit_of(money[2]) or money[2]
        if inner.kind == "number" or (inner.kind == "quantity" and inner.unit.split(" ")[0] == currency):
            return Value("quantity", said, inner.number, inner.unit or currency)
        if inner.kind == "quantity" and inner.unit.startswith("per "):
            return Value("quantity", said, inner.number, f"{currency} {inner.unit}")
        return None
    if lasts := _DURATION.fullmatch(said):
        days, hours, minutes = (int(part or 0) for part in lasts.groups())
        return Value("quantity", said, Fraction(1440 * days + 60 * hours + minutes), "min")
    if (measured := _PI_WITH_UNIT.fullmatch(said)) and is_expression(measured["number"].strip()):
        unit = unit_of(measured["unit"], known)
        return Value("expression", measured["number"].strip(), unit=unit) if unit and is_known(unit) else None
    found = UNIT.fullmatch(said)
    if not found:
        return None
    number, unit = exact_number(found["number"]), unit_of(found["unit"], known)
    if number is None:
        # "7 million dollars", "seven apples": the number is partly in words.
        words = said.split(" ")
        for cut in range(len(words) - 1, max(0, len(words) - 6), -1):
            number, unit = exact_number(" ".join(words[:cut])), unit_of(" ".join(words[cut:]), known)
            if number is not None and unit:
                return Value("quantity", said, number, unit)
        return None
    if unit is None or (not found["gap"] and not _adjoins(unit)):
        for cut in range(1, min(5, len(found["unit"].split(" ")))):
            words = found["unit"].split(" ")
            scaled = exact_number(f"{found['number']} {' '.join(words[:cut])}")
            unit = unit_of(" ".join(words[cut:]), known)
            if scaled is not None and unit:
                return Value("quantity", said, scaled, unit)
        return None
    return Value("quantity", said, number, unit)


def _adjoins(unit: str) -> bool:
    """Whether a unit may follow its number without a space: `5cm` may; `5x` is a product."""
    return (len(unit.partition("^")[0]) > 1 and unit.isascii()) or unit.startswith(("°", "€", "£", "¢"))


def _ratio(said: str) -> Value | None:
    parts = [exact_number(p) for p in re.split(r"\s*:\s*|\s+to\s+", said)] if len(said) < 200 else []
    if len(parts) < 2 or any(p is None for p in parts):
        return None
    return Value("ratio", said, parts=tuple(Value("number", str(p), p) for p in parts))


def _bracketed(said: str, known: frozenset[str], depth: int) -> Value | None:
    opening = r"\{" if said.startswith(r"\{") else said[0]
    if opening == r"\{":
        closing, bracket = r"\}", "{"
        inner = said[2:-2].strip()
    else:
        bracket, closing = opening, said[-1]
        inner = said[1:-1].strip()
    if bracket not in _PAIRS or not said.endswith(closing) or len(said) < len(opening) + len(closing):
        return None
    if closing[-1] not in ")]}⟩" or not _closes_last(said):
        return None
    pieces = split_at_top(inner)
    if len(pieces) > MOST_PARTS:
        return Value("unclear", said)
    if bracket == "{":
        both = [(piece, _PLUS_OR_MINUS.fullmatch(piece)) for piece in pieces]
        pieces = [one for piece, sign in both for one in ((sign[1], f"-{sign[1]}") if sign else (piece,))]
    parts = tuple(_read(p, known, depth + 1) for p in pieces) if bracket == "{" or len(pieces) > 1 else ()
    if any(p.kind in ("unclear", "nothing") for p in parts):
        return Value("unclear", said)
    if bracket == "{":
        return Value("set", said, parts=parts)
    if not parts:
        return _read(inner, known, depth + 1) if bracket == "(" and closing == ")" and inner else None
    return Value("ordered", said, parts=parts, brackets=bracket + closing)


def _matrix(said: str, known: frozenset[str], depth: int) -> Value | None:
    """A matrix as a tuple of its rows."""
    found = _MATRIX.fullmatch(said)
    if found is None:
        return None
    rows = [[cell.strip() for cell in row.split("&")] for row in found[1].strip().removesuffix(r"\\").split(r"\\")]
    if sum(map(len, rows)) > MOST_PARTS or not all(map(all, rows)):
        return Value("unclear", said)
    parts = tuple(
        Value("ordered", " & ".join(row), parts=tuple(_read(cell, known, depth + 1) for cell in row), brackets="row")
        for row in rows
    )
    if any(cell.kind in ("unclear", "nothing") for row in parts for cell in row.parts):
        return Value("unclear", said)
    return Value("ordered", said, parts=parts, brackets="matrix")


def _closes_last(said: str) -> bool:
    """Whether the first opening bracket closes at the end."""
    depth = 0
    for at, sign in enumerate(said):
        if sign in "([{⟨":
            depth += 1
        elif sign in ")]}⟩":
            depth -= 1
            if depth == 0 and at < len(said) - 1:
                return False
    return depth == 0


def _list(said: str, known: frozenset[str], depth: int) -> Value | None:
    pieces = split_at_top(said)
    if not pieces or len(pieces) > MOST_PARTS:
        return None
    if "=" in said and "," in said and "," not in _GROUPS.sub("", said) and ";" not in said:
        return None  # `0.25 * 1,200,000 = 300,000`
    if len(pieces) == 1:
        pieces = re.split(r"\s+(?:and|or)\s+", said)
    else:
        pieces[-1] = re.sub(r"^(?:and|or)\s+", "", pieces[-1])
    if len(pieces) < 2 or not all(pieces):
        return None
    parts = tuple(_read(p, known, depth + 1) for p in pieces)
    return Value("list", said, parts=parts) if not {"list", "unclear"} & {p.kind for p in parts} else None


def split_at_top(text: str) -> list[str]:
    """Split at commas (or at semicolons, if there are any) outside brackets. Commas between groups of three digits
    belong to a number."""
    separator = ";" if ";" in text else ","
    pieces, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign in "([{⟨") - (sign in ")]}⟩")
        if sign == separator and depth == 0:
            pieces.append(text[start:at].strip())
            start = at + 1
    pieces.append(text[start:].strip())
    return [p for p in pieces if p] if text.strip() else []


# ---- expressions ---------------------------------------------------------------------------------------------

_FUNCTIONS = frozenset(
    """sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan asin acos atan log ln lg exp sqrt abs gcd lcm min max
    det floor ceil pi""".split()
)
_LATEX = _FUNCTIONS | frozenset(
    """frac sqrt binom cdot times div pm mp left right infty emptyset cup cap setminus mathbb mathcal leq le geq ge neq
    ne lt gt in notin lfloor rfloor lceil rceil vert lvert rvert mid to begin end pmatrix bmatrix matrix vmatrix cases
    overline bar hat vec angle circ triangle parallel perp alpha beta gamma delta epsilon varepsilon zeta eta theta
    vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi
    Sigma Upsilon Phi Psi Omega int sum prod lim partial nabla forall exists quad Re Im operatorname cdots ldots
    dots""".split()
)
_UNREADABLE = frozenset("cdots ldots dots approx sim overline bar hat neq ne".split())
"""Commands whose meaning computer algebra would guess."""

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+)|\\(?P<command>[A-Za-z]+|[{}|\\])|(?P<letters>[^\W\d_]+)"
    r"|(?P<operator>\*\*|[-+*/^=<>≤≥±≠|!_,;&'])|(?P<open>[(\[{])|(?P<close>[)\]}]))"
)
_RELATIONS = re.compile(r"[<>≤≥≠]|\\(?:leq?|geq?|neq?|lt|gt|in|notin)(?![a-z])")
_MARKS = re.compile(
    r"'|′|\\prime(?![a-z])|\^\s*\{?\s*(?:T\b|\\top|\\intercal|\\dagger|\\ast|\*|H\b)|\\mid(?![a-z])|\\(?:bar|overline)(?![a-z])"
)
_PLUS_MINUS = re.compile(r"±|\\pm(?![a-z])|\\mp(?![a-z])")


def is_expression(text: str) -> bool:
    """Whether a text is mathematics throughout: known functions and symbols, matching brackets, operators with an
    operand on both sides, and no two adjacent numerals. Only such texts are passed to computer algebra, which silently
    skips what it does not know."""
    at, stack, before, token_before = 0, list[str](), "start", ""
    while at < len(text.rstrip()):
        found = _TOKEN.match(text, at)
        if found is None or len(stack) > 50:
            return False
        kind, token = found.lastgroup or "", found[found.lastgroup or 0]
        if kind == "number" and before == "number":
            return False
        if kind == "number" and before == "letters" and not token_before.endswith(tuple(_FUNCTIONS)):
            return False  # `0x10`, `x2`
        if kind == "letters":
            if len(token) > 1 and token not in _FUNCTIONS and not _product(token):
                return False
        elif kind == "command":
            if token in _UNREADABLE or (len(token) > 1 and token not in _LATEX):
                return False
            kind = "operator" if token in ("cdot", "times", "div", "pm", "mp", "cup", "cap") else kind
        elif kind == "open":
            stack.append(token)
        elif kind == "close":
            if not stack:
                return False
            opened = stack.pop()  # half-open intervals mix ( and ]
            if (opened == "{") != (token == "}"):
                return False
        elif (token == "_" and before == "number") or (token == "'" and before != "letters"):
            return False
        unary = token in ("-", "+", "±", "pm", "|", "\\", "!", "&", "'", "<", ">", "≤", "≥")
        if (
            kind == "operator"
            and not unary
            and before in ("start", "operator", "open")
            and token not in ("|", "&", ",")
        ):
            return False
        if kind == "close" and before == "operator":
            return False
        # The base of `\log_2 8` is no factor.
        subscript = kind == "number" and token_before == "_"
        before = "closed" if subscript or (kind == "operator" and token in ("!", "|", "'")) else kind
        token_before = token
        at = found.end()
    return before not in ("operator", "start") and not stack


def _product(letters: str) -> bool:
    """Whether a run of letters may be a product of variables: `xy`, and neither `of` nor `dozen`."""
    return len(letters) <= 3 and letters.isascii() and letters.islower() and letters not in _SHORT_WORDS


_SHORT_WORDS = frozenset(
    """a an the not no nor or of to is in on at by as if it so up do go we he me my us be and but for per are was has
    had its his her our out off all any two one six ten old new odd few far ago yes may can did how who why mm cm km kg
    mg ml lb oz ft hr min sec mph kph deg rad mod mid pm am bc ad st nd rd th vs ie eg etc ish usd eur gbp""".split()
)


def relations_in(text: str) -> bool:
    """Whether a text states an inequality or a membership."""
    return bool(_RELATIONS.search(text))


def marks_in(text: str) -> bool:
    """Whether a text has signs that computer algebra drops or stops at: primes, transposes, conjugates, a single
    bar."""
    return bool(_MARKS.search(text)) or text.count("|") % 2 == 1


def plus_minus_in(text: str) -> bool:
    """Whether a text states two values by ±."""
    return bool(_PLUS_MINUS.search(text))


# ---- answers -------------------------------------------------------------------------------------------------


def reference_value(text: str) -> Value:
    """The value of a reference: a bare one, or the final answer of a worked solution."""
    value = read_value(text)
    if value.kind in ("expression", "nothing", "unclear"):
        found = locate(text)
        return read_value(found.text) if found is not None and found.text else value
    return value


DECIMAL_COMMA = re.compile(r"[-+$€£\s]*\d+,\d+(?![\d,])(?!\s*,)")
"""A comma that separates decimals in some languages, and values in others."""


def with_points(completion: str, question: str) -> str:
    """An answer with decimal points, if its question writes decimal commas: "2,5 Liter", and no decimal point."""
    if re.search(r"\d\.\d", question) or not re.search(r"\d,\d{1,2}(?!\d)\s+[^\W\d_]", question):
        return completion
    grouped = re.sub(r"(?<![\d.,])\d{1,3}(?:\.\d{3})+(?![\d.])", lambda m: m[0].replace(".", ""), completion)
    return re.sub(r"(?<![\d.,(\[])(?<!\\\{)(\d++),(\d++)(?![.,]\d)", r"\1.\2", grouped)


def answer_value(completion: str, known: frozenset[str] = frozenset(), *, equation: bool = False) -> Value | None:
    """The value of a model's text; None if it has no final answer; of kind `unclear` if words around the value may
    change it.

    Args:
        known: base forms of the question's words.
        equation: the reference is an equation; otherwise the value of "3 + 4 = 7" is 7.
    """
    said = without_reasoning(completion)
    found = locate(said, known)
    if found is not None:
        if not found.text:
            return Value("unclear", "")
        return _solved(_read_phrase(found.text, known), known, equation)
    if len(said) <= 300 and "\n" not in said.strip():
        whole = read_value(said, known)
        if whole.kind not in ("nothing", "unclear") and not is_prose(whole):
            return _solved(whole, known, equation)
    converted = _converted(said, known, equation)
    if converted is not None:
        return converted
    last = final_value(said, known)
    value = None if last is None else _solved(read_value(last, known), known, equation)
    if value is None or value.kind == "unclear":
        value = computed_value(said, known) or value
    if value is None:
        return Value("unclear", said[-60:]) if re.search(r"[\d∅\\]", said[-MOST_CHARACTERS:]) else None
    return None if value.kind == "expression" and is_prose(value) else value


_NUMERAL = re.compile(r"\d+(?:[.,]\d+)*(?:/\d+)?")


def names_in_passing(completion: str, number: Fraction) -> bool:
    """Whether the last line of an answer that no marks delimit has a number: "It is 1/2, or 50 %", "y = 16 (check: 16/4
    + 3 = 7)". Another value that was read from such a line is no sure sign of a wrong answer."""
    said = without_reasoning(completion)
    found = locate(said)
    if found is not None and found.delimited:
        return False
    line = plain_signs(said.strip().rpartition("\n")[2][-MOST_CHARACTERS:])
    return any(exact_number(text) == number for text in _NUMERAL.findall(line))


_ASIDE = re.compile(r"\s*\(([^()]{1,40})\)(?=[\s.!*]*$)")


def _converted(said: str, known: frozenset[str], equation: bool) -> Value | None:
    """The quantity before an equal one in brackets, if both have a unit of measure: 100 °C of "100 °C (212 °F)"."""
    aside = _ASIDE.search(said)
    second = read_value(aside[1], known) if aside else None
    if aside is None or second is None or second.kind != "quantity" or not is_known(second.unit):
        return None
    first = answer_value(said[: aside.start()] + said[aside.end() :], known, equation=equation)
    if first is None or first.kind != "quantity" or not is_known(first.unit) or first.unit == second.unit:
        return None
    return first


_MONEY_OR_BOLD = re.compile(r"[*_]{2}|\\?[$€£]")
_COMMAND = re.compile(r"\\(?:frac|times|cdot|div)(?![a-z])")


def computed_value(said: str, known: frozenset[str]) -> Value | None:
    """The right side of a correct equation that ends a text: 72 km/h of "Speed = 180 km ÷ 2.5 h = 72 km/h". None if the
    side before it cannot be computed, gives another number, or follows words that may change it."""
    last = last_sentence(said)
    if last is None or re.search(r"[?~±≈≠≤≥<>]|\\(?:approx|neq?|leq?|geq?|pm)(?![a-z])", last):
        return None
    text = clean(last.replace("**", ""))
    left, equals, right = text.rpartition("=")
    value = read_value(right, known)
    if not equals or value.number is None or value.kind not in ("number", "quantity"):
        return None
    *_, side = left.split("=")
    words = _MONEY_OR_BOLD.sub("", side).split()
    kept: list[str] = []
    while words and (_COMMAND.search(words[-1]) or not re.search(r"[A-Za-z]", words[-1]) or _counted(words, known)):
        kept.append("" if _counted(words, known) else words[-1])
        words.pop()
    named = [side for side in left.split("=")[:-1] if not re.fullmatch(r"\s*[A-Za-z]\s*", side)]
    before = " ".join([*named, " ".join(words)])
    clause = re.split(r"[,;:.]\s", before)[-1]
    if any(is_doubt(word) for word in words_in(last)) or not leads_to_value(clause, known, strict=True):
        return None
    return value if kept and exact_number(" ".join(reversed(kept))) == value.number else None


def _counted(words: list[str], known: frozenset[str]) -> bool:
    """Whether the last word is a unit or a counted noun after a number."""
    return words[-1].isalpha() and any(c.isdigit() for c in "".join(words[-2:-1])) and bool(unit_of(words[-1], known))


def _read_phrase(phrase: str, known: frozenset[str]) -> Value:
    """The value of the text after "the answer is": the whole text, or its only value among harmless words."""
    value = read_value(phrase, known)
    if value.kind != "unclear" and not is_prose(value):
        return value
    shorter = re.split(r",?\s+(?:because|since)\s", phrase, maxsplit=1)[0]
    if shorter != phrase:
        value = read_value(shorter, known)
        if value.kind != "unclear":
            return value
    region = region_of(phrase)
    if region is None or region.several:
        return value
    text, after = with_unit(region)
    if not leads_to_value(region.before, known, strict=True) or not follows_value(after, known):
        return value
    return read_value(text, known)


def _solved(value: Value, known: frozenset[str], equation: bool) -> Value:
    if equation or value.kind not in ("expression", "unclear") or "=" not in value.text:
        return value
    right = right_side(value.text)
    return read_value(right, known) if right and right != value.text else value


def other_unit(reference: Value, answer: Value, question: str) -> str | None:
    """The unit of measure of an answer that its question does not ask for, where the reference has none; else None."""
    if not answer.unit or reference.unit:
        return None
    asked, unit = asked_units(question), answer.unit.partition(" per ")[0]
    if unit == "°" and len(asked & {"°C", "°F"}) == 1:
        return None
    return unit if is_known(unit) and asked and unit not in asked else unasked(answer.unit, question)


def right_side(text: str) -> str:
    """The right side of a chain of equations if that is the value: "3 + 4 = 7", "Area = 7". The whole equation if it
    has unknowns, "2x + 1 = 7"."""
    left, equals, right = text.rpartition("=")
    if not equals or left.endswith(("\\", "<", ">", "!")) or re.search(r"[≠≤≥≈~±]|\\neq?(?![a-z])", left):
        return text
    first = left.split("=")[0].strip()
    if _OPERATOR.match(first):
        return right.strip()
    if _FORMULA.search(re.sub(r"\\[a-zA-Z]+", " ", first)):
        return text  # an equation in unknowns, `-x = 5`
    value = exact_number(right.replace("$", "").strip())
    sides = [exact_number(re.sub(r"[$€£]", "", side).strip(" :")) for side in left.split("=")]
    if value is not None and any(side is not None and side != value for side in sides):
        return text  # `2 + 2 = 5`
    names = re.sub(r"\\[a-zA-Z]+|_\{?\w+\}?", " ", left)
    names_it = len(sides) > 1 and re.fullmatch(r"\\?[A-Za-z]+(?:\s*\(?[A-Z]\)?)?", first)
    if value is not None and names_it and all(side == value for side in sides[1:]):
        return right.strip()  # `det A = 2*4 - 3 = 5`
    unknown = re.search(r"[a-zA-Z]", names) and re.search(r"\d", names)
    return text if unknown else right.strip()


_OPERATOR = re.compile(r"\\frac\s*\{d\}\s*\{d[a-z]\}|\\(?:int|lim|sum|prod)(?![a-z])")
"""Matches the start of a side that is computed, as opposed to one of an equation in unknowns."""
_FORMULA = re.compile(r"^[-+]\s*[A-Za-z]|(?<![A-Za-z])[A-Za-z]\s*[-+*/·×÷^]|[-+*/·×÷]\s*[A-Za-z](?![A-Za-z])")


def is_prose(value: Value) -> bool:
    """Whether a text that fits a value as a whole is actually a sentence: "it is Bob"."""
    if value.kind == "list":
        if any(is_prose(p) for p in value.parts) or len({p.kind == "word" for p in value.parts}) > 1:
            return True
        words = [w for p in value.parts if p.kind == "word" for w in p.text.split()]
        return len(words) > 2 * len(value.parts)
    said = value.text.split()
    return value.kind == "word" and (len(said) > 3 or bool(set(said) & {"is", "are", "was", "were", "it"}))

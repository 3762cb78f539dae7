"""Units and counted nouns after a number: which names mean the same unit, and which words may stand there."""

from __future__ import annotations

import re

from potstill.verify.surroundings import is_harmless

_SAME = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
    "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile", "g": "gram gramme", "kg": "kilogram kilo",
    "mg": "milligram", "lb": "pound lbs", "oz": "ounce", "l": "liter litre L", "ml": "milliliter millilitre mL",
    "s": "second sec secs", "min": "minute mins", "h": "hour hr hrs", "day": "days", "week": "weeks", "month": "months",
    "year": "years yr yrs", "°": "degree degrees", "°C": "celsius", "°F": "fahrenheit", "rad": "radian",
    "$": "dollar dollars usd USD bucks", "€": "euro euros eur EUR", "£": "gbp GBP", "¢": "cent cents", "mph": "mph",
    "km/h": "kph kmh", "m/s": "mps", "J": "joule", "N": "newton",
    "W": "watt", "V": "volt", "Hz": "hertz", "K": "kelvin",
    "Pa": "pascal", "unit": "units", "cm^2": "", "m^2": "", "km^2": "", "cm^3": "", "m^3": "", "mol": "mole",
}  # fmt: skip
_CANONICAL = {name: unit for unit, names in _SAME.items() for name in [unit, *names.split()]}
_NEVER_FIRST = frozenset("at by from with on for to of as into and since during then so".split())
"""Words that cannot begin a unit: they continue the sentence about the number."""
_POWERS = {"²": "^2", "³": "^3", "^2": "^2", "^3": "^3", "^{2}": "^2", "^{3}": "^3"}
_COMPOUND = {"mi per h": "mph", "km per h": "km/h", "m per s": "m/s", "m/sec": "m/s", "km/hr": "km/h", "mi/h": "mph",
             "° °C": "°C", "° °F": "°F"}  # fmt: skip
_NO_UNIT = re.compile(r"\b(?:(?:in (?:total|all)|altogether|total|left|remaining|now)\s*)+$")
UNIT = re.compile(
    r"(?P<number>.*[\d)}])(?P<gap>\s*)(?P<unit>°\s?[CF]?|[€£¢]|[A-Za-zµΩ][A-Za-zµΩ' /-]*(?:\^\{?[23]\}?|[²³])?)"
)


def unit_of(text: str, known: frozenset[str] = frozenset()) -> str | None:
    """The canonical name of a unit or counted thing ("apple", "cm^2", "m/s"); None if a word is neither a unit nor
    known to be harmless ("or", "squared", "florins").

    Args:
        known: base forms of the question's words, which may name counted things.
    """
    text = _NO_UNIT.sub("", " ".join(text.strip().removesuffix(".").split()))
    power = ""
    for sign, said in _POWERS.items():
        if text.endswith(sign):
            text, power = text.removesuffix(sign).strip(), said
    words = text.strip().split(" ")
    if words == [""]:
        return ""
    if words[0].lower() in ("square", "sq", "sq.", "cubic") and len(words) > 1:
        power = "^3" if words[0].lower() == "cubic" else "^2"
        words = words[1:]
    if words[0].lower() in _NEVER_FIRST:
        return None
    if len(words) > 4 or any(w not in _CANONICAL and w != "per" and not is_harmless(w, known) for w in words):
        return None
    unit = " ".join(_one(w) for w in words) + power
    return _COMPOUND.get(unit, unit)


_ASKED = re.compile(
    r"\b(?:how\s+(?:many|much)|number\s+of)\s+([A-Za-z]+)|\bin\s+(?:degrees\s+)?([A-Za-z]+(?:/[A-Za-z]+|\^\{?[23]\}?|[²³])?)(?!\w|\s+(?:per|an?)\b)",
    re.IGNORECASE,
)


def asked_units(question: str) -> frozenset[str]:
    """The units of measure that the last question of a text asks for: "how many metres", "in litres?"."""
    last = re.split(r"[.!?]\s", question[-2_000:].strip().removesuffix("?") + "?")[-1]
    words = (one or other for one, other in _ASKED.findall(last))
    return frozenset(unit for word in words if is_known(unit := unit_of(word, frozenset({word})) or _one(word)))


def is_known(unit: str) -> bool:
    """Whether it is a unit of measure or money. Other units name counted things."""
    first, *more = unit.partition("^")[0].split(" ")
    return first in _SAME and not (first == "in" and more)


def _one(word: str) -> str:
    if word in _CANONICAL:
        return _CANONICAL[word]
    low = word.lower()
    for form in (low, low.removesuffix("s")):
        if len(low) > 2 and form in _CANONICAL:
            return _CANONICAL[form]
    return low.removesuffix("s") if len(low) > 3 else low

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
    "Pa": "pascal", "unit": "units", "gal": "gallon gals", "qt": "quart qts", "pt": "pint pts", "cup": "cups",
    "tbsp": "tablespoon", "tsp": "teaspoon", "ton": "tons tonne", "acre": "acres", "ha": "hectare", "¥": "yen JPY",
    "₹": "rupee rupees INR", "decade": "decades", "century": "centuries",
    "kWh": "", "cal": "calorie", "kcal": "kilocalorie",
    "cm^2": "", "m^2": "", "km^2": "", "cm^3": "", "m^3": "", "mol": "mole",
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
    r"\b(?:how\s+(?:many|much)|number\s+of)\s+(?!in\b)([A-Za-z]+)|\bin\s+(?:degrees\s+)?([A-Za-z]+(?:/[A-Za-z]+|\^\{?[23]\}?|[²³])?)(?!\w|\s+(?:per|an?)\b)",
    re.IGNORECASE,
)


def asked_units(question: str) -> frozenset[str]:
    """The units of measure that the last question of a text asks for: "how many metres", "in litres?"."""
    last = re.split(r"[.!?]\s", question[-2_000:].strip().removesuffix("?") + "?")[-1]
    words = (one or other for one, other in _ASKED.findall(last))
    return frozenset(unit for word in words if is_known(unit := unit_of(word, frozenset({word})) or _one(word)))


_KINDS = (
    "mm cm m km in ft yd mi", "g mg kg lb oz ton", "l ml gal qt pt cup tbsp tsp",
    "s min h day week month year decade century",
    "° rad", "°C °F K", "$ € £ ¢ ¥ ₹", "J cal kcal kWh", "acre ha",
)  # fmt: skip
_KIND = {unit: number for number, units in enumerate(_KINDS) for unit in units.split()}
_PARTS = {"mph": "mi h", "km/h": "km h", "m/s": "m s"}
_MENTION = re.compile(
    r"[$€£¢¥₹]|°\s?[CF]?|(?<=\d)\s?[A-Za-z]{1,2}(?![A-Za-z])|(?<=[A-Za-z\d]/)[A-Za-z]+|[A-Za-z](?=/[A-Za-z])|[A-Za-z]{2,}"
)
_MEASURES = re.compile(
    r"\b(?:(area)|(volume)|(?:perimeter|circumference|length|width|height|distance|radius|diameter))\b"
)


def bases(unit: str) -> frozenset[str]:
    """The units of measure in a unit: km and h in `km/h`, cm in `cm^2`."""
    words = re.split(r"[ /]", " ".join(_PARTS.get(word, word) for word in unit.replace(" per ", " ").split(" ")))
    return frozenset(word for one in words if (word := _one(one.partition("^")[0])) in _KIND)


def unasked(unit: str, question: str) -> str | None:
    """A unit of measure in an answer's unit that a question which names others of its kind does not name, "°F" where it
    speaks of °C, or the unit itself if its power is not that of the area, volume or length asked for; else None."""
    parts = bases(unit)
    if not parts:
        return None
    said = (found.strip() for found in _MENTION.findall(question[-20_000:]))
    named = {base for word in said for base in bases(_one(word.replace("° ", "°")))}
    for part in sorted(parts - named):
        if any(_KIND[part] == _KIND[other] for other in named):
            return part
    measured = {m.lastindex or 0 for m in _MEASURES.finditer(re.split(r"[.!?]\s", question.strip().lower())[-1])}
    if len(measured) == 1 and len(parts) == 1 and _KIND[min(parts)] == 0 and "/" not in unit and " " not in unit:
        power = ("", "^2", "^3")[measured.pop()]
        return None if unit == f"{min(parts)}{power}" else unit
    return None


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

"""Units after a number: which are the same under two names, and which words are no unit at all."""

from __future__ import annotations

import re

_SAME = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
    "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile", "g": "gram gramme", "kg": "kilogram kilo",
    "mg": "milligram", "lb": "pound lbs", "oz": "ounce", "l": "liter litre L", "ml": "milliliter millilitre mL",
    "s": "second sec secs", "min": "minute mins", "h": "hour hr hrs", "day": "days", "week": "weeks", "month": "months",
    "year": "years yr yrs", "°": "degree degrees", "°C": "celsius", "°F": "fahrenheit", "rad": "radian",
    "$": "dollar dollars usd USD bucks", "€": "euro euros eur EUR", "£": "gbp GBP", "¢": "cent cents", "mph": "mph",
    "km/h": "kph kmh", "m/s": "mps", "J": "joule", "N": "newton",
    "W": "watt", "V": "volt", "Hz": "hertz", "K": "kelvin",
    "Pa": "pascal", "cm^2": "", "m^2": "", "km^2": "", "cm^3": "", "m^3": "", "mol": "mole",
}  # fmt: skip
_CANONICAL = {name: unit for unit, names in _SAME.items() for name in [unit, *names.split()]}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_NO_UNITS = frozenset(
    """or and not if plus minus times to of r remainder mod modulo squared cubed factorial pi half halves third
    thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh eighth eighths ninth tenth tenths
    hundredth hundredths negative below choose over divided unless maybe perhaps probably unknown wrong incorrect
    is was are were isn't but however no nor than more less fewer e i x y z n a b c k t p q base percent per pairs
    pair groups each sqrt log ln sin cos tan unsure approximately about roughly into by times least most because
    since as which so""".split()
)
_POWERS = {"²": "^2", "³": "^3", "^2": "^2", "^3": "^3", "^{2}": "^2", "^{3}": "^3"}
UNIT = re.compile(
    r"(?P<number>.*[\d)}])(?P<gap>\s*)(?P<unit>°\s?[CF]?|[€£¢]|[A-Za-zµΩ][A-Za-zµΩ' /-]*(?:\^\{?[23]\}?|[²³])?)"
)


def unit_of(text: str) -> str | None:
    """The one name of a unit or counted thing ("apple", "cm^2"); None for words that are none ("or", "squared")."""
    text = " ".join(text.strip().strip(".").split())
    power = ""
    for sign, said in _POWERS.items():
        if text.endswith(sign):
            text, power = text.removesuffix(sign).strip(), said
    words = text.split(" ")
    if words[0].lower() in ("square", "sq", "cubic") and len(words) > 1:
        power = "^3" if words[0].lower() == "cubic" else "^2"
        words = words[1:]
    if len(words) > 3 or any(w.lower() in _NO_UNITS for w in words if w not in _CANONICAL):
        return None
    return " ".join(_one(w) for w in words) + power


def is_known(unit: str) -> bool:
    """Whether it is a unit of measure or money; otherwise it names what is counted."""
    return unit.partition("^")[0].split(" ")[0] in _SAME


def _one(word: str) -> str:
    if word in _CANONICAL:
        return _CANONICAL[word]
    low = word.lower()
    for form in (low, low.removesuffix("s")):
        if len(low) > 2 and form in _CANONICAL:
            return _CANONICAL[form]
    return low.removesuffix("s") if len(low) > 3 else low

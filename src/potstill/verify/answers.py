"""From what was written to the value that it gives as its answer."""

from __future__ import annotations

import re

from potstill.verify.final import final_value, marked, right_side, without_reasoning
from potstill.verify.values import Value, read_value, trimmed


def reference_value(text: str) -> Value:
    """The value of a reference: a bare one, or the final answer of a worked solution."""
    value = read_value(text)
    if value.kind in ("expression", "nothing"):
        found = marked(text)
        return read_value(found) if found is not None else value
    return value


def answer_value(completion: str, *, equation: bool = False) -> Value | None:
    """The value of what was written; None where no final answer is found. Where the reference is no equation, the value
    of "3 + 4 = 7" is 7."""
    said = without_reasoning(completion)
    found = marked(said)
    if found is not None:
        value = read_value(found)
        if value.kind == "expression":
            # "12, because …" gives a reason.
            shorter = read_value(trimmed(found))
            value = shorter if shorter.text != value.text else value
        return _solved(value, equation) if value.kind != "nothing" else None
    whole = read_value(said)
    if whole.kind != "nothing" and not is_prose(said):
        return _solved(whole, equation)
    last = final_value(said)
    if not last:
        return None
    value = read_value(last)
    return None if value.kind == "expression" and is_prose(last) else value


def _solved(value: Value, equation: bool) -> Value:
    if equation or value.kind != "expression" or "=" not in value.text:
        return value
    right = right_side(value.text)
    return read_value(right) if right and right != value.text else value


_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc log ln exp sqrt pi mod gcd lcm min max det frac cdot times pm infty cup cap".split()
)


def is_prose(text: str) -> bool:
    """Whether a text has sentences in it, rather than being one value."""
    if "\n" in text.strip() or len(text) > 300:
        return True
    value = read_value(text)
    if value.kind in ("expression", "list"):
        plain = re.sub(r"\\(?:begin|end)\{\w+\*?\}", " ", value.text)
        words = re.findall(r"(?<![\\\w])[A-Za-z]{2,}", plain)
        known = _FUNCTIONS | {"and", "or"} if value.kind == "list" else _FUNCTIONS
        wordy = (
            value.kind == "list"
            and all(p.kind == "word" and not is_prose(p.text) for p in value.parts)
            and len(words) <= 2 * len(value.parts)
        )
        return not wordy and any(w.lower() not in known for w in words)
    said = set(value.text.split())
    return value.kind == "word" and (len(said) > 3 or bool(said & {"is", "are", "was", "were", "it"}))

"""Computer algebra on two expressions, in a worker of the `math` verifier. Imported by workers only.

`math-verify` reads LaTeX and compares, but rounds to six decimals and evaluates at 15 digits. So an equality that it
finds is checked again at 50 digits, at several points if there are unknowns, and is not accepted unless confirmed.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import sympy
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

logging.disable(logging.WARNING)

DIGITS = 50
SAME_WITHIN = sympy.Float(10) ** -30
POINTS = (
    (sympy.Rational(37, 91), 3),
    (sympy.Rational(171, 64), 5),
    (sympy.Rational(-83, 97), 7),
    (sympy.Rational(1009, 113), 11),
)
"""Sample points for expressions with unknowns: a start, and the prime of the step from one unknown to the next."""
CONSTANTS = {"e": sympy.E, "i": sympy.I}
"""Names that are numbers, whatever the parser assumed about them."""


def judge(item: dict[str, str]) -> dict[str, str]:
    """Compare `{reference, answer}`; returns `{outcome, reason}`."""
    reference, answer = _parsed(item["reference"]), _parsed(item["answer"])
    if reference is None:
        return {"outcome": "cannot_judge", "reason": "the reference is not understood as mathematics"}
    if answer is None:
        return {"outcome": "cannot_judge", "reason": "the answer is not understood as mathematics"}
    for side, parsed in (("reference", reference), ("answer", answer)):
        if dropped := _dropped(item[side], parsed):
            return {"outcome": "cannot_judge", "reason": f"computer algebra drops {dropped} from the {side}"}
    confirmed = _same(reference, answer)
    # Its own timers use signals; the deadline is enforced from outside.
    accepted = bool(verify([reference], [answer], timeout_seconds=None, strict=True, raise_on_error=True))
    if confirmed and accepted:
        return {"outcome": "accept", "reason": "the same by computer algebra"}
    if confirmed is None and accepted:
        return {"outcome": "cannot_judge", "reason": "computer algebra says the same, and numbers do not confirm it"}
    if confirmed and not accepted:
        return {"outcome": "cannot_judge", "reason": "the same in numbers, and computer algebra does not confirm it"}
    return {"outcome": "reject", "reason": "not the same by computer algebra"}


def _dropped(text: str, parsed: Any) -> str:
    """The letters of a text that are missing in its parsed value, because the parser read them as a unit, say. Letters
    of functions and constants are ignored."""
    if not isinstance(parsed, sympy.Basic):
        return ""
    names = "".join(str(atom) for atom in parsed.atoms(sympy.Symbol, sympy.core.function.AppliedUndef))
    plain = re.sub(r"\\[A-Za-z]+", " ", re.sub(r"\b(?:sqrt|sin|cos|tan|log|ln|pi|exp|abs)\b", " ", text))
    plain = re.sub(r"(?<=\d)[eE](?=[-+]?\d)", " ", plain)
    return "".join(sorted({c for c in plain if c.isalpha() and c.isascii() and c not in names and c not in "eiEIdC"}))


def warm() -> None:
    """Load the parsers before the first item's deadline begins."""
    judge({"reference": r"\sqrt{8} x", "answer": r"2\sqrt{2} x"})


def _parsed(text: str) -> Any:
    text = re.sub(r"(?<=\d)[eE]([-+]?\d+)", r" \\cdot 10^{\1}", text)  # 3.4e-7 x
    configurations = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    latex = text if "\\" in text or "^" in text else re.sub(r"\b(sqrt|sin|cos|tan|log|ln|pi)\b", r"\\\1", text)
    latex = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", latex.replace("**", "^")).replace("*", r"\cdot ")
    found = parse(f"${latex}$", configurations, parsing_timeout=None, fallback_mode="no_fallback", raise_on_error=True)
    return next((value for value in found if not isinstance(value, str)), None)


def _same(reference: Any, answer: Any) -> bool | None:
    """Whether two parsed values agree; None if that cannot be computed."""
    if isinstance(reference, sympy.MatrixBase) and isinstance(answer, sympy.MatrixBase):
        if reference.shape != answer.shape:
            return False
        return _every(_same(r, a) for r, a in zip(reference, answer, strict=True))
    if isinstance(reference, sympy.Eq) and isinstance(answer, sympy.Eq):
        return _proportional(reference.lhs - reference.rhs, answer.lhs - answer.rhs)
    if isinstance(reference, sympy.Expr) and isinstance(answer, sympy.Expr):
        return _agree(reference, answer)
    try:
        if isinstance(reference, sympy.core.relational.Relational):
            reference, answer = reference.canonical, answer.canonical
        return True if reference == answer else None
    except (TypeError, AttributeError):
        return None


def _every(found: Any) -> bool | None:
    found = list(found)
    return False if False in found else None if None in found else True


def _values(expression: sympy.Expr, unknowns: list[sympy.Symbol]) -> list[sympy.Expr]:
    return [
        expression.subs({u: start + sympy.Rational(i, prime) for i, u in enumerate(unknowns)}).evalf(DIGITS)
        for start, prime in (POINTS if unknowns else POINTS[:1])
    ]


def _exactly(expression: sympy.Expr) -> sympy.Expr:
    numbers = {symbol: CONSTANTS[symbol.name] for symbol in expression.free_symbols if symbol.name in CONSTANTS}
    return sympy.nsimplify(expression, rational=True).subs(numbers)


def _agree(reference: sympy.Expr, answer: sympy.Expr) -> bool | None:
    # Decimals are exact here: 0.1 is 1/10, not the nearest binary fraction.
    reference, answer = (_exactly(e) for e in (reference, answer))
    apart = sympy.expand(reference - answer)
    if apart.is_Rational:  # may be a nonzero value that is tiny beside a large one
        return bool(apart == 0)
    unknowns = sorted(reference.free_symbols | answer.free_symbols, key=str)
    pairs = zip(_values(reference, unknowns), _values(answer, unknowns), strict=True)
    return _every(_close(r, a) for r, a in pairs)


def _close(reference: sympy.Expr, answer: sympy.Expr) -> bool | None:
    if not (reference.is_number and answer.is_number) or reference.has(sympy.nan) or answer.has(sympy.nan):
        return None
    if not (reference.is_finite and answer.is_finite):
        return bool(reference == answer)
    size = max(abs(reference), abs(answer))
    return bool(abs(reference - answer) <= SAME_WITHIN * size)


def _proportional(reference: sympy.Expr, answer: sympy.Expr) -> bool | None:
    """Whether two equations, each given as an expression that equals zero, differ by a constant factor."""
    unknowns = sorted(reference.free_symbols | answer.free_symbols, key=str)
    rs, answers = _values(reference, unknowns), _values(answer, unknowns)
    if any(v == 0 or not v.is_number or not v.is_finite for v in [*rs, *answers]):
        return None
    ratios = [r / a for r, a in zip(rs, answers, strict=True)]
    return _every(_close(ratios[0], ratio) for ratio in ratios[1:])


warm()

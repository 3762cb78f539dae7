"""A cascade: the student answers where it is sure enough, the teacher answers the rest.

What falls back is a whole answer (an example of a classifier, a problem), or, for a language model without problems, a
token: the teacher reads along and writes the tokens of which the student is not sure. A token is right there if it is
the teacher's first choice, given the teacher's text before it.

The threshold is fitted on one half of the held-out groups and reported on the other, since a threshold always looks
better where it was chosen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

Unit = Literal["examples", "problems", "tokens"]
"""What falls back."""


@dataclass(frozen=True)
class Point:
    """One threshold: the share of examples that fall back to the teacher, and the accuracy of both together."""

    threshold: float
    fall_back: float
    accuracy: float


@dataclass(frozen=True)
class Cascade:
    """A fitted cascade.

    Attributes:
        chosen: the threshold, with share and accuracy on the half on which it was not chosen.
        curve: thresholds from "always the student" to "always the teacher", on the same half.
        student, teacher: accuracy of each alone, there.
        examples: number of examples there.
        of: what an example is.
    """

    chosen: Point
    curve: tuple[Point, ...]
    student: float
    teacher: float
    examples: int
    of: Unit = "examples"


def fit_cascade(
    confidence: Float[np.ndarray, " N"],
    student_right: Bool[np.ndarray, " N"],
    teacher_right: Bool[np.ndarray, " N"],
    groups: Sequence[str],
    of: Unit = "examples",
    *,
    loss: float = 0.01,
    points: int = 11,
) -> Cascade | None:
    """The smallest share that falls back for an accuracy at most `loss` below the teacher's.

    Args:
        confidence: the student's probability of the class that it says, or the geometric mean of its probabilities of
            the tokens that it wrote.
        student_right, teacher_right: whether each is right.
        groups: of the examples; a group lies in one half.
        of: what an example is.

    Returns:
        None if a half has no example.
    """
    first = np.array([hashlib.sha256(group.encode()).digest()[0] % 2 == 0 for group in groups], dtype=bool)
    if not first.any() or first.all():
        return None
    fitted = [_point(t, confidence, student_right, teacher_right, first) for t in _thresholds(confidence[first])]
    wanted = float(teacher_right[first].mean()) - loss
    # Always the teacher is among them, so that one reaches it.
    best = min((point for point in fitted if point.accuracy >= wanted), key=lambda point: point.fall_back)
    rest = ~first
    shown = np.quantile(confidence[rest], np.linspace(0, 1, points - 1))
    curve = [_point(t, confidence, student_right, teacher_right, rest) for t in (*shown, np.inf)]
    return Cascade(
        _point(best.threshold, confidence, student_right, teacher_right, rest),
        tuple(curve),
        float(student_right[rest].mean()),
        float(teacher_right[rest].mean()),
        int(rest.sum()),
        of,
    )


def _thresholds(confidence: Float[np.ndarray, " N"]) -> list[float]:
    return [*np.unique(confidence).tolist(), float("inf")]


def _point(
    threshold: float,
    confidence: Float[np.ndarray, " N"],
    student_right: Bool[np.ndarray, " N"],
    teacher_right: Bool[np.ndarray, " N"],
    of: Bool[np.ndarray, " N"],
) -> Point:
    falls = confidence[of] < threshold
    right = np.where(falls, teacher_right[of], student_right[of])
    return Point(float(threshold), float(falls.mean()), float(right.mean()))

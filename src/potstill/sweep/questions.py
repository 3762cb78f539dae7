"""Whether the teacher is too strong for its student, and whether an assistant would help: answered by two arms.

A student may learn less from a stronger teacher (Cho & Hariharan 2019, arXiv 1910.01348; Busbridge et al. 2025, arXiv
2502.08606, § 4), and more from an assistant that is between both in size (Mirzadeh et al. 2020, arXiv 1902.03393). In
either case an arm whose teacher is weaker is compared with the baseline. Where the two are not told apart, the answer
says how many seeds or held-out records would settle it, if the difference is as large as it seems.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy.stats import t

from potstill.sweep.file import Question, Sweep
from potstill.sweep.paired import Difference
from potstill.sweep.result import Arm

_SEEDS_AT_MOST = 100
_TIMES_AT_MOST = 100.0

Said = Literal["yes", "no", "not settled"]

_ASKED = {"teacher_too_strong": "Is the teacher too strong for its student?", "assistant": "Would an assistant help?"}
_YES = {
    "teacher_too_strong": "the student of the weaker teacher ({arm}) is better",
    "assistant": "the student that learns through the assistant ({arm}) is better",
}
_NO = {
    "teacher_too_strong": "the student of the weaker teacher ({arm}) is worse",
    "assistant": "the student that learns through the assistant ({arm}) is worse",
}


def answers_of(sweep: Sweep, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """The answers to a sweep's questions, as they are kept: `asked`, `answer` (yes, no, not settled), `why`, and
    `settle`: what would settle it (None where it is settled)."""
    by_name = {arm.name: arm for arm in arms}
    base = by_name.get(sweep.baseline or "")
    return [_answer(question, sweep, by_name[question.arm], base) for question in sweep.questions]


def answers_text(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same for a person."""
    return [
        f"{one['asked']} {one['answer'].capitalize()}: {one['why']}"
        + (f". To settle it: {one['settle']}" if one["settle"] else "")
        for one in answers
    ]


def _answer(question: Question, sweep: Sweep, arm: Arm, base: Arm | None) -> dict[str, Any]:
    measure, asked = sweep.measure, _ASKED[question.ask]
    found = arm.differences.get(measure)
    if found is None or base is None:
        missing = [name for name, side in ((question.arm, arm), (sweep.baseline, base)) if _empty(side, measure)]
        why = f"{' and '.join(f'{name!r}' for name in missing) or 'a common seed'} is missing"
        return _said(asked, "not settled", why, "run the whole sweep")
    size = f"{measure} {found.value:+.4g}"
    if found.verdict == "not told apart":
        ours, theirs = arm.values[measure], base.values[measure]
        differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        why = f"{arm.name} and {base.name} are not told apart ({size})"
        return _said(asked, "not settled", why, _settling(differences, found, sweep.confidence))
    answer: Said = "yes" if found.verdict == "better" else "no"
    why = (_YES if answer == "yes" else _NO)[question.ask].format(arm=arm.name)
    return _said(asked, answer, f"{why} ({size})", None)


def _said(asked: str, answer: Said, why: str, settle: str | None) -> dict[str, Any]:
    return {"asked": asked, "answer": answer, "why": why, "settle": settle}


def _empty(arm: Arm | None, measure: str) -> bool:
    return arm is None or measure not in arm.values


def _settling(differences: Sequence[float], found: Difference, confidence: float) -> str:
    """What would exclude 0 from both intervals, if the difference is as large as it seems."""
    needs = []
    if len(differences) < 2:
        needs.append("three seeds or more")
    elif found.over_seeds is not None and found.over_seeds.low <= 0 <= found.over_seeds.high:
        seeds = seeds_needed(differences, confidence)
        needs.append(f"some {seeds} seeds" if seeds is not None else f"more than {_SEEDS_AT_MOST} seeds")
    if (records := found.over_records) is not None and records.low <= 0 <= records.high:
        reach = records.value - records.low if records.value > 0 else records.high - records.value
        times = math.inf if records.value == 0 else (reach / records.value) ** 2
        needs.append(
            f"some {times:.1f} times as many held-out records"
            if times <= _TIMES_AT_MOST
            else f"more than {_TIMES_AT_MOST:.0f} times as many held-out records"
        )
    return " and ".join(needs) or "more seeds"


def seeds_needed(differences: Sequence[float], confidence: float) -> int | None:
    """The fewest seeds with which Student's interval of the mean would exclude 0, if mean and spread of the paired
    differences stay as they are; None for more than 100."""
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    for count in range(len(differences), _SEEDS_AT_MOST + 1):
        if float(t.ppf((1 + confidence) / 2, count - 1)) * spread / math.sqrt(count) < abs(mean):
            return count
    return None

"""What `potstill cost` prints, and what stands on the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from potstill.cost.cascade import Cascade, Point
from potstill.cost.economics import Cell, Situation, grid
from potstill.cost.inputs import Economics

VOLUMES = (0.1, 1.0, 10.0, 100.0)
"""Of the grid, as multiples of the volume."""
UTILISATIONS = (0.1, 0.5, 1.0)
SHARES = (0.0, 0.1, 0.3)


def cells(economics: Economics) -> list[Cell]:
    """The grid around a run's situation."""
    volume = economics.situation.tokens_per_day
    return list(
        grid(
            economics.situation,
            economics.student_machine,
            economics.teacher_machine,
            volumes=[times * volume for times in VOLUMES],
            utilisations=UTILISATIONS,
            shares=SHARES,
        )
    )


def lines_of(economics: Economics) -> list[str]:
    """The economics as lines for a terminal."""
    situation, spent = economics.situation, economics.spent
    lines = ["inputs (name=value changes one)"]
    lines += [
        f"  {name:<28} {one.value:>14,.6g} {one.unit:<10} {one.source:<9} {one.about}"
        for name, one in economics.inputs.items()
    ]
    lines += [
        "",
        "a million tokens",
        f"  teacher            $ {situation.teacher_per_million:,.4f}",
        f"  student            $ {situation.student_per_million:,.4f}",
        f"  with fall-back     $ {situation.cascade_per_million:,.4f}   {cheaper(situation)}",
        "",
        "the distillation",
        f"  teacher's tokens   $ {spent.teacher:,.2f}",
        f"  machine            $ {spent.machine:,.2f}",
        f"  people             $ {spent.people:,.2f}",
        "",
        f"break-even: {break_even(situation)}",
        "",
        f"days to break-even        {'fall back to the teacher':>30}",
        f"  {'tokens/day':>14} {'utilisation':>12} " + " ".join(f"{share:>12.0%}" for share in SHARES),
    ]
    found = cells(economics)
    for start in range(0, len(found), len(SHARES)):
        row = found[start : start + len(SHARES)]
        lines.append(
            f"  {row[0].tokens_per_day:>14,.0f} {row[0].utilisation:>12.0%} "
            + " ".join(f"{days(cell.situation):>12}" for cell in row)
        )
    cascade = economics.cascade
    if cascade is None:
        lines += ["", "cascade: not fitted (nothing says how sure the student is beside its teacher); give fall_back=…"]
    else:
        lines += [
            "",
            f"cascade: {about_cascade(cascade)}",
            *(
                f"  {point.fall_back:>7.1%} fall back: {point.accuracy:.1%} right, $ {dollars:,.4f} per million tokens"
                for point, dollars in priced_curve(economics, cascade)
            ),
        ]
    return lines


def about_cascade(cascade: Cascade) -> str:
    """What was fitted on what, and what was chosen, as sentences."""
    right = "the teacher's first choice" if cascade.of == "tokens" else "right"
    teacher = "" if cascade.of == "tokens" else f", teacher alone {cascade.teacher:.1%}"
    does = "writes tokens" if cascade.of == "tokens" else "answers"
    return (
        f"on {cascade.examples:,} held-out {cascade.of} on which its threshold was not chosen, student alone "
        f"{cascade.student:.1%} {right}{teacher}. Chosen: the student {does} from a probability of "
        f"{cascade.chosen.threshold:.3g}; {cascade.chosen.fall_back:.1%} fall back; {cascade.chosen.accuracy:.1%} "
        f"{right}."
    )


def cheaper(situation: Situation) -> str:
    """How much cheaper the student is, in a few words."""
    times = situation.times_cheaper
    if times is None:
        return "it costs nothing"
    if times == 0:
        return "the teacher costs nothing"
    return f"{times:,.1f} × cheaper than the teacher" if times >= 1 else f"{1 / times:,.1f} × dearer than the teacher"


def break_even(situation: Situation) -> str:
    """When the distillation has paid for itself."""
    found = situation.break_even
    if found is None:
        return "never: nothing is saved per token"
    return f"after {found.tokens:,.0f} tokens, {_shown(found.days)} days at {situation.tokens_per_day:,.0f} a day"


def days(situation: Situation) -> str:
    """Days to break-even, for a table."""
    found = situation.break_even
    return "never" if found is None else _shown(found.days)


def _shown(days: float) -> str:
    """Tenths of a day; of less than one two digits, down to a minute."""
    return f"{days:,.1f}" if days >= 1 else f"{days:.2g}" if days >= 1 / 1440 else "< 0.001"


def priced_curve(economics: Economics, cascade: Cascade) -> list[tuple[Point, float]]:
    """The points of a cascade's curve, each with the dollars per million tokens at its share."""
    situation = economics.situation
    if cascade.of == "tokens":
        return [(point, situation.token_by_token(point.fall_back)) for point in cascade.curve]
    return [(point, replace(situation, fall_back=point.fall_back).cascade_per_million) for point in cascade.curve]


def to_dict(economics: Economics) -> dict[str, Any]:
    """The economics as plain data."""
    situation = economics.situation
    return {
        "inputs": {name: asdict(one) for name, one in economics.inputs.items()},
        "dollars_per_million": {
            "teacher": situation.teacher_per_million,
            "student": situation.student_per_million,
            "with_fall_back": situation.cascade_per_million,
        },
        "spent": {**asdict(economics.spent), "total": economics.spent.total},
        "break_even": None if situation.break_even is None else asdict(situation.break_even),
        "grid": [_cell(cell) for cell in cells(economics)],
        "cascade": None if economics.cascade is None else _cascade(economics, economics.cascade),
    }


def rows_of_page(economics: Economics) -> Sequence[Sequence[str]]:
    """Name, value and source of every input and result, for the page."""
    situation = economics.situation
    rows: list[tuple[str, str, str]] = [
        (one.about, f"{one.value:,.4g} {one.unit}", one.source) for one in economics.inputs.values()
    ]
    rows += [
        ("a million tokens from the teacher", f"$ {situation.teacher_per_million:,.4f}", "computed"),
        ("from the student", f"$ {situation.student_per_million:,.4f}; {cheaper(situation)}", "computed"),
        ("the distillation", f"$ {economics.spent.total:,.2f}", "computed"),
        ("break-even", break_even(situation), "computed"),
    ]
    return rows


def _cascade(economics: Economics, cascade: Cascade) -> dict[str, Any]:
    curve = [{**asdict(point), "dollars_per_million": dollars} for point, dollars in priced_curve(economics, cascade)]
    return {**asdict(cascade), "curve": curve}


def _cell(cell: Cell) -> dict[str, Any]:
    found = cell.situation.break_even
    return {
        "tokens_per_day": cell.tokens_per_day,
        "utilisation": cell.utilisation,
        "fall_back": cell.fall_back,
        "days": None if found is None else found.days,
        "saved_per_day": cell.situation.saved_per_day,
    }

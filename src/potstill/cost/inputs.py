"""The numbers of a run's economics, each with its source. All can be given on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from potstill.artifacts import MANIFEST, read_artifact
from potstill.cost.cascade import Cascade, Unit, fit_cascade
from potstill.cost.economics import Machine, Price, Situation, Spent
from potstill.errors import RunError, UserError, did_you_mean
from potstill.measures import Measures
from potstill.recipe import EndpointTeacher, Recipe, load_recipe
from potstill.teachers.prices import UNITS_PER_DOLLAR, prices_of

Source = Literal["measured", "given", "table", "assumed"]
"""`measured` in this run; `given` by a person, on the command line or in the recipe; from the price `table` of
genai-prices; `assumed`, a default that only stands until it is given."""


@dataclass(frozen=True)
class Input:
    """One number."""

    value: float
    unit: str
    source: Source
    about: str


_ASSUMED: Mapping[str, Input] = {
    "price_per_hour": Input(0.10, "$/h", "assumed", "a machine like the one that measured, running either model"),
    "utilisation": Input(0.5, "share", "assumed", "of the paid time in which the machine works"),
    "tokens_per_day": Input(1e6, "tokens", "assumed", "volume, read and written together"),
    "read_share": Input(0.5, "share", "assumed", "of tokens that are read rather than written"),
    "fall_back": Input(0.0, "share", "assumed", "of tokens for which the teacher is asked as well"),
    "people_hours": Input(0.0, "h", "assumed", "people's hours for the distillation"),
    "people_rate": Input(0.0, "$/h", "assumed", "an hour of theirs"),
}
_OPTIONAL = {
    "teacher_read_per_second": ("tokens/s", "that the teacher reads, one sequence at a time"),
    "teacher_written_per_second": ("tokens/s", "that the teacher writes, one sequence at a time"),
    "student_read_per_second": ("tokens/s", "that the student reads, one sequence at a time"),
    "student_written_per_second": ("tokens/s", "that the student writes, one sequence at a time"),
    "teacher_price_read": ("$/M tokens", "the teacher's price, read"),
    "teacher_price_written": ("$/M tokens", "the teacher's price, written"),
    "machine_hours": ("h", "of all stages of the run"),
    "teacher_spent": ("$", "paid for the teacher's tokens"),
}
_SHARES = ("utilisation", "read_share", "fall_back")


@dataclass(frozen=True)
class Economics:
    """A run's economics: every input, and what follows from them. `teacher_machine` is None behind an API."""

    inputs: Mapping[str, Input]
    situation: Situation
    spent: Spent
    student_machine: Machine
    teacher_machine: Machine | None
    cascade: Cascade | None


def economics_of_run(run: Path, given: Sequence[str] = ()) -> Economics:
    """Read a run's folder, and take `name=value` in place of what is there.

    Raises:
        RunError: it is no run's folder, or has no measures.
        UserError: an input is unknown, no number, or missing.
    """
    if not (run / "recipe.yaml").is_file():
        raise RunError(
            "not a run's folder (it has no recipe.yaml)", where=str(run), fix="name a folder such as runs/<name>"
        )
    recipe = load_recipe(run / "recipe.yaml")
    found = [read_artifact(file.parent) for file in sorted(run.glob(f"[!.]*/{MANIFEST}"))]
    manifests = {artifact.path.name: artifact.manifest for artifact in found if artifact is not None}
    measures = run / "evaluate" / "measures.json"
    if not measures.is_file():
        raise RunError("nothing was measured in this run", where=str(run), fix="potstill evaluate RECIPE")
    cascade = cascade_of(run / "evaluate")
    return economics_of(recipe, Measures.load(measures), manifests, parse_given(given), cascade)


def economics_of(
    recipe: Recipe,
    measures: Measures,
    manifests: Mapping[str, Mapping[str, Any]],
    given: Mapping[str, Input],
    cascade: Cascade | None = None,
) -> Economics:
    """The economics of a run that was measured.

    Raises:
        UserError: an input is neither measured nor given: the speed was not measured, or the teacher's price is not
            known.
    """
    inputs = {**_ASSUMED, **_measured(measures, manifests), **_listed(recipe)}
    if cascade is not None and cascade.of != "tokens":
        inputs["fall_back"] = Input(
            cascade.chosen.fall_back, "share", "measured", "for an accuracy within 0.01 of the teacher's, held out"
        )
    inputs |= {name: one if one.about else _described(one, name, inputs) for name, one in given.items()}
    student = _machine("student", inputs)
    prices = [name for name in ("teacher_price_read", "teacher_price_written") if name in inputs]
    if len(prices) == 1:
        other = "teacher_price_written" if prices == ["teacher_price_read"] else "teacher_price_read"
        raise UserError(f"{prices[0]} is given, and {other} is not", where="potstill cost", fix=f"give it: {other}=…")
    api = "teacher_price_read" in inputs and "teacher_price_written" in inputs
    teacher = None if api else _machine("teacher", inputs)
    price = (
        Price(inputs["teacher_price_read"].value, inputs["teacher_price_written"].value)
        if teacher is None
        else teacher.price
    )
    value = {name: one.value for name, one in inputs.items()}
    spent = Spent(
        value.get("teacher_spent", 0.0),
        value.get("machine_hours", 0.0) * value["price_per_hour"],
        value["people_hours"] * value["people_rate"],
    )
    situation = Situation(
        price, student.price, spent.total, value["read_share"], value["tokens_per_day"], value["fall_back"]
    )
    return Economics(inputs, situation, spent, student, teacher, cascade)


def parse_given(given: Sequence[str]) -> dict[str, Input]:
    """`name=value` pairs.

    Raises:
        UserError: a name is unknown, or a value out of range.
    """
    known = {**_ASSUMED, **_OPTIONAL}
    found = {}
    for pair in given:
        name, _, text = pair.partition("=")
        if name not in known:
            raise UserError(f"unknown input {name!r}{did_you_mean(name, known)}", where=pair)
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        most = 1.0 if name in _SHARES else float("inf")
        positive = name in ("utilisation", "tokens_per_day") or name.endswith("per_second")
        if not (0 <= value <= most) or value == float("inf") or (positive and value == 0):
            raise UserError(
                f"{name} must be a number {'above 0' if positive else 'from 0'}"
                f"{' up to 1' if name in _SHARES else ''}, not {text!r}",
                where=pair,
            )
        found[name] = Input(value, "", "given", "")
    return found


def cascade_of(evaluation: Path) -> Cascade | None:
    """The cascade of a run: of classifiers from `examples.parquet`, of language models from the problems that they were
    put (`solved.parquet`), else from the tokens of held-out text (`tokens.parquet`). None where none of them says how
    sure the student is, or the teacher was not measured."""
    for (unit, name), (sure, student, teacher, right) in _SURE.items():
        file = evaluation / name
        names = [one for one in (sure, student, teacher, right, "group") if one]
        if not file.is_file() or (found := _columns(file, names)) is None:
            continue
        truth = found[right] if right else [True] * len(found[student])
        by_student = np.array([said == one for said, one in zip(found[student], truth, strict=True)], dtype=bool)
        by_teacher = np.array([not teacher or found[teacher][row] == one for row, one in enumerate(truth)], dtype=bool)
        return fit_cascade(np.array(found[sure], dtype=float), by_student, by_teacher, found["group"], unit)
    return None


_SURE: Mapping[tuple[Unit, str], tuple[str, str, str, str]] = {
    ("examples", "examples.parquet"): ("probability_student", "class_student", "class_teacher", "label"),
    ("problems", "solved.parquet"): ("confidence_student", "solved_student", "solved_teacher", ""),
    ("tokens", "tokens.parquet"): ("probability_student", "agree_student", "", ""),
}
"""Columns of how sure the student is, of what student and teacher said, and of what is right. Without the last, both
say whether they are right; a teacher without a column is right by definition."""


def _columns(file: Path, names: Sequence[str]) -> dict[str, list[Any]] | None:
    """The named columns of a table; None if one is missing."""
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    if not set(names) <= set(table.column_names):
        return None
    return {name: table.column(name).to_pylist() for name in names}


def _measured(measures: Measures, manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Input]:
    found = {}
    for name in ("teacher", "student"):
        speed = measures.models[name].speed if name in measures.models else None
        if speed is not None and speed.prefill_tokens_per_second and speed.decode_tokens_per_second:
            found[f"{name}_read_per_second"] = speed.prefill_tokens_per_second
            found[f"{name}_written_per_second"] = speed.decode_tokens_per_second
    seconds = [float(manifest["seconds"]) for manifest in manifests.values() if manifest.get("state") == "done"]
    found["machine_hours"] = sum(seconds) / 3600
    facts = manifests.get("generate", {}).get("facts", {})
    if facts.get("dollars") is not None:
        found["teacher_spent"] = float(facts["dollars"])
    inputs = {name: Input(value, _OPTIONAL[name][0], "measured", _OPTIONAL[name][1]) for name, value in found.items()}
    if facts.get("tokens_read") and facts.get("tokens"):
        share = facts["tokens_read"] / (facts["tokens_read"] + facts["tokens"])
        inputs["read_share"] = Input(share, "share", "measured", "of tokens that the teacher read rather than wrote")
    return inputs


def _listed(recipe: Recipe) -> dict[str, Input]:
    """The price of a teacher behind an API: stated in the recipe, or in the table."""
    endpoints = [teacher for teacher in recipe.teachers.values() if isinstance(teacher, EndpointTeacher)]
    prices = prices_of(endpoints[0]) if endpoints else None
    if prices is None:
        return {}
    source: Source = "given" if endpoints[0].price is not None else "table"
    per_million = {"teacher_price_read": prices.read, "teacher_price_written": prices.written}
    return {
        name: Input(float(units * 1_000_000 / UNITS_PER_DOLLAR), "$/M tokens", source, prices.source)
        for name, units in per_million.items()
    }


def _described(one: Input, name: str, inputs: Mapping[str, Input]) -> Input:
    """A given number with the unit and the meaning of the one that it replaces."""
    unit, about = (inputs[name].unit, inputs[name].about) if name in inputs else _OPTIONAL[name]
    return Input(one.value, unit, one.source, about)


def _machine(model: str, inputs: Mapping[str, Input]) -> Machine:
    rates = [f"{model}_read_per_second", f"{model}_written_per_second"]
    missing = [name for name in rates if name not in inputs]
    if missing:
        prices = "" if model == "student" else ", or its price: teacher_price_read=… teacher_price_written=…"
        raise UserError(
            f"the speed of the {model} was not measured in this run",
            where="potstill cost",
            fix=f"give it: {' '.join(f'{name}=…' for name in missing)}{prices}",
        )
    read, written = (inputs[name].value for name in rates)
    return Machine(inputs["price_per_hour"].value, read, written, inputs["utilisation"].value)

"""Tables of the page, ready for the template: every figure with its interval, every count with its stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from potstill.cost.cascade import Cascade
from potstill.cost.inputs import Economics, economics_of
from potstill.cost.text import SHARES, cells, days, priced_curve, rows_of_page
from potstill.errors import UserError
from potstill.measures import (
    Comparison,
    Measures,
    MetricSpec,
    ModelMeasures,
    Speed,
)
from potstill.quantities import byte_size, counted
from potstill.recipe.train import PRUNED
from potstill.report import figures
from potstill.report.distribution import QUANTILES, Spread, spread_of
from potstill.report.findings import Findings
from potstill.report.palette import LOOKS
from potstill.report.terminology import Words, words_of
from potstill.report.verdict import Verdict
from potstill.tasks import SPECS


@dataclass(frozen=True)
class Table:
    """`head` and `rows` have equal length; the first column names the row. `models` are the models of the rows, for
    colour."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    models: Sequence[str] = ()


@dataclass(frozen=True)
class Card:
    """One key figure."""

    label: str
    value: str
    beside: str
    note: str


def tag_of(verdict: Verdict, words: Words) -> str:
    """The verdict on the control, in a few words."""
    alone = "text" if words.control == "text only" else "labels"
    return {
        "better": f"Better than {alone} alone",
        "unclear": f"No gain over {alone} alone is shown",
        "worse": f"Worse than {alone} alone",
        "mixed": "Mixed",
        "unknown": "No control",
        "untaught": f"Learned from {alone} alone",
        "alone": "Trained without a teacher",
    }[verdict.outcome]


def subtitle_of(findings: Findings) -> str:
    """`smollm2-135m-instruct, 30 layers, 134.5M parameters → 15 layers, 81.4M parameters`."""
    teacher, student = findings.measures.models.get("teacher"), findings.student
    if teacher is None or findings.teacher is None:
        return _described(student)
    return f"{findings.teacher.name}: {_described(teacher)} → student: {_described(student)}"


def _described(model: ModelMeasures) -> str:
    layers = f"{model.layers} layers, " if model.layers else ""
    return f"{layers}{figures.large(model.parameters)} parameters"


def cards_of(findings: Findings) -> list[Card]:
    """The key figures."""
    measures, student, words = findings.measures, findings.student, words_of(findings.measures)
    teacher = measures.models.get("teacher")
    fewer = f"teacher {figures.large(teacher.parameters)}" if teacher else ""
    cards = [Card("Parameters", figures.large(student.parameters), _relative(student, teacher), fewer)]
    cards += [
        _metric_card(measures, spec, student, teacher)
        for spec in measures.metrics.values()
        if spec.note is not None and student.get(spec.name) is not None
    ]
    if (worth := _worth_card(measures, words)) is not None:
        cards.append(worth)
    if student.speed is not None:
        cards += _speed_card(student.speed, teacher.speed if teacher is not None else None)
    return cards


def _metric_card(measures: Measures, spec: MetricSpec, student: ModelMeasures, teacher: ModelMeasures | None) -> Card:
    """The student's value of a metric, with its teacher's, or else with chance."""
    value, _, beside = figures.of_metric(spec, student.get(spec.name)).partition(" [")
    notes = [spec.note] if spec.note else []
    if teacher is not None and (theirs := teacher.get(spec.name)) is not None:
        notes.append(f"teacher {figures.value_of_metric(spec, theirs)}")
    elif spec.name == "accuracy" and measures.chance is not None:
        notes.append(f"chance {figures.percent(measures.chance, 1)}")
    return Card(spec.label, value, f"[{beside}", "; ".join(notes))


def _worth_card(measures: Measures, words: Words) -> Card | None:
    """The paired difference from the control, in the first deciding metric that was measured."""
    compared = (measures.comparison("student", "text_only", spec.name) for spec in measures.deciding)
    worth = next((c for c in compared if c is not None), None)
    if worth is None:
        return None
    spec = measures.metrics[worth.metric]
    value, _, rest = figures.difference_of_metric(spec, worth.difference).partition(" ")
    beside, _, unit = rest.rpartition(" ")
    direction = "above" if spec.higher_is_better else "below"
    per = f" per {spec.per}" if spec.unit == "nats" else ""
    zero = "" if worth.excludes_zero else "; includes 0"
    label = f"{spec.term} against {words.control}"
    return Card(label, value, beside, f"{unit}{per}; {direction} 0 is better{zero}")


def _speed_card(mine: Speed, other: Speed | None) -> list[Card]:
    for label, unit, kind in (("Decode rate", "tokens/s", "decode"), ("Rate", "examples/s", "examples")):
        rate, spread = rate_of(mine, kind)
        if rate is not None and spread is not None:
            theirs = None if other is None else rate_of(other, kind)[0]
            note = unit if theirs is None else f"{unit}; teacher {figures.rate(theirs)}"
            return [Card(label, figures.rate(rate), _spread(spread), note)]
    return []


def models_table(measures: Measures) -> Table:
    """All models on the held-out records, by the metrics without a section of their own, with their size."""
    return metrics_table(
        measures,
        [spec for spec in measures.metrics.values() if not spec.section],
        ("parameters", lambda m: figures.large(m.parameters)),
        ("layers", lambda m: str(m.layers) if m.layers else figures.NONE),
    )


def metrics_table(
    measures: Measures, specs: Sequence[MetricSpec], *others: tuple[str, Callable[[ModelMeasures], str]]
) -> Table:
    """All models by some metrics. A column without values is left out, and so is a model without any."""
    words = words_of(measures)
    present = [measures.models[name] for name in LOOKS if name in measures.models]
    columns: list[tuple[str, Callable[[ModelMeasures], str]]] = [
        *((spec.head, partial(_cell, spec)) for spec in specs),
        *others,
    ]
    present = [m for m in present if any(value(m) != figures.NONE for _, value in columns)]
    filled = [(head, [value(m) for m in present]) for head, value in columns]
    used = [(head, cells) for head, cells in filled if any(cell != figures.NONE for cell in cells)]
    rows = [(words.shown(m.name), *(cells[i] for _, cells in used)) for i, m in enumerate(present)]
    return Table(("", *(head for head, _ in used)), rows, [m.name for m in present])


def _cell(spec: MetricSpec, model: ModelMeasures) -> str:
    return figures.of_metric(spec, model.get(spec.name))


def solving_table(measures: Measures) -> Table | None:
    """Why answers are not solved, by model; None if no problems were asked."""
    words, solving = words_of(measures), measures.solving
    if solving is None:
        return None
    present = [name for name in LOOKS if name in solving.unfinished]
    columns = [
        ("solved", [figures.percent_interval(measures.models[name].get("solved")) for name in present]),
        (f"cut at {figures.count(solving.max_new_tokens)} tokens", _amounts(solving.unfinished, present)),
        ("not judged", _amounts(solving.unjudged, present)),
        ("prompt too long", _amounts(solving.too_long, present)),
    ]
    told = [(head, cells) for head, cells in columns if set(cells) != {"0"}]
    rows = [(words.shown(name), *(cells[i] for _, cells in told)) for i, name in enumerate(present)]
    return Table(("", *(head for head, _ in told)), rows, present)


def _amounts(counts: Mapping[str, int], names: Sequence[str]) -> list[str]:
    return [figures.count(counts.get(name, 0)) for name in names]


def differences_table(measures: Measures) -> Table:
    """Every paired comparison."""
    words = words_of(measures)
    rows = [
        (
            f"{words.shown(c.model)} − {words.shown(c.against)}",
            measures.metrics[c.metric].in_sentence,
            figures.difference_of_metric(measures.metrics[c.metric], c.difference),
            _reading(measures, c, words),
        )
        for c in measures.comparisons
    ]
    return Table(("pair", "metric", "difference", "reading"), rows)


RATES = (
    ("prefill", "prefill, tokens/s", "Prefill, tokens per second"),
    ("decode", "decode, tokens/s", "Decode, tokens per second"),
    ("examples", "examples/s", "Examples per second"),
)
"""Kinds of rate: titles in tables and figures."""


def rate_of(speed: Speed, kind: str) -> tuple[float | None, tuple[float, float] | None]:
    """A rate per second and its range; None if the model has no rate of this kind."""
    if kind == "examples":
        return speed.examples_per_second, speed.examples_spread
    if kind == "decode":
        return speed.decode_tokens_per_second, speed.decode_spread
    return speed.prefill_tokens_per_second, speed.prefill_spread


def size_table(measures: Measures) -> Table | None:
    """Teacher and student compared by size, rate and memory; None if there is nothing to compare."""
    teacher, student = measures.models.get("teacher"), measures.models["student"]
    sides = [m for m in (teacher, student) if m is not None]
    rows: list[tuple[str, ...]] = [
        ("parameters", *(figures.large(m.parameters) for m in sides), _ratio([m.parameters for m in sides])),
        ("weights on disk", *(byte_size(m.bytes) for m in sides), _ratio([m.bytes for m in sides])),
    ]
    speeds = [m.speed for m in sides if m.speed is not None]
    if speeds and len(speeds) == len(sides):
        rows += _rate_rows(speeds)
        rows += [
            ("peak memory", *(byte_size(s.peak_bytes) for s in speeds), _ratio([s.peak_bytes for s in speeds])),
            ("measured in", *(s.dtype for s in speeds), ""),
        ]
    if len(sides) == 1:
        # A ratio needs both.
        return Table(("", "student"), [row[:2] for row in rows])
    return Table(("", *(m.name for m in sides), "student ÷ teacher"), rows)


def candidates_table(findings: Findings) -> Table | None:
    """The shapes that a pruned student was chosen from, with their losses after the look; None for other students."""
    facts = findings.trained["student"]
    candidates = facts.get("candidates") or []
    best = min((candidate["kl"] for candidate in candidates), default=None)
    how = {"influence": "of largest influence", "even": "evenly spaced", "all": "all"}
    rows = [
        (
            f"{len(c['layers'])} {how[c['by']]}" + (" (chosen)" if c["kl"] == best else ""),
            *(figures.count(c[name]) if name in c else "as the teacher" for name in ("hidden", "groups", "channels")),
            figures.large(c["parameters"]),
            figures.number(c["kl"], 3),
        )
        for c in candidates
    ]
    return Table(("layers", "width", "head groups", "channels", "parameters", "KL"), rows) if rows else None


def _rate_rows(speeds: Sequence[Speed]) -> list[tuple[str, ...]]:
    rows = []
    for kind, label, _ in RATES:
        found = [(rate, spread) for rate, spread in (rate_of(s, kind) for s in speeds) if rate and spread]
        if len(found) == len(speeds):
            ratio = _ratio([rate for rate, _ in found]) + _overlap([spread for _, spread in found])
            rows.append((label, *(f"{figures.rate(rate)} {_spread(spread)}" for rate, spread in found), ratio))
    return rows


def spread_table(findings: Findings, loss: str, models: Sequence[str]) -> Table | None:
    """Quantiles of one loss per target, by model. `loss` is `kl` or `nll`."""
    words = words_of(findings.measures)
    found: list[tuple[str, Spread]] = []
    for name in models:
        column = findings.values.get(f"{loss}_{name}")
        if column is not None and (spread := spread_of(column)) is not None:
            found.append((name, spread))
    if not found:
        return None
    head = ("nats", "median", *(figures.percent(q) for q in QUANTILES[1:]), "largest", "borne by the worst tenth")
    rows = [
        (
            words.shown(name) + (f" ({s.not_finite} not finite)" if s.not_finite else ""),
            *(figures.number(q) for q in s.quantiles),
            figures.number(s.largest),
            figures.percent(s.on_worst) if s.on_worst is not None else figures.NONE,
        )
        for name, s in found
    ]
    return Table(head, rows, [name for name, _ in found])


# ---- what was left out, and what it cost -------------------------------------------------------------------------


def counts_table(findings: Findings) -> Table:
    """Every count of every stage: records read, kept, dropped and cut."""
    rows = [
        (stage, what, str(amount) if not isinstance(amount, int) else figures.count(amount))
        for stage, manifest in findings.manifests.items()
        for what, amount in manifest["counts"].items()
    ]
    return Table(("stage", "what", "count"), rows)


def warnings_of(findings: Findings) -> list[tuple[str, str]]:
    """Every warning, with its stage."""
    return [(stage, text) for stage, manifest in findings.manifests.items() for text in manifest["warnings"]]


def cost_table(findings: Findings) -> Table:
    """Tokens, seconds and memory of each stage, and how far the estimates of `potstill check` were off."""
    rows = []
    for stage, manifest in findings.manifests.items():
        seconds = figures.duration(manifest["seconds"]) + (" (since it was resumed)" if manifest["resumed"] else "")
        rows.append((stage, _work_of(stage, findings), seconds, _estimate_of(manifest), _memory_of(manifest)))
    total = sum(float(m["seconds"]) for m in findings.manifests.values())
    names = ("stage", "work", "time", "estimated", "peak memory")
    return Table(names, [*rows, ("all", "", figures.duration(total), "", "")])


def _estimate_of(manifest: Mapping[str, Any]) -> str:
    """What the check had estimated of a stage, and the time that it took as a multiple of that."""
    estimated = manifest["facts"].get("estimated_seconds")
    if not estimated:
        return ""
    return f"{figures.duration(estimated)}; it took {figures.number(manifest['seconds'] / estimated, 1)} × that"


def _memory_of(manifest: Mapping[str, Any]) -> str:
    """The most memory of a stage beyond what the process had before it, or of its GPUs, and as a multiple of the
    estimate."""
    memory = manifest["facts"].get("memory", {})
    if "gpu" not in memory and "peak" not in memory:
        return ""
    needed = memory.get("gpu", memory.get("peak", 0) - memory.get("before", 0))
    shown = f"{byte_size(needed)}{' of the GPU' * ('gpu' in memory)}"
    return f"{shown}; {figures.number(needed / max(memory['estimated'], 1), 1)} × the estimate for weights alone"


def economics_of_run(findings: Findings) -> Economics | None:
    """The economics of a run; None where a speed was not measured."""
    try:
        return economics_of(findings.recipe, findings.measures, findings.manifests, {}, findings.cascade)
    except UserError:
        return None


def economics_table(economics: Economics) -> Table:
    """What a token costs from teacher and student, and when the distillation has paid for itself."""
    return Table(("what", "figure", "source"), rows_of_page(economics))


def break_even_table(economics: Economics) -> Table:
    """Days to break-even over volume, utilisation of the machines, and the share that falls back to the teacher."""
    rows: dict[tuple[str, str], list[str]] = {}
    for cell in cells(economics):
        row = (figures.large(cell.tokens_per_day), figures.percent(cell.utilisation, 0))
        rows.setdefault(row, []).append(days(cell.situation))
    shares = [f"days, {figures.percent(share, 0)} fall back" for share in SHARES]
    return Table(("tokens a day", "machines in use", *shares), [[*row, *found] for row, found in rows.items()])


def cascade_table(economics: Economics, cascade: Cascade) -> Table:
    """Quality and price along the curve of a cascade."""
    return Table(
        ("falls back to the teacher", "right", "$ per million tokens"),
        [
            (figures.percent(point.fall_back, 1), figures.percent(point.accuracy, 1), f"{dollars:,.4f}")
            for point, dollars in priced_curve(economics, cascade)
        ],
    )


def _work_of(stage: str, findings: Findings) -> str:
    if stage == "generate":
        facts = findings.manifests[stage]["facts"]
        said = f"{counted(facts['tokens'], 'token')} written" if "tokens" in facts else ""
        again = facts.get("answers_from_journal")
        return said + (
            f", {figures.count(again)} of {figures.count(facts['answers'])} answers from the journal" if again else ""
        )
    if stage == "capture":
        counts = findings.manifests[stage]["counts"]
        return f"{counted(counts['records'], 'record')}, {byte_size(counts['bytes'])}"
    if stage == PRUNED:
        return counted(findings.manifests[stage]["counts"]["candidates"], "candidate")
    if stage == "evaluate":
        units = words_of(findings.measures).units
        return f"{figures.count(findings.measures.targets)} held-out {units}, {counted(len(findings.models), 'model')}"
    facts = findings.trained["student" if stage == "train" else stage.removeprefix("train.")]
    unit = SPECS[findings.measures.task].trained_unit
    said = f"{figures.count(facts['tokens'])} {unit}" if facts.get("tokens") is not None else ""
    return said + (f", {counted(facts['steps'], 'step')}" if facts.get("steps") is not None else "")


# ---- parts of figures --------------------------------------------------------------------------------------------


def _relative(student: ModelMeasures, teacher: ModelMeasures | None) -> str:
    if teacher is None:
        return ""
    share = student.parameters / teacher.parameters - 1
    return f"{figures.signed(100 * share, 1)} %"


def _reading(measures: Measures, c: Comparison, words: Words) -> str:
    if not c.excludes_zero:
        return "interval includes 0: no difference is shown"
    return f"{words.shown(c.model)} is {'better' if measures.better(c) else 'worse'}"


def _spread(spread: tuple[float, float]) -> str:
    return f"({figures.rate(spread[0])}–{figures.rate(spread[1])})"


def _overlap(spreads: Sequence[tuple[float, float]]) -> str:
    """A ratio of rates; one whose ranges of repetitions overlap is marked as not shown."""
    if len(spreads) != 2 or spreads[0][1] < spreads[1][0] or spreads[1][1] < spreads[0][0]:
        return ""
    return " (the repetitions overlap)"


def _ratio(sides: Sequence[float]) -> str:
    if len(sides) != 2 or sides[0] <= 0:
        return ""
    return f"{figures.number(sides[1] / sides[0])} ×"


# ---- which classes are taken for which -------------------------------------------------------------------------------


MOST_CLASSES = 20
"""Maximum number of classes in a table of all pairs."""

_COMMONEST = 10


def class_table(findings: Findings) -> Table | None:
    """Examples, recall, precision and F1 of each class, for student and teacher: the MOST_CLASSES classes with the
    smallest F1 of the student, smallest first."""
    labels, student, teacher = (findings.classes.get(name) for name in ("label", "student", "teacher"))
    if not labels or student is None:
        return None
    sizes = Counter(labels)
    mine = _ByClass.of(labels, student)
    theirs = None if teacher is None else _ByClass.of(labels, teacher)
    worst = sorted(sizes, key=lambda name: (mine.f1(name), name))[:MOST_CLASSES]
    beside = [("student", mine), *([("teacher", theirs)] if theirs is not None else [])]
    heads = [f"{name}: {what}" for name, _ in beside for what in ("recall", "precision", "F1")]
    rows = [
        (name, figures.count(sizes[name]), *(cell for _, of_model in beside for cell in of_model.cells(name)))
        for name in worst
    ]
    return Table(("class", "examples", *heads), rows)


@dataclass(frozen=True)
class _ByClass:
    """Counts of one model by class."""

    right: Counter[str]
    labelled: Counter[str]
    predicted: Counter[str]

    @classmethod
    def of(cls, labels: Sequence[str], predicted: Sequence[str]) -> _ByClass:
        right = Counter(label for label, said in zip(labels, predicted, strict=True) if label == said)
        return cls(right, Counter(labels), Counter(predicted))

    def f1(self, name: str) -> float:
        return 2 * self.right[name] / (self.labelled[name] + self.predicted[name])

    def cells(self, name: str) -> tuple[str, str, str]:
        """Recall with its count, precision (none if the class is never predicted), and F1."""
        predicted = self.predicted[name]
        precision = figures.percent(self.right[name] / predicted) if predicted else figures.NONE
        return _share(self.right[name], self.labelled[name]), precision, figures.percent(self.f1(name))


def confusions_table(findings: Findings) -> Table | None:
    """The commonest confusions of the student, with the teacher's count of each."""
    labels, student, teacher = (findings.classes.get(name) for name in ("label", "student", "teacher"))
    if not labels or student is None:
        return None
    mine = Counter((a, b) for a, b in zip(labels, student, strict=True) if a != b)
    if not mine:
        return None
    theirs = None if teacher is None else Counter(zip(labels, teacher, strict=True))
    head = ("label", "taken for", "student", *(("teacher",) if theirs is not None else ()))
    rows = [
        (a, b, figures.count(times), *((figures.count(theirs[a, b]),) if theirs is not None else ()))
        for (a, b), times in sorted(mine.items(), key=lambda item: (-item[1], item[0]))[:_COMMONEST]
    ]
    return Table(head, rows)


def confusion_matrix(findings: Findings) -> Table | None:
    """Labels (rows) against the student's predictions (columns, by number), if there are few classes."""
    labels, student = findings.classes.get("label"), findings.classes.get("student")
    if not labels or student is None:
        return None
    names = sorted({*labels, *student}, key=_by_number)
    if len(names) > MOST_CLASSES:
        return None
    times = Counter(zip(labels, student, strict=True))
    numbered = [name if name == str(i) else f"{i} {name}" for i, name in enumerate(names)]
    rows = [
        (called, *(figures.count(times[name, said]) if times[name, said] else "·" for said in names))
        for called, name in zip(numbered, names, strict=True)
    ]
    return Table(("label", *map(str, range(len(names)))), rows)


def _by_number(name: str) -> tuple[bool, int, str]:
    return (False, int(name), name) if name.isdecimal() else (True, 0, name)


def _share(right: int, size: int) -> str:
    return f"{figures.percent(right / size)} ({figures.count(right)})"

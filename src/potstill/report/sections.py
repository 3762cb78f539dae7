"""Tables and texts of the page, ready for the template: every figure with its interval, every count with its stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.measures import Comparison, Interval, Measures, ModelMeasures, Speed
from potstill.report import figures
from potstill.report.distribution import QUANTILES, Spread, spread_of
from potstill.report.findings import Findings
from potstill.report.looks import LOOKS, shown
from potstill.report.verdict import Verdict

TEXT_SHOWN = 4000
"""Characters of a text; what is longer is cut, and said."""

METRICS = {"kl": "KL from the teacher", "nll": "NLL", "top1_agreement": "top-1 agreement"}

TAGS = {
    "better": "Better than text alone",
    "unclear": "No gain over text alone is shown",
    "worse": "Worse than text alone",
    "mixed": "Mixed",
    "unknown": "No control",
}


@dataclass(frozen=True)
class Table:
    """`head` and `rows` of equal length; the first column names the row. `models` are the row's models, for colour."""

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


@dataclass(frozen=True)
class Text:
    """A text beside others: whose it is, how it ended, and how many characters were left out."""

    model: str
    label: str
    note: str
    text: str
    left_out: int


def tag_of(verdict: Verdict) -> str:
    """The verdict in a few words, on the control."""
    return TAGS[verdict.outcome]


def subtitle_of(findings: Findings) -> str:
    """`smollm2-135m-instruct, 30 layers, 134.5M parameters → 15 layers, 81.4M parameters`."""
    teacher, student = findings.measures.models.get("teacher"), findings.student
    small = f"{student.layers} layers, {figures.large(student.parameters)} parameters"
    if teacher is None or findings.teacher is None:
        return small
    return (
        f"{findings.teacher.name}: {teacher.layers} layers, {figures.large(teacher.parameters)} parameters "
        f"→ student: {small}"
    )


def cards_of(findings: Findings) -> list[Card]:
    """The key figures."""
    measures, student = findings.measures, findings.student
    teacher = measures.models.get("teacher")
    fewer = f"teacher {figures.large(teacher.parameters)}" if teacher else ""
    cards = [Card("Parameters", figures.large(student.parameters), _relative(student, teacher), fewer)]
    if student.top1_agreement is not None:
        value, _, beside = figures.percent_interval(student.top1_agreement).partition(" [")
        cards.append(Card("Top-1 agreement", value, f"[{beside}", "first choice is the teacher’s"))
    if student.kl is not None:
        value, _, beside = figures.interval(student.kl).partition(" ")
        cards.append(Card("KL from the teacher", value, beside, "nats per token; 0 is the teacher itself"))
    note = f"teacher {_exponential(teacher.perplexity)}" if teacher else "on held-out text"
    cards.append(Card("Perplexity", _exponential(student.perplexity), _perplexity_brackets(student.nll), note))
    worth = measures.comparison("student", "text_only", "kl") or measures.comparison("student", "text_only", "nll")
    if worth is not None:
        value, _, beside = figures.difference(worth.difference).partition(" ")
        metric = METRICS[worth.metric].split()[0]
        zero = "" if worth.excludes_zero else "; includes 0"
        cards.append(Card(f"{metric} against text only", value, beside, f"nats per token; below 0 is better{zero}"))
    if student.speed is not None:
        rate = student.speed.decode_tokens_per_second
        beside = _spread(student.speed.decode_spread)
        other = teacher.speed if teacher is not None else None
        note = f"tokens/s; teacher {figures.rate(other.decode_tokens_per_second)}" if other else "tokens/s"
        cards.append(Card("Decode rate", figures.rate(rate), beside, note))
    return cards


def models_table(measures: Measures) -> Table:
    """All models on the held-out records."""
    present = [measures.models[name] for name in LOOKS if name in measures.models]
    head = ("", "KL, nats", "top-1 agreement", "NLL, nats", "perplexity", "parameters", "layers")
    rows = [
        (
            shown(m.name),
            figures.interval(m.kl),
            figures.percent_interval(m.top1_agreement),
            figures.interval(m.nll),
            _perplexity(m),
            figures.large(m.parameters),
            str(m.layers),
        )
        for m in present
    ]
    return Table(head, rows, [m.name for m in present])


def differences_table(measures: Measures) -> Table:
    """Every paired comparison that was made."""
    rows = [
        (
            f"{shown(c.model)} − {shown(c.against)}",
            METRICS[c.metric],
            f"{figures.points(c.difference)} points" if c.metric == "top1_agreement" else _nats(c),
            _reading(c),
        )
        for c in measures.comparisons
    ]
    return Table(("pair", "metric", "difference", "reading"), rows)


def size_table(measures: Measures) -> Table | None:
    """Teacher against student in size, rate and memory; None if there is nothing to set side by side."""
    teacher, student = measures.models.get("teacher"), measures.models["student"]
    sides = [m for m in (teacher, student) if m is not None]
    rows: list[tuple[str, ...]] = [
        ("parameters", *(figures.large(m.parameters) for m in sides), _ratio([m.parameters for m in sides])),
        ("weights on disk", *(figures.size(m.bytes) for m in sides), _ratio([m.bytes for m in sides])),
    ]
    speeds = [m.speed for m in sides if m.speed is not None]
    if speeds and len(speeds) == len(sides):
        rows += [
            (
                "prefill, tokens/s",
                *map(_prefill, speeds),
                _ratio([s.prefill_tokens_per_second for s in speeds]) + _overlap([s.prefill_spread for s in speeds]),
            ),
            (
                "decode, tokens/s",
                *map(_decode, speeds),
                _ratio([s.decode_tokens_per_second for s in speeds]) + _overlap([s.decode_spread for s in speeds]),
            ),
            ("peak memory", *(figures.size(s.peak_bytes) for s in speeds), _ratio([s.peak_bytes for s in speeds])),
            ("measured in", *(s.dtype for s in speeds), ""),
        ]
    return Table(("", *(shown(m.name) for m in sides), "student ÷ teacher"), rows)


def spread_table(findings: Findings, loss: str, models: Sequence[str]) -> Table | None:
    """Quantiles of one loss per token, by model. `loss` is `kl` or `nll`."""
    found: list[tuple[str, Spread]] = []
    for name in models:
        column = findings.tokens.get(f"{loss}_{name}")
        if column is not None and (spread := spread_of(column)) is not None:
            found.append((name, spread))
    if not found:
        return None
    head = ("nats", "median", *(figures.percent(q) for q in QUANTILES[1:]), "largest", "borne by the worst tenth")
    rows = [
        (
            shown(name) + (f" ({s.not_finite} not finite)" if s.not_finite else ""),
            *(figures.number(q) for q in s.quantiles),
            figures.number(s.largest),
            figures.percent(s.on_worst) if s.on_worst is not None else figures.NONE,
        )
        for name, s in found
    ]
    return Table(head, rows, [name for name, _ in found])


# ---- texts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Document:
    """A held-out document and what the models made of it."""

    heading: str
    losses: str
    prompt: Text
    reference: Text
    answers: Sequence[Text]


def documents_of(findings: Findings) -> list[Document]:
    """The worst documents, with the texts side by side."""
    limit = findings.recipe.evaluate.sample_tokens if findings.recipe.evaluate is not None else 0
    return [_document(raw, limit) for raw in findings.documents[: findings.recipe.report.worst_documents]]


def _document(raw: Mapping[str, Any], limit: int) -> Document:
    kl, teacher, student = raw.get("kl"), raw.get("nll_teacher"), raw["nll_student"]
    losses = [f"NLL of the student {figures.number(student)}"]
    if teacher is not None:
        losses.append(f"of the teacher {figures.number(teacher)}")
    worst = f"KL {figures.number(kl)}" if kl is not None else f"NLL {figures.number(student)}"
    answers = raw.get("answers") or {}
    finished = raw.get("finished") or {}
    ended = {name: _ended(finished.get(name), limit) for name in answers}
    return Document(
        heading=f"{worst} nats per token, over {figures.count(raw['targets'])} tokens",
        losses=", ".join(losses),
        prompt=_text("", "Prompt", "", raw["prompt"]),
        reference=_text("", "Held-out text", "what the figures are measured on", raw["reference"]),
        answers=[_text(n, f"{shown(n)} writes", ended[n], answers[n]) for n in LOOKS if n in answers],
    )


def _ended(finished: bool | None, limit: int) -> str:
    if finished is None:
        return ""
    return "stopped by itself" if finished else f"cut at {limit} tokens"


def _text(model: str, label: str, note: str, text: str) -> Text:
    return Text(model, label[:1].upper() + label[1:], note, text[:TEXT_SHOWN], max(0, len(text) - TEXT_SHOWN))


# ---- what was left out, and what it cost -------------------------------------------------------------------------


def counts_table(findings: Findings) -> Table:
    """Every count that a stage made: what was read, kept, dropped and cut."""
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
    """Tokens and seconds of each stage."""
    rows = []
    for stage, manifest in findings.manifests.items():
        seconds = figures.duration(manifest["seconds"]) + (" (since it was resumed)" if manifest["resumed"] else "")
        rows.append((stage, _work_of(stage, findings), seconds))
    total = sum(float(m["seconds"]) for m in findings.manifests.values())
    return Table(("stage", "work", "time"), [*rows, ("all", "", figures.duration(total))])


def _work_of(stage: str, findings: Findings) -> str:
    if stage == "generate":
        facts = findings.manifests[stage]["facts"]
        said = f"{figures.count(facts['tokens'])} tokens written" if "tokens" in facts else ""
        again = facts.get("answers_from_journal")
        return said + (
            f", {figures.count(again)} of {figures.count(facts['answers'])} answers from the journal" if again else ""
        )
    if stage == "evaluate":
        return f"{figures.count(findings.measures.targets)} held-out tokens, {len(findings.models)} models"
    facts = findings.trained["student" if stage == "train" else stage.removeprefix("train.")]
    said = f"{figures.count(facts['tokens'])} tokens" if facts.get("tokens") is not None else ""
    return said + (f", {figures.count(facts['steps'])} steps" if facts.get("steps") is not None else "")


# ---- parts of figures --------------------------------------------------------------------------------------------


def _relative(student: ModelMeasures, teacher: ModelMeasures | None) -> str:
    if teacher is None:
        return ""
    share = student.parameters / teacher.parameters - 1
    return f"{figures.signed(100 * share, 1)} %"


def _perplexity(model: ModelMeasures) -> str:
    return f"{_exponential(model.perplexity)} {_perplexity_brackets(model.nll)}"


def _exponential(value: float) -> str:
    return figures.large(value) if math.isfinite(value) and value >= 1000 else figures.number(value)


def _perplexity_brackets(nll: Interval) -> str:
    """Perplexity is exp(NLL), and so are the ends of its interval."""
    low, high = (math.exp(end) if end < 700 else math.inf for end in (nll.low, nll.high))
    return f"[{_exponential(low)}, {_exponential(high)}]"


def _nats(c: Comparison) -> str:
    return f"{figures.difference(c.difference)} nats"


def _reading(c: Comparison) -> str:
    if not c.excludes_zero:
        return "interval includes 0: no difference is shown"
    lower_is_better = c.metric != "top1_agreement"
    better = (c.difference.value < 0) == lower_is_better
    return f"{shown(c.model)} is {'better' if better else 'worse'}"


def _prefill(speed: Speed) -> str:
    return f"{figures.rate(speed.prefill_tokens_per_second)} {_spread(speed.prefill_spread)}"


def _decode(speed: Speed) -> str:
    return f"{figures.rate(speed.decode_tokens_per_second)} {_spread(speed.decode_spread)}"


def _spread(spread: tuple[float, float]) -> str:
    return f"({figures.rate(spread[0])}–{figures.rate(spread[1])})"


def _overlap(spreads: Sequence[tuple[float, float]]) -> str:
    """A ratio of rates whose repetitions overlap shows nothing, and says so."""
    if len(spreads) != 2 or spreads[0][1] < spreads[1][0] or spreads[1][1] < spreads[0][0]:
        return ""
    return " (the repetitions overlap)"


def _ratio(sides: Sequence[float]) -> str:
    if len(sides) != 2 or sides[0] <= 0:
        return ""
    return f"{figures.number(sides[1] / sides[0])} ×"

"""A run that was never run: artifacts of generate, train, train.text_only and evaluate, as those stages write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.planted import measured as damaged
from potstill.artifacts import Artifact, read_artifact, write_artifact
from potstill.console import Console
from potstill.evaluate.measures.fidelity import SOLVED, metrics_of
from potstill.measures import Comparison, Interval, Measures, MetricSpec, ModelMeasures, Solving, Speed
from potstill.recipe import Recipe, parse_recipe
from potstill.report.stage import stage
from potstill.stage import Context
from potstill.tasks import SPECS
from tiny_models import make_tiny_causal_lm

HOSTILE = (
    "<script>document.title='ran'</script></style><style>*{display:none}</style>\"><img src=x "
    "onerror=\"document.title='ran'\"><svg onload=\"document.title='ran'\"></pre></details>{{ 7*7 }}{% raw %}&lt;b&gt; "
    "]]> --> \u202egnissap\u202c \x00\x1b[31m \ud800" + " " + 300 * "a"
)
"""Text that a model might write, which must stay text."""

DOCUMENTS = 8
TARGETS = 60
"""Per document."""

Spread = tuple[float, float, float]


@dataclass(frozen=True)
class Shape:
    """What kind of run it is. The differences are of the student to `text_only`: value, low, high."""

    kl: Spread | None = (-0.38, -0.51, -0.26)
    nll: Spread | None = (-0.11, -0.17, -0.04)
    generated: bool = True
    speed: bool = True
    text: str | None = None
    title: str | None = None
    solve: bool = False
    measured: bool = False
    """With the sections of measures."""

    @property
    def control(self) -> bool:
        return self.nll is not None


def recipe_of(shape: Shape, teacher: Path) -> Recipe:
    """The recipe of such a run."""
    document: dict[str, Any] = {
        "name": "synthetic",
        "teacher": {"kind": "local", "model": str(teacher)},
        "student": {"kind": "from_teacher", "layers": "every_other"},
        "data": {"kind": "jsonl", "path": "prompts.jsonl", "format": "prompt", "held_out": 0.1},
        "train": {
            "objectives": [{"kind": "forward_kl"}, {"kind": "hidden_cosine"}],
            "controls": ["text_only"] if shape.control else [],
            "args": {"learning_rate": 5e-4},
        },
        "evaluate": {},
        "report": {"title": shape.title, "worst_documents": 3},
        "export": [{"kind": "huggingface"}],
    }
    if shape.generated:
        document["generate"] = {"kind": "sequence", "max_new_tokens": 104, "token_budget": 26000}
    return parse_recipe(document, base=Path("/"))


def with_perplexity(**metrics: Interval) -> dict[str, Interval]:
    """Metrics with the perplexity of their NLL."""
    nll = metrics["nll"]
    ends = (float(np.exp(end)) for end in (nll.value, nll.low, nll.high))
    return {**metrics, "perplexity": Interval(*ends)}


def measures_of(shape: Shape) -> Measures:
    """The measures of such a run."""
    speed = Speed(720_000_000, "bfloat16", 210.0, (204.0, 216.0), 21.0, (20.1, 21.6))
    faster = replace(speed, prefill_tokens_per_second=390.0, prefill_spread=(377.0, 401.0))
    faster = replace(faster, decode_tokens_per_second=38.5, decode_spread=(37.2, 39.9), peak_bytes=470_000_000)
    student = ModelMeasures(
        name="student",
        parameters=81_412_416,
        bytes=325_700_000,
        layers=15,
        metrics=with_perplexity(
            nll=Interval(2.31, 2.18, 2.45),
            kl=Interval(1.93, 1.80, 2.07),
            top1_agreement=Interval(0.412, 0.39, 0.435),
        ),
        speed=faster if shape.speed else None,
    )
    models = {
        "teacher": ModelMeasures(
            "teacher",
            134_515_008,
            538_090_408,
            30,
            with_perplexity(nll=Interval(0.71, 0.66, 0.77)),
            speed=speed,
        ),
        "student": student,
        "untrained": replace(
            student,
            name="untrained",
            metrics=with_perplexity(
                nll=Interval(15.9, 15.5, 16.3),
                kl=Interval(15.4, 15.0, 15.8),
                top1_agreement=Interval(0.0004, 0.0, 0.001),
            ),
            speed=None,
        ),
    }
    compared = [
        Comparison("student", "teacher", "nll", Interval(1.6, 1.48, 1.73)),
        Comparison("student", "untrained", "kl", Interval(-13.5, -13.8, -13.1)),
    ]
    if shape.control and shape.nll is not None:
        models["text_only"] = replace(
            student,
            name="text_only",
            metrics=with_perplexity(
                nll=Interval(2.31 - shape.nll[0], 2.28, 2.58),
                kl=Interval(1.93 - (shape.kl or (0, 0, 0))[0], 2.15, 2.47),
                top1_agreement=Interval(0.371, 0.35, 0.392),
            ),
            speed=None,
        )
        if shape.kl is not None:
            compared.append(Comparison("student", "text_only", "kl", Interval(*shape.kl)))
        compared.append(Comparison("student", "text_only", "nll", Interval(*shape.nll)))
        compared.append(Comparison("student", "text_only", "top1_agreement", Interval(0.041, 0.024, 0.058)))
    solving = None
    if shape.solve:
        shares = {"teacher": (0.8, 0.7, 0.88), "student": (0.425, 0.33, 0.52), "text_only": (0.3, 0.22, 0.39)}
        shares |= {"untrained": (0.0, 0.0, 0.0)}
        models = {
            name: replace(model, metrics={"solved": Interval(*shares[name]), **model.metrics})
            for name, model in models.items()
        }
        compared.append(Comparison("student", "teacher", "solved", Interval(-0.375, -0.47, -0.28)))
        if shape.control:
            compared.append(Comparison("student", "text_only", "solved", Interval(0.125, 0.03, 0.22)))
        unfinished = {name: 80 if name == "untrained" else 3 for name in models}
        none = dict.fromkeys(models, 0)
        solving = Solving(80, 78, "numeric@1", 256, unfinished, {**none, "student": 2}, none)
    extra: dict[str, Any] = {}
    in_sections: dict[str, MetricSpec] = {}
    specs = [SOLVED.spec] * shape.solve + [metric.spec for metric in metrics_of(SPECS["causal_lm"])]
    if shape.measured:
        planted = damaged(0, by=1.0)
        own = {name: m.metrics for name, m in planted.models.items()}
        in_sections = {n: spec for n, spec in planted.metrics.items() if spec.section}
        models = {
            name: replace(m, metrics={**m.metrics, **{n: own[name][n] for n in in_sections if n in own[name]}})
            if name in own
            else m
            for name, m in models.items()
        }
        extra = {"findings": planted.findings, "losses": planted.losses}
    if solving is not None:
        extra["findings"] = (*extra.get("findings", ()), solving)
    return Measures(
        models=models,
        metrics={spec.name: spec for spec in specs if any(m.get(spec.name) for m in models.values())} | in_sections,
        **extra,
        comparisons=tuple(compared),
        groups=DOCUMENTS,
        records=DOCUMENTS,
        targets=DOCUMENTS * TARGETS,
        confidence=0.95,
        resamples=2000,
        notes=("Only 8 held-out groups: the intervals are rough, and rather too narrow.",),
    )


PROMPTS = (
    "Explain to a ten-year-old why the sea is salty.",
    "Write a short note that asks a neighbour to turn the music down.",
    "What is the difference between weather and climate?",
    "Give three reasons to keep a diary.",
    "How does a bicycle stay upright?",
    "Name a food that is eaten in winter, and say how it is made.",
    "Describe the smell of rain.",
    "What should one look for when buying a used car?",
)
ANSWER = (
    "Rivers carry a little salt from the rocks into the sea. The water goes back to the sky as vapour and leaves the "
    "salt behind, so over millions of years it has become saltier and saltier.\n\nThat is why sea "
    "water tastes as it does."
)


def documents_of(shape: Shape) -> list[dict[str, Any]]:
    """The held-out documents, worst first; half of them with answers."""
    told = ("teacher", "student", *(("text_only",) if shape.control else ()))
    return [
        {
            "record_id": f"{i:016x}",
            "group": f"{i:016x}",
            "prompt": shape.text or PROMPTS[i],
            "reference": shape.text or ANSWER,
            "targets": TARGETS,
            "kl": 3.2 - 0.3 * i,
            "nll_teacher": 0.7,
            "nll_student": 3.4 - 0.3 * i,
            "answers": dict.fromkeys(told, shape.text or f"{ANSWER[: 150 + 20 * i]}") if i < 4 else {},
            "finished": {name: name == "teacher" for name in told} if i < 4 else {},
        }
        for i in range(DOCUMENTS)
    ]


def write_run(run: Path, shape: Shape = Shape()) -> tuple[Recipe, dict[str, Artifact]]:
    """Write the artifacts of such a run, and a tiny teacher, into a folder; gives its recipe and what report reads."""
    teacher = run / "a-teacher"
    if not teacher.exists():
        make_tiny_causal_lm(teacher)
        (teacher / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A teacher\n")
        (teacher / "LICENSE").write_text("Apache License, Version 2.0 …\n")
    recipe = recipe_of(shape, teacher)
    found = {}
    if shape.generated:
        found["generate"] = write_files(
            run,
            "generate",
            {"records.parquet": "", "rejects.jsonl": ""},
            counts={"rows read": 320, "prompts": 320, "answers kept": 241, "rejected: cut short": 79},
            facts={"tokens": 25_230, "seconds": 131.2, "answers": 320, "answers_from_journal": 0},
            warnings=[f"79 answers were cut at 104 tokens and left out{shape.text or ''}"],
        )
    trainings = {"train": "student"} | ({"train.text_only": "text_only"} if shape.control else {})
    for name, model in trainings.items():
        facts = {"kind": "from_teacher", "layers": list(range(0, 30, 2)), "parameters": 81_412_416, "steps": 120}
        facts |= {"teacher_parameters": 134_515_008, "tokens": 50_112, "seconds": 301.5}
        files = {"student.json": json.dumps(facts), "history.jsonl": "\n".join(map(json.dumps, history_of(model)))}
        files |= {"model/chat_template.jinja": "{{ messages }}"}
        found[name] = write_files(run, name, files, counts={"rows": 215})
    found["evaluate"] = evaluate = write_files(run, "evaluate", {}, counts={"held-out records": DOCUMENTS})
    measures_of(shape).save(evaluate.path / "measures.json")
    (evaluate.path / "documents.json").write_text(json.dumps(documents_of(shape)), encoding="utf-8")
    pq.write_table(pa.table(tokens_of(shape)), evaluate.path / "tokens.parquet")
    return recipe, found


def history_of(model: str) -> list[dict[str, Any]]:
    """A training log, in the shape of `Trainer.state.log_history`."""
    better = 1.0 if model == "student" else 1.18
    rows: list[dict[str, Any]] = []
    for step in range(5, 121, 5):
        loss = better * (1.7 + 9 * np.exp(-step / 18)) + 0.1 * np.sin(step)
        rows.append({"loss": loss, "learning_rate": 5e-4, "step": step, "epoch": step / 60, "tokens": step * 417})
        if step % 30 == 0:
            kl = better * (1.85 + 6 * np.exp(-step / 22))
            measured = {"eval_nll": kl + 0.4, "step": step}
            # A control that learns without a teacher has none to be measured against.
            rows.append(measured | ({"eval_kl": kl, "eval_top1_agreement": 0.4} if model == "student" else {}))
    return rows


def tokens_of(shape: Shape) -> dict[str, Any]:
    """Per-token losses: gamma-like, most near 0, some far out."""
    random = np.random.default_rng(0)
    n = DOCUMENTS * TARGETS
    spread: Mapping[str, float] = {"student": 1.9, "untrained": 15.0} | ({"text_only": 2.3} if shape.control else {})
    columns: dict[str, Any] = {
        "record_id": [f"{i // TARGETS:016x}" for i in range(n)],
        "group": [f"{i // TARGETS:016x}" for i in range(n)],
        "position": list(range(n)),
        "token": [5] * n,
        "nll_teacher": random.gamma(0.5, 1.4, n).astype(np.float32),
    }
    for model, mean in spread.items():
        columns[f"kl_{model}"] = random.gamma(1.2, mean / 1.2, n).astype(np.float32)
        columns[f"nll_{model}"] = (columns[f"kl_{model}"] + random.gamma(0.5, 0.8, n)).astype(np.float32)
        columns[f"agree_{model}"] = random.random(n) < 0.4
    return columns


def write_files(
    run: Path,
    stage: str,
    files: Mapping[str, str],
    *,
    counts: Mapping[str, int],
    facts: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
) -> Artifact:
    """An artifact with these files."""
    with write_artifact(run, stage, "0" * 64, settings={}, inputs={}, seed=0) as work:
        work.counts.update(counts)
        work.facts.update(facts or {})
        for warning in warnings:
            work.warn(warning)
        for name, text in files.items():
            (work.path / name).parent.mkdir(exist_ok=True)
            (work.path / name).write_text(text, encoding="utf-8")
    made = read_artifact(run / stage)
    assert made is not None
    return made


def write_report(run: Path, shape: Shape = Shape()) -> Path:
    """Run the report stage on such a run; gives its folder."""
    recipe, inputs = write_run(run, shape)
    made = stage(recipe)
    with write_artifact(run, made.name, "1" * 64, settings={}, inputs={}, seed=0) as work:
        made.write(Context(recipe, run, {name: inputs[name] for name in made.reads}, work, Console("quiet")))
    return run / "report"

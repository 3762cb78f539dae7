"""The dataset card: contents, origin, and rejects with their reasons."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.artifacts import Work, write_atomically
from potstill.markdown import code_span, escape_markdown
from potstill.policy.gate import rulings_on
from potstill.policy.terms import terms_section
from potstill.recipe import Recipe
from potstill.types import Record, Reject

_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{1,40}")


@dataclass
class Statistics:
    """Counts of a program's output."""

    kept: int = 0
    unfinished: int = 0
    reasoned: int = 0
    sides: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, record: Record, side: str) -> None:
        """Count a record that is kept."""
        self.kept += 1
        self.unfinished += not record.finished
        self.sides[side] += 1
        self.licences[record.provenance.licence or "not stated"] += 1
        self.reasoned += record.messages is not None and "reasoning_content" in record.messages[-1]
        for verdict in record.verdicts:
            self.verdicts[verdict.verifier, verdict.outcome] += 1

    def reject(self, reject: Reject) -> None:
        """Count a reject."""
        self.rejected[reject.reason] += 1


def write_card(path: Path, recipe: Recipe, work: Work, statistics: Statistics) -> None:
    """Write `README.md` beside the records: `datasets.load_dataset(<folder>)` reads its head.

    Its content does not depend on interruptions of the run.
    """
    write_atomically(path, dataset_card(recipe, work.facts, statistics))


def dataset_card(recipe: Recipe, facts: Mapping[str, Any], statistics: Statistics) -> str:
    """The card, as Markdown with a YAML head. `facts` come from the stage's manifest."""
    from huggingface_hub import DatasetCardData

    section = recipe.required_generate
    licences = sorted(statistics.licences.items())
    head = DatasetCardData(
        license=licences[0][0].lower() if len(licences) == 1 and _SPDX.fullmatch(licences[0][0]) else None,
        tags=["synthetic", "distillation", "potstill"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "records.parquet"}]}],
    )
    settings = section.model_dump(mode="json", exclude_defaults=True) | {"kind": section.kind}
    settings.pop("decontaminate", None)  # it has private paths; the names have their own line
    teachers: list[tuple[str, str]] = []
    if section.asks:
        teacher = facts["teacher"]
        teachers = [("Teacher", code_span(teacher.get("model", ""))), ("Route", _route(teacher))]
    for name, of in facts.get("judges", {}).items():
        judge = f"{code_span(of['teacher'].get('model', ''))}, {_route(of['teacher'])}"
        teachers.append((f"Judge {code_span(name)}", judge))
    if "verifier" in facts:
        teachers.append(("Verifier", _verifier(facts["verifier"])))
    kept_out = [f"{escape_markdown(name)} ({of['items']:,})" for name, of in facts.get("decontamination", {}).items()]
    rows = [
        *teachers,
        ("Settings", code_span(", ".join(f"{key}: {value}" for key, value in settings.items()))),
        ("Records to train on", f"{statistics.sides['train']:,}"),
        ("Records held out (column `side`)", f"{statistics.sides['held_out']:,}"),
        ("Cut short (`finished` is false)", f"{statistics.unfinished:,}"),
        ("With reasoning", f"{statistics.reasoned:,}"),
        ("Licence of the prompts", ", ".join(f"{escape_markdown(name)} ({count:,})" for name, count in licences)),
    ]
    if kept_out:
        rows.append(("Evaluation sets kept out of training (items)", ", ".join(kept_out)))
    what = "that a teacher wrote" if section.asks else "out of conversations that were given"
    lines = [
        f"# {escape_markdown(recipe.name)}",
        "",
        f"{statistics.kept:,} records {what} (program `{section.kind}`). Made by potstill.",
        "",
        _table(("", ""), rows),
        "",
        "## What was kept out",
        "",
        *_rejected(statistics),
    ]
    if statistics.verdicts:
        verdicts = [
            (escape_markdown(who), outcome.replace("_", " "), f"{count:,}")
            for (who, outcome), count in sorted(statistics.verdicts.items())
        ]
        lines += [
            "",
            "## What verifiers said of what was kept",
            "",
            _table(("Verifier", "Verdict", "Records"), verdicts),
        ]
    lines += [
        "",
        "## Licences and terms",
        "",
        "An answer is its teacher's: what its licence or its provider's terms say of training on answers holds for",
        "this data set too.",
        "",
        *terms_section(rulings_on(recipe, "records")),
        "",
    ]
    return f"---\n{head.to_yaml()}\n---\n\n" + "\n".join(lines)


def _rejected(statistics: Statistics) -> list[str]:
    """A table of rejects, by reason."""
    if not statistics.rejected:
        return ["Nothing."]
    asked = statistics.kept + sum(statistics.rejected.values())
    ordered = sorted(statistics.rejected.items(), key=lambda item: (-item[1], item[0]))
    rows = [(escape_markdown(why), f"{count:,}", f"{100 * count / asked:.1f} %") for why, count in ordered]
    return [_table(("Reason", "Records", "Share"), rows), "", "Each of them is in `rejects.jsonl`."]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _route(teacher: Mapping[str, Any]) -> str:
    return code_span(f"{teacher.get('kind', '')} {teacher.get('server', '')}")


def _verifier(identity: Mapping[str, Any]) -> str:
    """Name, version and settings of a verifier."""
    name, version, settings = (identity.get(key, "") for key in ("name", "version", "settings"))
    stated = {key: value for key, value in dict(settings or {}).items() if value is not None}
    return f"{code_span(name)} (version {escape_markdown(version)}), {code_span(json.dumps(stated, default=str))}"

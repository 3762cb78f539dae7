"""The dataset card: what is in the records, where they come from, what was kept out, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from potstill.artifacts import Work, write_atomically
from potstill.recipe import Recipe
from potstill.types import Record, Reject


@dataclass
class Statistics:
    """Counts of what a program yielded."""

    kept: int = 0
    unfinished: int = 0
    reasoned: int = 0
    sides: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, record: Record, side: str) -> None:
        """A record that was kept."""
        self.kept += 1
        self.unfinished += not record.finished
        self.sides[side] += 1
        self.licences[record.provenance.licence or "not stated"] += 1
        self.reasoned += record.messages is not None and "reasoning_content" in record.messages[-1]
        for verdict in record.verdicts:
            self.verdicts[verdict.verifier, verdict.outcome] += 1

    def reject(self, reject: Reject) -> None:
        """A record that was not."""
        self.rejected[reject.reason] += 1


def write_card(path: Path, recipe: Recipe, work: Work, statistics: Statistics) -> None:
    """Write `README.md` beside the records: `datasets.load_dataset(<folder>)` reads its head, people the rest.

    It says nothing that would differ between an interrupted run and another.
    """
    write_atomically(path, dataset_card(recipe, work.facts, statistics))


def dataset_card(recipe: Recipe, facts: Mapping[str, Any], statistics: Statistics) -> str:
    """The card, as Markdown with a YAML head. `facts` are those of the stage's manifest."""
    teacher = facts["teacher"]
    head = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "records.parquet"}]}],
        "tags": ["synthetic", "distillation", "potstill"],
    }
    asked = statistics.kept + sum(statistics.rejected.values())
    generate = recipe.required_generate
    settings = generate.model_dump(mode="json", exclude_defaults=True) | {"kind": generate.kind}
    settings.pop("decontaminate", None)  # its paths are those of a machine; the names have a line of their own
    kept_out = [f"{_text(name)} ({_n(of['items'])})" for name, of in facts.get("decontamination", {}).items()]
    licences = sorted(statistics.licences.items())
    judges = [
        (f"Judge `{name}`", f"{_code(of['teacher'].get('model', ''))}, {_route(of['teacher'])}")
        for name, of in facts.get("judges", {}).items()
    ]
    what = "that a teacher wrote" if recipe.required_generate.asks else "out of conversations that were given"
    lines = [
        f"# {recipe.name}",
        "",
        f"{_n(statistics.kept)} records {what} (program `{recipe.required_generate.kind}`). Made by potstill.",
        "",
        _table(
            ("", ""),
            [
                *(
                    [("Teacher", _code(teacher.get("model", ""))), ("Route", _route(teacher))]
                    if recipe.required_generate.asks
                    else []
                ),
                *judges,
                ("Settings", _code(", ".join(f"{k}: {v}" for k, v in settings.items()))),
                ("Records to train on", _n(statistics.sides["train"])),
                ("Records held out (column `side`)", _n(statistics.sides["held_out"])),
                ("Cut short (`finished` is false)", _n(statistics.unfinished)),
                ("With reasoning", _n(statistics.reasoned)),
                ("Licence of the prompts", ", ".join(f"{_text(k)} ({_n(v)})" for k, v in licences)),
                *([("Evaluation sets kept out of training (items)", ", ".join(kept_out))] if kept_out else []),
            ],
        ),
        "",
        "## What was kept out",
        "",
    ]
    if statistics.rejected:
        ordered = sorted(statistics.rejected.items(), key=lambda item: (-item[1], item[0]))
        rows = [(_text(why), _n(count), f"{100 * count / asked:.1f} %") for why, count in ordered]
        lines += [_table(("Reason", "Records", "Share"), rows), "", "Each of them is in `rejects.jsonl`."]
    else:
        lines.append("Nothing.")
    if statistics.verdicts:
        verdicts = sorted(statistics.verdicts.items())
        rows = [(_text(who), said.replace("_", " "), _n(count)) for (who, said), count in verdicts]
        lines += ["", "## What verifiers said of what was kept", "", _table(("Verifier", "Verdict", "Records"), rows)]
    lines += [
        "",
        "An answer is its teacher's: what its licence or its provider's terms say of training on answers holds for",
        "this data set too.",
        "",
    ]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n" + "\n".join(lines)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _route(teacher: Mapping[str, Any]) -> str:
    return _code(f"{teacher.get('kind', '')} {teacher.get('server', '')}".strip())


def _n(count: int) -> str:
    return f"{count:,}"


def _text(value: str) -> str:
    return " ".join(value.replace("|", "\\|").replace("<", "&lt;").split())


def _code(value: str) -> str:
    plain = " ".join(str(value).replace("|", "\\|").replace("`", "'").split())
    return f"`{plain}`" if plain else ""

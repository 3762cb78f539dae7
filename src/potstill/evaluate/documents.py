"""The texts behind the figures: `documents.json`, worst first, and `tokens.parquet`, value by value. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from potstill.evaluate.held_out import HeldOut, Question

if TYPE_CHECKING:
    from potstill.evaluate.answers import Written
    from potstill.evaluate.fidelity import TokenScores


@dataclass
class Document:
    """One held-out record: what is asked, what stands behind it, how far off the student is, what models write."""

    record_id: str
    group: str
    question: Question
    targets: int
    kl: float | None
    nll_student: float
    nll_teacher: float | None
    answers: dict[str, Written] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """What documents are sorted by: KL, or without a teacher the student's NLL; nats per target."""
        return self.nll_student if self.kl is None else self.kl

    def to_dict(self) -> dict[str, Any]:
        """As it stands in `documents.json`. `finished` says which models stopped by themselves."""
        return {
            "record_id": self.record_id,
            "group": self.group,
            "prompt": self.question.prompt,
            "reference": self.question.reference,
            "targets": self.targets,
            "kl": self.kl,
            "nll_teacher": self.nll_teacher,
            "nll_student": self.nll_student,
            "answers": {name: written.text for name, written in self.answers.items()},
            "finished": {name: written.finished for name, written in self.answers.items()},
        }


def documents_of(
    held_out: HeldOut, questions: Sequence[Question], student: TokenScores, teacher: TokenScores | None
) -> list[Document]:
    """One document per record, the one where the student is farthest from the teacher first.

    Args:
        held_out: records and rows.
        questions: of each record.
        student: its scores [N].
        teacher: its own, if there is one to compare with.
    """
    nll_student = means_by_row(student.nll, held_out)
    nll_teacher = None if teacher is None else means_by_row(teacher.nll, held_out)
    kl = None if student.kl is None else means_by_row(student.kl, held_out)
    documents = [
        Document(
            record_id=row.record_id,
            group=row.group,
            question=questions[i],
            targets=int(held_out.counts[i]),
            kl=None if kl is None else kl[i],
            nll_student=nll_student[i],
            nll_teacher=None if nll_teacher is None else nll_teacher[i],
        )
        for i, row in enumerate(held_out.rows)
    ]
    return sorted(documents, key=lambda document: -document.loss)


def means_by_row(values: NDArray[np.floating], held_out: HeldOut) -> list[float]:
    """Means over each row [R] of one value per target [N]."""
    sums = np.add.reduceat(values.astype(np.float64), held_out.starts[:-1])
    return [float(mean) for mean in sums / held_out.counts]


def save_documents(path: Path, documents: Sequence[Document]) -> None:
    """Write `documents.json`."""
    path.write_text(json.dumps([d.to_dict() for d in documents], indent=1, ensure_ascii=False), encoding="utf-8")


def save_tokens(path: Path, held_out: HeldOut, scores: Mapping[str, TokenScores]) -> None:
    """Write `tokens.parquet`, one row per target, in order.

    Columns: `record_id`, `group`, `position` (of the token in its record, from 0), `token` (its id), and of each model
    `nll_<model>`, `kl_<model>` and `agree_<model>` (the last two where there is a teacher to compare with).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    learned = [
        (row.record_id, row.group, position, label)
        for row in held_out.rows
        for position, label in enumerate(row.labels)
        if label >= 0
    ]
    names = ("record_id", "group", "position", "token")
    columns: dict[str, Any] = {name: [row[i] for row in learned] for i, name in enumerate(names)}
    for name, of_model in scores.items():
        columns[f"nll_{name}"] = of_model.nll
        if of_model.kl is not None:
            columns |= {f"kl_{name}": of_model.kl, f"agree_{name}": of_model.agree}
    pq.write_table(pa.table(columns), path)

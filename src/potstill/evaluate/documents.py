"""The records behind the figures: `documents.json`, worst first, and a table of every value. No torch.

The content of an entry depends on the task: the text that a language model writes, the masked tokens, the predicted
class, or the nearest neighbour.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from potstill.evaluate.held_out import HeldOut, Question, text_of
from potstill.evaluate.scores import Scores
from potstill.tasks import SPECS

if TYPE_CHECKING:
    from potstill.evaluate.answers import Written


MOST_EXAMPLES = 100
"""Number of examples of a classification or an embedding that are kept with their text or image, worst first."""

_TEXT_KEPT = 4000
BLANK = "▁▁▁"
"""Shown in place of a masked token."""


@dataclass
class Document:
    """One held-out record of tokens: prompt, reference, the student's losses, and the models' answers."""

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
        """The sort key of documents: KL; without a teacher the student's NLL; nats per target."""
        return self.nll_student if self.kl is None else self.kl

    def to_dict(self) -> dict[str, Any]:
        """Its entry in `documents.json`. `finished` says which models ended their answer themselves."""
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
    held_out: HeldOut, questions: Sequence[Question], student: Scores, teacher: Scores | None
) -> list[Document]:
    """One document per record, sorted by the student's distance from the teacher, largest first.

    Args:
        held_out: records and rows.
        questions: of each record.
        student: its scores [N].
        teacher: its own, if there is one to compare with.
    """
    assert student.nll is not None
    nll_student = means_by_row(student.nll, held_out)
    nll_teacher = None if teacher is None or teacher.nll is None else means_by_row(teacher.nll, held_out)
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
    """Means over each row [R] of one value per target [N]. Every row has a target."""
    sums = np.add.reduceat(values.astype(np.float64), held_out.starts[:-1])
    return [float(mean) for mean in sums / held_out.counts]


def blanked(held_out: HeldOut, index: int, decode: Callable[[Sequence[int]], str]) -> Question:
    """A masked row for display: with blanks, and complete."""
    ids, places = list(held_out.rows[index].input_ids), {place for place, _ in held_out.targets[index]}
    parts, run = [], list[int]()
    for place, token in enumerate(ids):
        if place in places:
            parts += [decode(run), BLANK] if run else [BLANK]
            run = []
        else:
            run.append(token)
    if run:
        parts.append(decode(run))
    return Question((), " ".join(parts), decode(ids))


def examples_of(held_out: HeldOut, scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """The worst examples of a classification: those whose class the student finds least likely. Each has its text or
    image (a PNG in base64), its label, and each model's first choice of class with its probability."""
    student, teacher = scores["student"], scores.get("teacher")
    assert student.nll is not None
    found = []
    for i in np.argsort(-student.nll, kind="stable")[:MOST_EXAMPLES].tolist():
        predictions = {
            name: {"class": _named(held_out, int(of.predicted[i])), "probability": float(of.probability[i])}
            for name, of in scores.items()
            if of.predicted is not None and of.probability is not None
        }
        found.append(
            _shown(held_out, i)
            | {
                "label": _named(held_out, int(held_out.target_ids[i])),
                "kl": None if student.kl is None else float(student.kl[i]),
                "nll_student": float(student.nll[i]),
                "nll_teacher": None if teacher is None or teacher.nll is None else float(teacher.nll[i]),
                "predictions": predictions,
            }
        )
    return found


def neighbours_of(held_out: HeldOut, scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """The worst examples of an embedding: those whose neighbour has the smallest cosine in the teacher's embedding
    (without a teacher: those whose neighbour has another label). Each has its text and label, and each model's
    neighbour with its cosine."""
    student, labels = scores["student"], held_out.target_ids
    loss: NDArray[Any] = np.zeros(len(labels))
    if student.regret is not None:
        loss = student.regret
    elif student.correct is not None and student.cosine is not None:
        loss = np.where(student.correct, 0.0, 1.0 + student.cosine)
    found = []
    for i in np.argsort(-loss, kind="stable")[:MOST_EXAMPLES].tolist():
        neighbours = {
            name: {
                "text": _text(held_out, int(of.predicted[i])),
                "label": _named(held_out, int(labels[of.predicted[i]])),
                "cosine": float(of.cosine[i]),
            }
            for name, of in scores.items()
            if of.predicted is not None and of.cosine is not None
        }
        regret = None if student.regret is None else float(student.regret[i])
        found.append(
            _shown(held_out, i)
            | {"label": _named(held_out, int(labels[i])), "regret": regret, "neighbours": neighbours}
        )
    return found


def _shown(held_out: HeldOut, index: int) -> dict[str, Any]:
    row = held_out.rows[index]
    entry: dict[str, Any] = {"record_id": row.record_id, "group": row.group, "targets": 1}
    if SPECS[held_out.task].reads_images:
        return entry | {"image": png_of(row.pixels)}
    return entry | {"text": _text(held_out, index)}


def _text(held_out: HeldOut, index: int) -> str:
    return text_of(held_out.records[index])[:_TEXT_KEPT]


def _named(held_out: HeldOut, number: int) -> str:
    """The name of a class, or its number if it has no name; empty for an example without a label."""
    if number < 0:
        return ""
    return held_out.classes[number] if number < len(held_out.classes) else str(number)


def save_documents(path: Path, documents: Sequence[Mapping[str, Any]]) -> None:
    """Write `documents.json`."""
    text = json.dumps(list(documents), indent=1, ensure_ascii=False)
    # JSON escapes lone surrogates, which data may contain.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def save_tokens(path: Path, held_out: HeldOut, scores: Mapping[str, Scores]) -> None:
    """Write `tokens.parquet`, one row per target, in order.

    Columns: `record_id`, `group`, `position` (of the token in its record, from 0), `token` (its id), and for each model
    `nll_<model>`, `kl_<model>` and `agree_<model>` (the last two only if there is a teacher to compare with).
    """
    learned = [
        (row.record_id, row.group, position, token)
        for row, targets in zip(held_out.rows, held_out.targets, strict=True)
        for position, token in targets
    ]
    names = ("record_id", "group", "position", "token")
    _save(path, {name: [row[i] for row in learned] for i, name in enumerate(names)}, scores)


def save_examples(path: Path, held_out: HeldOut, scores: Mapping[str, Scores]) -> None:
    """Write `examples.parquet`, one row per example, in order.

    Columns: `record_id`, `group`, `label` (empty if there is none), and for each model, as far as measured,
    `nll_<model>`, `kl_<model>`, `agree_<model>`, `correct_<model>`, `class_<model>`, `nearest_<model>` (the row of the
    neighbour), `probability_<model>` (of the first choice), `cosine_<model>` (of the neighbour) and `regret_<model>`.
    """
    columns: dict[str, Any] = {
        "record_id": [row.record_id for row in held_out.rows],
        "group": [row.group for row in held_out.rows],
        "label": [_named(held_out, number) for number in held_out.target_ids.tolist()],
    }
    for name, of_model in scores.items():
        if of_model.predicted is None:
            continue
        if not SPECS[held_out.task].has_response:
            columns[f"nearest_{name}"] = of_model.predicted
        else:
            columns[f"class_{name}"] = [_named(held_out, number) for number in of_model.predicted.tolist()]
    _save(path, columns, scores)


def _save(path: Path, columns: dict[str, Any], scores: Mapping[str, Scores]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, of_model in scores.items():
        for value in ("nll", "kl", "agree", "correct", "probability", "cosine", "regret"):
            if (column := getattr(of_model, value)) is not None:
                columns[f"{value}_{name}"] = column
    pq.write_table(pa.table(columns), path)


# ---- PNG files, by the standard library alone ------------------------------------------------------------------------


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _COLOUR = 0, 2
"""Colour types of the format (PNG specification, §11.2.2)."""


def png_of(pixels: NDArray[np.uint8]) -> str | None:
    """An image [H,W], [H,W,1] or [H,W,3] of 0 to 255 as a PNG, in base64. None for any other shape."""
    image = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] != 3) or 0 in image.shape:
        return None
    height, width = image.shape[:2]
    kind = _GREY if image.ndim == 2 else _COLOUR
    # Every row begins with the number of its filter: 0 for none.
    rows = b"".join(b"\0" + np.ascontiguousarray(row, dtype=np.uint8).tobytes() for row in image)
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return base64.b64encode(_PNG_SIGNATURE + b"".join(_chunk(name, data) for name, data in parts)).decode()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

"""Which classes are taken for which: per class, the commonest confusions, and where classes are few all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.report import figures
from potstill.report.findings import Findings
from potstill.report.sections import Table

MOST_CLASSES = 20
"""With more, a table of all pairs tells nobody anything."""

_COMMONEST = 10


def class_table(findings: Findings) -> Table | None:
    """Examples, recall, precision and F1 of each class, for student and teacher; the smallest F1 of the student first,
    MOST_CLASSES of them."""
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
        """Recall with its count, precision (none where the class is never predicted), and F1."""
        predicted = self.predicted[name]
        precision = figures.percent(self.right[name] / predicted) if predicted else figures.NONE
        return _share(self.right[name], self.labelled[name]), precision, figures.percent(self.f1(name))


def confusions_table(findings: Findings) -> Table | None:
    """The commonest confusions of the student, and how often the teacher makes each."""
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
    """Labels (rows) against the classes that the student says (columns, by number), where there are few classes."""
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

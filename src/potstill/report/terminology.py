"""Names of models and targets on the page and in the card, by task. Metrics have their own names (`MetricSpec`)."""

from __future__ import annotations

from dataclasses import dataclass

from potstill.measures import Measures
from potstill.report.palette import shown
from potstill.tasks import Task


@dataclass(frozen=True)
class Words:
    """The vocabulary of a task.

    Attributes:
        model: the kind of model, in the card.
        unit: name of a target.
        units: its plural.
        control: the name of the control that learned without the teacher.
        alone: what that control learned from.
        agrees: the meaning of agreement with the teacher, as a clause.
        entries: the worst held-out records.
    """

    model: str
    unit: str
    units: str
    control: str
    alone: str
    agrees: str
    entries: str = "examples"

    def shown(self, name: str) -> str:
        """The name of a model."""
        if name == "text_only_equal_seconds":
            return f"{self.control}, equal seconds"
        return self.control if name == "text_only" else shown(name)

    @property
    def title(self) -> str:
        """The name of the control at the beginning of a line."""
        return self.control[:1].upper() + self.control[1:]


_CLASSES = Words("classifier", "example", "examples", "labels only", "the labels alone", "first class is the teacher’s")

WORDS: dict[Task, Words] = {
    "causal_lm": Words(
        model="language model",
        unit="token",
        units="tokens",
        control="text only",
        alone="the text alone",
        agrees="first choice of token is the teacher’s",
        entries="documents",
    ),
    "masked_lm": Words(
        model="masked language model",
        unit="masked token",
        units="masked tokens",
        control="text only",
        alone="the text alone",
        agrees="first choice of token is the teacher’s",
        entries="documents",
    ),
    "sequence_classification": _CLASSES,
    "image_classification": _CLASSES,
    "sentence_embedding": Words(
        model="sentence encoder",
        unit="example",
        units="examples",
        control="text only",
        alone="the text alone",
        agrees="nearest neighbour is the teacher’s",
    ),
}


def words_of(measures: Measures) -> Words:
    """The vocabulary of some measures."""
    return WORDS[measures.task]


def terms_of(measures: Measures) -> list[tuple[str, str]]:
    """The terms of the tables that are used, with their meaning."""
    terms = [
        (spec.term, spec.explanation) for spec in measures.metrics.values() if spec.explanation and not spec.section
    ]
    if "text_only" in measures.models:
        terms.append((words_of(measures).title, _CONTROL))
    if "text_only_equal_seconds" in measures.models:
        terms.append((f"{words_of(measures).title}, equal seconds", _EQUAL_SECONDS))
    if "rounded_afterwards" in measures.models:
        terms.append(("Rounded afterwards", _ROUNDED))
    if "untrained" in measures.models:
        terms.append(("Untrained", "The student as it was built, before its first step."))
    return terms


_CONTROL = (
    "The same student from the same initial weights, trained for as many steps on the same batches with cross-entropy "
    "alone: what it would be without its teacher’s distributions. It takes less time, for no teacher runs."
)
_ROUNDED = (
    "The same student trained for as many steps in full precision, whose weights were rounded after the last step: "
    "what learning through the rounding is held against."
)
_EQUAL_SECONDS = (
    "The same control trained for as many seconds as the student, which is more steps: what the time that the teacher "
    "took would have been worth."
)

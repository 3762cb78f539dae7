"""What things are called on the page and in the card, by what the models are for."""

from __future__ import annotations

from dataclasses import dataclass

from potstill.measures import Measures, Metric
from potstill.report.looks import shown
from potstill.tasks import SPECS, Task


@dataclass(frozen=True)
class Words:
    """The words of a task.

    `unit` and `units` are what one value is of. `control` is what the control that learned without the teacher is
    called, and `alone` what it learned from. `first` is what a model puts first. `metrics` are those on which a student
    is held against that control.
    """

    model: str
    unit: str
    units: str
    control: str
    alone: str
    agreement: str
    agrees: str
    accuracy: str = ""
    perplexity: str = ""
    entries: str = "examples"
    metrics: tuple[Metric, ...] = ("kl", "nll")

    def shown(self, name: str) -> str:
        """What a model is called."""
        return self.control if name == "text_only" else shown(name)

    def metric(self, metric: Metric) -> str:
        """What a metric is called within a sentence."""
        named = {"kl": "KL from the teacher", "nll": "NLL", "accuracy": self.accuracy.lower() or "accuracy"}
        named["solved"] = "share of problems solved"
        return named.get(metric, self.agreement.lower())

    @property
    def title(self) -> str:
        """The control at the beginning of a line."""
        return self.control[:1].upper() + self.control[1:]


_CLASSES = Words(
    model="classifier",
    unit="example",
    units="examples",
    control="labels only",
    alone="the labels alone",
    agreement="Agreement",
    agrees="first class is the teacher’s",
    accuracy="Accuracy",
    metrics=("accuracy", "kl"),
)

WORDS: dict[Task, Words] = {
    "causal_lm": Words(
        model="language model",
        unit="token",
        units="tokens",
        control="text only",
        alone="the text alone",
        agreement="Top-1 agreement",
        agrees="first choice is the teacher’s",
        perplexity="Perplexity",
        entries="documents",
    ),
    "masked_lm": Words(
        model="masked language model",
        unit="masked token",
        units="masked tokens",
        control="text only",
        alone="the text alone",
        agreement="Top-1 agreement",
        agrees="first choice is the teacher’s",
        perplexity="Pseudo-perplexity",
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
        agreement="Neighbour agreement",
        agrees="nearest neighbour is the teacher’s",
        accuracy="Recall@1",
        metrics=("accuracy", "top1_agreement"),
    ),
}


def words_of(measures: Measures) -> Words:
    """The words of what was measured."""
    return WORDS[measures.task]


def terms_of(measures: Measures) -> list[tuple[str, str]]:
    """What the words of the tables mean, of those that are used."""
    words, task = words_of(measures), measures.task
    several = list(measures.models.values())
    terms: list[tuple[str, str]] = []
    if any(m.accuracy for m in several):
        terms.append((words.accuracy, _ACCURACY[not SPECS[task].has_response]))
    if any(m.solved for m in several):
        terms.append(("Solved", _SOLVED))
    if any(m.kept for m in several):
        terms.append(("Kept", f"{words.accuracy} as a share of the teacher’s."))
    if any(m.flips for m in several):
        terms.append(
            (
                "Flips",
                "Examples that the teacher has right and the model wrong, or the other way round, as shares of all. "
                "Equal accuracy can hide many.",
            )
        )
    if any(m.kl for m in several):
        of = {"causal_lm": "the next token", "masked_lm": "a masked token"}.get(task, "the class")
        terms.append(("KL", f"KL(teacher ‖ model) of {of}, at temperature 1: how far the model is from its teacher."))
    if any(m.nll for m in several):
        terms.append(("NLL", _NLL.get(task, _NLL_OF_CLASSES)))
    if any(m.top1_agreement for m in several):
        terms.append((words.agreement, f"The share of {words.units} where the model’s {words.agrees}."))
    if any(m.similarity_correlation for m in several):
        terms.append(
            (
                "Similarity correlation",
                "Spearman’s correlation between the cosines of pairs of examples in the model and in its teacher; each "
                "example is in one pair.",
            )
        )
    if "text_only" in measures.models:
        terms.append((words.title, _CONTROL))
    if "untrained" in measures.models:
        terms.append(("Untrained", "The student as it was built, before its first step."))
    return terms


_ACCURACY = (
    "The share of examples whose class the model puts first.",
    "The share of examples whose nearest neighbour among the other held-out examples has the same label.",
)
_SOLVED = (
    "The share of held-out problems of the data to which the model’s greedy answer is right, as a verifier judges. "
    "What was cut short, or could not be judged, is not."
)
_NLL: dict[Task, str] = {
    "causal_lm": "−log of the probability that the model gives the token that really follows. Perplexity is its "
    "exponential.",
    "masked_lm": "−log of the probability that the model gives the token that was masked. Pseudo-perplexity is its "
    "exponential: it is of masked tokens, and no perplexity of the text.",
}
_NLL_OF_CLASSES = "−log of the probability that the model gives the example’s class."
_CONTROL = (
    "The same student from the same initial weights, trained equally long on the same batches with cross-entropy "
    "alone: what it would be without its teacher’s distributions."
)

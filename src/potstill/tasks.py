"""The table of tasks: what a model is for, and everything that follows from it. No torch.

Callers ask for a property (`SPECS[task].has_classes`) and never compare a task with a string, so that a new task is
one entry here and one name in `Task`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Task = Literal["causal_lm", "masked_lm", "sequence_classification", "sentence_embedding", "image_classification"]
"""The name of a task, as recipes give it (`task: masked_lm`)."""

Target = Literal["token", "class", "embedding"]
"""What a student is scored on: a token of the vocabulary, a class of the data, or an embedding (which has no label)."""


@dataclass(frozen=True)
class TaskSpec:
    """The properties of one task.

    Attributes:
        name: as recipes give it.
        title: the kind of model, as messages name it ("causal language model").
        reads: what the model takes as input.
        target: what is predicted, and so what one scored row is.
        writes: whether the model continues a prompt: such tasks have prompts, generated text and chat templates.
        masks: whether targets are tokens that the collator hides.
        requirement: which models serve it, as an instruction for error messages.
        pipeline_tag: the name of the task on the Hugging Face hub, for model cards.
        auto_class: the class of `transformers` that opens a model for it.
        endings: how the names of such models' classes end.
        headless: whether a model without a head, which reads the same, is taken to be for it.
    """

    name: Task
    title: str
    reads: Literal["text", "images"]
    target: Target
    writes: bool
    masks: bool
    requirement: str
    pipeline_tag: str
    auto_class: str
    endings: tuple[str, ...]
    headless: bool = False

    @property
    def reads_text(self) -> bool:
        """Whether inputs are token ids, so that a tokenizer is needed."""
        return self.reads == "text"

    @property
    def reads_images(self) -> bool:
        """Whether inputs are pixel arrays."""
        return self.reads == "images"

    @property
    def has_vocabulary(self) -> bool:
        """Whether the output layer is as wide as the tokenizer's vocabulary; targets are tokens then."""
        return self.target == "token"

    @property
    def has_classes(self) -> bool:
        """Whether the output layer has one row per class of the data; targets are examples then."""
        return self.target == "class"

    @property
    def has_response(self) -> bool:
        """Whether the model gives logits. An encoder of sentences gives states only."""
        return self.target != "embedding"

    @property
    def scored_unit(self) -> Literal["tokens", "examples"]:
        """What one row of a loss or of a measure is."""
        return "tokens" if self.has_vocabulary else "examples"

    @property
    def trained_unit(self) -> Literal["tokens", "images"]:
        """What throughput is counted in: all that the model reads, not only what is scored."""
        return "images" if self.reads_images else "tokens"


_TABLE = (
    TaskSpec(
        name="causal_lm",
        title="causal language model",
        reads="text",
        target="token",
        writes=True,
        masks=False,
        requirement="use a causal language model of text (its architecture ends in ForCausalLM)",
        pipeline_tag="text-generation",
        auto_class="AutoModelForCausalLM",
        endings=("ForCausalLM", "LMHeadModel"),
    ),
    TaskSpec(
        name="masked_lm",
        title="masked language model",
        reads="text",
        target="token",
        writes=False,
        masks=True,
        requirement="use an encoder of texts, with a masked head (ForMaskedLM) or without",
        pipeline_tag="fill-mask",
        auto_class="AutoModelForMaskedLM",
        endings=("ForMaskedLM",),
    ),
    TaskSpec(
        name="sequence_classification",
        title="classifier of texts",
        reads="text",
        target="class",
        writes=False,
        masks=False,
        requirement="use an encoder of texts, with a classification head (ForSequenceClassification) or not",
        pipeline_tag="text-classification",
        auto_class="AutoModelForSequenceClassification",
        endings=("ForSequenceClassification",),
    ),
    TaskSpec(
        name="sentence_embedding",
        title="encoder of texts",
        reads="text",
        target="embedding",
        writes=False,
        masks=False,
        requirement="use an encoder of texts",
        pipeline_tag="sentence-similarity",
        auto_class="AutoModel",
        endings=(),
        headless=True,
    ),
    TaskSpec(
        name="image_classification",
        title="classifier of images",
        reads="images",
        target="class",
        writes=False,
        masks=False,
        requirement="use a classifier of images (ForImageClassification), or a module of your own",
        pipeline_tag="image-classification",
        auto_class="AutoModelForImageClassification",
        endings=("ForImageClassification",),
        headless=True,
    ),
)

SPECS: Mapping[Task, TaskSpec] = {spec.name: spec for spec in _TABLE}
"""Every task by its name."""

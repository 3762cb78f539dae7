"""The contract of teachers: each declares what it can give, and gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from potstill.signals import Ask, Batch, ModelDims, Signals
from potstill.tasks import TaskSpec
from potstill.types import Answer, Capability, Request


def capabilities_for(spec: TaskSpec) -> frozenset[Capability]:
    """What a local model gives that was made for a task: a head over a vocabulary, logits, inner tensors, text."""
    gives: dict[Capability, bool] = {
        "generate": spec.writes,
        "head": spec.has_vocabulary,
        "dense": spec.has_response,
        "taps": True,
    }
    return frozenset(capability for capability, given in gives.items() if given)


class Teacher(Protocol):
    """A source of knowledge. Built by `registry.build(settings)`; loads its weights on first use."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What this teacher gives. The settings of its kind say what any of the kind may give; which of it this one
        gives may depend on what it found, such as the model that its settings name. Loads no weights."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """What its answers depend on: model, revision or weights digest, dtype, template hash. Part of journal and
        stage keys."""
        ...

    @property
    def dims(self) -> ModelDims: ...

    @property
    def tokenizer(self) -> Any:
        """The `transformers` tokenizer, chat template included."""
        ...

    def signals(self, batch: Batch, ask: Ask) -> Signals:
        """The tensors that are asked for, of a batch, from the teacher's own view. Never in training mode, never with
        gradient."""
        ...

    def generate(
        self, requests: Sequence[Request], *, seed: int, wrote: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """Answer a batch of requests with equal sampling settings, in order. The same batch and seed give the same
        answers. `wrote` is called as tokens are written, with their number."""
        ...

"""What a teacher is: it declares what it can give, and gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from potstill.signals import Ask, Batch, ModelDims, Signals
from potstill.types import Answer, Capability, Request


class Teacher(Protocol):
    """A source of knowledge. Built by `registry.build(settings)`; loads its weights on first use."""

    @property
    def capabilities(self) -> frozenset[Capability]: ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """Who answers: model, revision or weights digest, dtype, template hash. Part of journal and stage keys."""
        ...

    @property
    def dims(self) -> ModelDims: ...

    @property
    def tokenizer(self) -> Any:
        """The `transformers` tokenizer, chat template included."""
        ...

    def signals(self, batch: Batch, ask: Ask) -> Signals:
        """What is asked of it for a batch, from its own view. Never in training mode, never with gradient."""
        ...

    def generate(
        self, requests: Sequence[Request], *, seed: int, wrote: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """Answer a batch of requests with equal sampling settings, in order. The same batch and seed give the same
        answers. `wrote` is called as tokens are written, with their number."""
        ...

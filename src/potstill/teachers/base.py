"""The contract of teachers: each declares its capabilities, and provides them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from potstill.signals import Ask, Batch, ModelDims, Signals
from potstill.tasks import TaskSpec
from potstill.types import Answer, Capability, Request

if TYPE_CHECKING:
    import torch
    from torch import nn


def capabilities_for(spec: TaskSpec) -> frozenset[Capability]:
    """The capabilities of a local model for a task: a head over a vocabulary, logits, inner tensors, text."""
    gives: dict[Capability, bool] = {
        "generate": spec.writes,
        "head": spec.has_vocabulary,
        "dense": spec.has_response,
        "taps": True,
    }
    return frozenset(capability for capability, given in gives.items() if given)


class Teacher(Protocol):
    """A source of answers or signals. Built by `registry.build(settings)`; loads its weights on first use."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What this teacher can give: at most the capabilities of its kind's settings, depending on the model that the
        settings name. Loads no weights."""
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
        """The requested tensors for a batch, from the teacher's view. Never in training mode, never with gradient."""
        ...

    def generate(
        self, requests: Sequence[Request], *, seed: int, wrote: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """Answer a batch of requests with equal sampling settings, in order. The same batch and seed give the same
        answers. `wrote` is called with the number of tokens written since the last call."""
        ...


class OpenTeacher(Protocol):
    """A teacher whose weights are in this process, as an evaluation needs it."""

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The models that it is made of: one, or the members of an ensemble."""
        ...

    def signals(self, batch: Batch, ask: Ask) -> Signals:
        """As `Teacher.signals`."""
        ...


def open_modules(teacher: Teacher | None) -> tuple[nn.Module, ...]:
    """The models that compute a teacher's signals anew for each batch; none if the signals are cached or stored."""
    if teacher is None or getattr(getattr(teacher, "settings", None), "cache", False):
        return ()
    return tuple(getattr(teacher, "modules", ()))


def device_of(model: OpenTeacher) -> torch.device:
    """The device of the first layer's weights (for a language model the embeddings), which takes the inputs."""
    return next(model.modules[0].parameters()).device


def input_device(teacher: Teacher) -> torch.device | None:
    """As `device_of`; None if the teacher has no weights here."""
    modules = open_modules(teacher)
    return next((parameter.device for module in modules[:1] for parameter in module.parameters()), None)

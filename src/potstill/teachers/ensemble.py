"""Several teachers as one. Hinton, Vinyals, Dean 2015, §2."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.errors import CapabilityError, ModelError
from potstill.models.labels import check_same_labels
from potstill.models.tokenizers import check_same_tokenizer
from potstill.recipe.teachers import EnsembleTeacher
from potstill.registry import build, implements
from potstill.signals import Ask, Batch, Dense, ModelDims, Signals
from potstill.teachers.base import Teacher
from potstill.types import Answer, Capability, Request


@implements(EnsembleTeacher)
class Ensemble:
    """The teacher of `kind: ensemble`. Its members are opened on first use; each reads the batch unchanged.

    Args:
        settings: the members, and how their logits are averaged.
        members: the members, if they have been built already.
    """

    def __init__(self, settings: EnsembleTeacher, members: Sequence[Teacher] | None = None) -> None:
        self.settings = settings
        self.members = tuple(map(build, settings.members) if members is None else members)

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Whole logits, if all members give them; no inner tensors."""
        able = all(member.capabilities & {"head", "dense"} for member in self.members)
        return self.settings.capabilities if able else frozenset()

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The open models of all members."""
        return tuple(module for member in self.members for module in getattr(member, "modules", ()))

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """How the members are averaged, and their identities."""
        return {
            "kind": self.settings.kind,
            "average": self.settings.average,
            "members": [_signals_identity(member) for member in self.members],
        }

    @cached_property
    def labels(self) -> tuple[str, ...] | None:
        """The class names, the same for all members; None if no member names them.

        Raises:
            ModelError: members differ.
        """
        named = [(number, labels) for number, m in enumerate(self.members) if (labels := getattr(m, "labels", None))]
        for number, labels in named[1:]:
            check_same_labels(labels, named[0][1], who=f"member {number}", where=f"members.{number}", than="the first")
        return named[0][1] if named else None

    @cached_property
    def dims(self) -> ModelDims:
        """The number of classes or tokens, the same for all members.

        Raises:
            ModelError: members differ in their number or names.
        """
        _ = self.labels  # refuse members that disagree before computing anything
        sizes = [member.dims for member in self.members]
        for number, other in enumerate(sizes):
            if other.vocab != sizes[0].vocab:
                raise ModelError(
                    f"member {number} of the ensemble gives {other.vocab} logits, and the first {sizes[0].vocab}",
                    where=f"members.{number}",
                    fix="use members of the same classes",
                )
        return ModelDims(sizes[0].vocab, hidden=0, layers=0, heads=0, kv_heads=0, causal=sizes[0].causal)

    @cached_property
    def tokenizer(self) -> Any:
        """The members' tokenizer; None if they read no text.

        Raises:
            TokenizerMismatch: members have different tokenizers.
        """
        first, *others = (member.tokenizer for member in self.members)
        for other in others:
            if first is not None and other is not None:
                check_same_tokenizer(first, other, templates=False)
        return first

    def signals(self, batch: Batch, ask: Ask) -> Signals:
        """The averaged logits at the batch's targets. For language models, each member's logits are materialised.

        Raises:
            CapabilityError: the request has inner tensors; each member has its own.
        """
        if ask.taps:
            raise CapabilityError(
                f"an ensemble has no {min(ask.taps)}: its members have one each",
                fix="use one of the members as the teacher, or objectives on the response (forward_kl)",
            )
        if not ask.response:
            return Signals(dims=self.dims)
        sizes = self.dims
        logits = [_whole_logits(member.signals(batch, ask)) for member in self.members]
        return Signals(dense=Dense(average(logits, self.settings.average)), dims=sizes)

    def generate(
        self, requests: Sequence[Request], *, seed: int, wrote: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """An ensemble does not write.

        Raises:
            CapabilityError: always.
        """
        raise CapabilityError("an ensemble writes no text", fix="use one of its members (kind: local)")


def average(members: Sequence[Float[Tensor, "N V"]], how: str) -> Float[Tensor, "N V"]:
    """The logits of an ensemble, in fp32.

    `logits`: their mean, which is the normalised geometric mean of the members' probabilities at any temperature.
    `probabilities`: log((1/M) Σ softmax(z_m)), the arithmetic mean at T = 1. At another temperature the ensemble's
    distribution is softened, not the members'.
    """
    stacked = torch.stack([logits.float() for logits in members])
    if how == "logits":
        return stacked.mean(0)
    return stacked.log_softmax(-1).logsumexp(0) - math.log(len(members))


def _whole_logits(signals: Signals) -> Tensor:
    if signals.dense is not None:
        return signals.dense.logits
    if signals.head is not None:
        return signals.head.logits()
    raise CapabilityError("a member of the ensemble gives no logits", fix="use members of kind: local")


def _signals_identity(member: Teacher) -> Mapping[str, Any]:
    """What the numbers depend on: for a local member also its precision and device."""
    own: Mapping[str, Any] = getattr(member, "signals_identity", None) or member.identity
    return own

"""The loss of Medusa heads: cross-entropy of each head with the token at its offset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.frequent import count_tokens, frequent_tokens
from potstill.heads import MedusaHeads
from potstill.objectives.base import DirectObjective, widened
from potstill.recipe.response import Medusa
from potstill.registry import implements
from potstill.signals import Ask, Batch, Dims, Head, Side, Signals, Term


@implements(Medusa)
class MedusaLoss(DirectObjective[Medusa]):
    """Σ λ^k · CE of head k (from 1), whose target is the token k behind the next one. Cai et al. 2024, §2.2.1.

    Where that token is not learned, behind the end of a text, or none that the heads know, the head has no loss. The
    count is the number of targets.
    """

    _counts: Counter[int] = Counter()

    def survey(self, texts: Iterable[Sequence[int]]) -> None:
        """Count the tokens, if the heads know frequent ones alone."""
        if self.settings.frequent is not None:
            self._counts = count_tokens(texts)

    def ask(self, dims: Dims) -> Mapping[Side, Ask]:
        return {"student" if self.settings.states is None else "teacher": Ask(response=True)}

    def build(self, dims: Dims) -> MedusaHeads:
        """The heads, not yet begun."""
        vocab, known = dims.student.vocab, self.settings.frequent
        tokens = None if known is None or known >= vocab else frequent_tokens(self._counts, known, vocab)
        return MedusaHeads(dims.student.hidden, vocab, self.settings.heads, tokens)

    def initialise(self, module: nn.Module, student: Signals, teacher: Signals | None, batch: Batch) -> None:
        """Begin as the output layer."""
        assert isinstance(module, MedusaHeads)
        head = self._head(student, teacher)
        if head is None:
            raise ModelError(
                "Medusa heads read the state before the output layer, which cannot be taken apart here",
                fix="use a draft of the target's layers: {kind: layers, layers: 2}",
            )
        module.start_from(head.weight, head.scale)

    def _head(self, student: Signals, teacher: Signals | None) -> Head | None:
        """The states and the output layer: the student's, or stored ones."""
        if self.settings.states is None:
            return student.head
        return None if teacher is None else teacher.head

    def __call__(
        self, student: Signals, teacher: Signals | None, batch: Batch, module: nn.Module | None = None
    ) -> Term:
        head = self._head(student, teacher)
        assert isinstance(module, MedusaHeads) and head is not None
        states = head.hidden.to(next(module.parameters()).dtype)
        values = torch.zeros(len(batch.target_ids), device=batch.target_ids.device)
        metrics: dict[str, Tensor] = {}
        for number, logits in enumerate(module(states), 1):
            labels = _labels(batch, number)
            labels = torch.where(labels >= 0, module.rows_of(labels.clamp_min(0)), -1)
            loss = nn.functional.cross_entropy(widened(logits), labels, ignore_index=-1, reduction="none")
            values = values + self.settings.decay**number * loss
            metrics[f"head_{number}_accuracy"] = (logits.detach().argmax(-1) == labels).sum()
        return Term(values, metrics)


def _labels(batch: Batch, behind: int) -> Tensor:
    """The token `behind` places after each target's own [N]; −1 where it is not learned."""
    view, positions = batch.text("student"), batch.target_positions["student"]
    length = view.input_ids.shape[1]
    numbers = torch.full((view.input_ids.numel() + behind,), -1, device=positions.device)
    numbers[positions] = torch.arange(len(positions), device=positions.device)
    segments = view.segment_ids.flatten()
    later = positions + behind
    there = numbers[later]
    inside = (positions % length + behind < length) & (there >= 0)
    inside &= segments[positions] == segments[later.clamp_max(len(segments) - 1)]
    return torch.where(inside, batch.target_ids[there.clamp_min(0)], -1)

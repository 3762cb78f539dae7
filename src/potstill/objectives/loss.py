"""The loss of one micro-batch: Σ weight · Σ values ÷ count, divided by each objective's count over the whole step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from potstill.objectives.base import DirectObjective, Objective, VocabularyObjective
from potstill.objectives.sweep.engine import fused_sweep
from potstill.recipe.schedules import value_at
from potstill.signals import Batch, Dense, Head, Signals, Sparse


@dataclass(frozen=True)
class Loss:
    """The loss of one micro-batch, and its parts.

    Attributes:
        total: Σ weight · Σ values ÷ count, this micro-batch's share of the global loss; differentiable.
        sums: Σ values per objective, without weight and count; detached.
        metrics: by name, each a **sum over this batch's targets**; detached. `student_cut_mass` and `teacher_cut_mass`
            exist if the heads have different numbers of rows.
    """

    total: Float[Tensor, ""]
    sums: Float[Tensor, " objectives"]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


def total_loss(
    objectives: Sequence[Objective[Any]],
    student: Signals,
    teacher: Signals | None,
    batch: Batch,
    counts: Shaped[Tensor, " objectives"],
    modules: Sequence[nn.Module | None] | None = None,
    progress: float = 0.0,
    tokens: Int[Tensor, " K"] | None = None,
) -> Loss:
    """Run all vocabulary objectives in one sweep and the others one by one.

    Args:
        counts: the divisor of each objective over the *global* batch (all micro-batches of the step, all ranks); an
            objective whose count is 0 contributes 0.
        modules: from `build` of each objective.
        progress: of training, in [0, 1], for weights and temperatures that change.
        tokens: ascending ids; vocabulary objectives then are over these alone, as if both models had no others, and a
            target that is another token has no loss (it still counts). None is all.

    Raises:
        ValueError: the student gives neither `Head` nor `Dense`, a teacher is needed and there is none, or it has no
            logits that can be cut to `tokens`.
    """
    modules = modules if modules is not None else [None] * len(objectives)
    counts = counts.to(batch.target_ids.device)
    weights = torch.tensor([value_at(o.settings.weight, progress) for o in objectives], device=counts.device)
    coefficients = torch.where(counts > 0, weights / counts.clamp(min=1), torch.zeros_like(weights))
    sums: list[Tensor | None] = [None] * len(objectives)
    terms: list[Tensor] = []
    metrics: dict[str, Tensor] = {}

    vocabulary = [(i, o) for i, o in enumerate(objectives) if isinstance(o, VocabularyObjective)]
    if vocabulary:
        ours, theirs, wanted = _response(student), _teacher_response(teacher), batch.target_ids
        weighed = batch.target_weights
        if tokens is not None:
            ours, theirs, wanted, weighed = _cut(ours, theirs, wanted, weighed, tokens)
        rules = [(o.row_rule(progress), _per_target(coefficients[i], weighed)) for i, o in vocabulary]
        swept = fused_sweep(ours, theirs, wanted, rules)
        terms.append(swept.loss)
        for row, (i, _) in enumerate(vocabulary):
            sums[i] = swept.values[row].sum()
        for name in ("student_cut_mass", "teacher_cut_mass"):
            mass = getattr(swept, name)
            if mass is not None:
                metrics[name] = mass.sum()
    for i, objective in enumerate(objectives):
        if isinstance(objective, DirectObjective):
            # Values and learned projections are in fp32, whatever the models' dtype (see `base.widened`).
            with torch.autocast(batch.target_ids.device.type, enabled=False):
                term = objective(student, teacher, batch, modules[i])
            summed = term.values.sum()
            terms.append(summed * coefficients[i])
            sums[i] = summed.detach()
            metrics |= {name: value.detach() for name, value in term.metrics.items()}
    held = [s for s in sums if s is not None]
    return Loss(torch.stack(terms).sum(), torch.stack(held), metrics)


def _cut(
    student: Head | Dense,
    teacher: Head | Dense | Sparse | None,
    target_ids: Int[Tensor, " N"],
    weights: Float[Tensor, " N"] | None,
    tokens: Int[Tensor, " K"],
) -> tuple[Head | Dense, Head | Dense | None, Int[Tensor, " n"], Float[Tensor, " n"] | None]:
    """What a sweep takes, of the targets that are among some tokens, and of these tokens alone."""
    if isinstance(teacher, Sparse):
        raise ValueError("a sample of the teacher's distribution has no logits that could be cut to some tokens")
    at = torch.searchsorted(tokens, target_ids).clamp_max(len(tokens) - 1)
    (rows,) = (tokens[at] == target_ids).nonzero(as_tuple=True)
    return (
        student.part(rows, tokens),
        None if teacher is None else teacher.part(rows, tokens),
        at[rows],
        None if weights is None else weights[rows],
    )


def _per_target(coefficient: Tensor, weights: Float[Tensor, " N"] | None) -> Tensor:
    """The coefficient of an objective, per target [N] where the batch weighs its targets."""
    return coefficient if weights is None else coefficient * weights


def _response(student: Signals) -> Head | Dense:
    response = student.head or student.dense
    if response is None:
        raise ValueError("the student gives neither a head nor dense logits")
    return response


def _teacher_response(teacher: Signals | None) -> Head | Dense | Sparse | None:
    return None if teacher is None else teacher.head or teacher.dense or teacher.sparse

"""Student and projectors in one module whose forward computes the loss (rule 14).

What is wrapped for several processes is this module, so that the student's weights, the projectors' and the effective
head are used inside the wrapped forward, where the wrapper sees them. The teacher stands aside: it is not registered,
so it is in no state dict, no optimiser and no synchronisation, and `train()` does not reach it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.models.anatomy import dims, unwrap
from potstill.models.live import live_signals
from potstill.objectives import Objective, VocabularyObjective, token_statistics, total_loss
from potstill.recipe import ForwardKL, Needs
from potstill.signals import Batch, Dense, Dims, Head, Signals
from potstill.teachers.base import Teacher

METRIC = "metric/"
"""Prefix of an objective's own metrics among the outputs of `DistillModule.forward`."""


class DistillModule(nn.Module):
    """What `transformers.Trainer` trains.

    Args:
        student: a causal language model in fp32, wrapped by peft or not.
        teacher: what gives the signals; None where no objective needs it.
        objectives: built objectives. Their projectors become submodules, drawn from the current random state.
    """

    def __init__(self, student: nn.Module, teacher: Teacher | None, objectives: Sequence[Objective[Any]]) -> None:
        super().__init__()
        self.student = student
        self.objectives = tuple(objectives)
        self.names = objective_names(objectives)
        self._aside = (teacher,)
        student_dims = dims(student)
        sizes = Dims(student_dims, teacher.dims if teacher is not None else student_dims)
        built = {name: o.build(sizes) for name, o in zip(self.names, objectives, strict=True)}
        self.projectors = nn.ModuleDict({name: module for name, module in built.items() if module is not None})
        self.projectors.to(next(student.parameters()).device)
        needs = [o.settings.needs() for o in objectives]
        self._teacher_needs = [need for need in needs if need.teacher]
        gives = teacher.capabilities if teacher is not None else frozenset()
        self.statistics = ("nll", "kl", "top1_agreement") if gives & {"head", "dense"} else ("nll",)
        self._wants_head = any(isinstance(o, VocabularyObjective) for o in objectives)
        self._tapped = _student_states(needs, student_dims.layers)

    @property
    def teacher(self) -> Teacher | None:
        """The teacher, which is no part of this module."""
        return self._aside[0]

    def forward(self, inputs: Mapping[str, Tensor], counts: Tensor | None = None) -> dict[str, Tensor]:
        """The loss of a micro-batch, or with `counts` None its token statistics.

        Args:
            inputs: what the collator made (see `Batch.from_inputs`).
            counts: [objectives], each objective's count over the whole optimiser step and all processes.

        Returns:
            `loss`, this micro-batch's share of the global loss; `sums` [objectives], Σ values of each; and metrics,
            prefixed. Or, per target token, what `statistics` names: `nll`, and with a teacher `kl` and
            `top1_agreement`.
        """
        batch = Batch.from_inputs(inputs)
        if counts is None:
            return self._token_statistics(batch)
        teacher = self._signals_of_teacher(batch, self._teacher_needs) if self._teacher_needs else None
        student = self._signals_of_student(batch, "head" if self._wants_head else None, self._tapped)
        projectors = dict(self.projectors.items())
        modules = [projectors.get(name) for name in self.names]
        loss = total_loss(self.objectives, student, teacher, batch, counts, modules)
        metrics = {METRIC + name: value for name, value in loss.metrics.items()}
        return {"loss": loss.total, "sums": loss.sums, **metrics}

    def counts(self, batch: Batch) -> Tensor:
        """[objectives] each objective's count of a micro-batch; needs no model."""
        return torch.stack([o.count(batch).long() for o in self.objectives])

    def _token_statistics(self, batch: Batch) -> dict[str, Tensor]:
        taught = None
        if "kl" in self.statistics:
            taught = _response(self._signals_of_teacher(batch, [ForwardKL().needs()]))
        response = _response(self._signals_of_student(batch, "head", ()))
        assert response is not None
        measured = token_statistics(response, taught, batch.target_ids)
        found = (measured.nll_student, measured.kl, measured.top1_agree)
        return {name: values for name, values in zip(self.statistics, found, strict=False) if values is not None}

    def _signals_of_student(self, batch: Batch, want: Any, states: Sequence[int]) -> Signals:
        return live_signals(self.student, batch.student, batch.target_positions["student"], states, want)

    def _signals_of_teacher(self, batch: Batch, needs: Sequence[Needs]) -> Signals:
        assert self.teacher is not None
        return self.teacher.signals(batch, needs)

    # What `transformers.Trainer` and its callbacks ask of a model.

    @property
    def config(self) -> Any:
        """The student's configuration."""
        return self._inner.config

    @property
    def generation_config(self) -> Any:
        """The student's generation configuration."""
        return self._inner.generation_config

    def get_input_embeddings(self) -> nn.Module:
        """The student's token embeddings."""
        return self._inner.get_input_embeddings()

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Recompute the student's activations in the backward pass."""
        self._inner.activation_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """The same, under the name that earlier versions of the library call."""
        self._inner.gradient_checkpointing_enable(*args, **kwargs)

    @property
    def _inner(self) -> PreTrainedModel:
        return unwrap(self.student)


def objective_names(objectives: Sequence[Objective[Any]]) -> tuple[str, ...]:
    """A name for each objective in logs and files: its kind, numbered from the second of a kind on."""
    seen: dict[str, int] = {}
    names = []
    for objective in objectives:
        kind = objective.settings.kind
        seen[kind] = seen.get(kind, 0) + 1
        names.append(kind if seen[kind] == 1 else f"{kind}_{seen[kind]}")
    return tuple(names)


def _student_states(needs: Sequence[Needs], layers: int) -> tuple[int, ...]:
    states: set[int] = set()
    for need in needs:
        if need.hidden == "last":
            states.add(layers)
        elif need.hidden is not None:
            states.update(student for student, _ in need.hidden)
    return tuple(sorted(states))


def _response(signals: Signals) -> Head | Dense | None:
    return signals.head or signals.dense

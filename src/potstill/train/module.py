"""Student and projectors in one module whose forward computes the loss (rule 14).

This module, not the student, is wrapped for several processes, so the student's weights, the projectors' and the
effective head are used inside the wrapped forward, where the wrapper sees them. The teacher is not registered: it is
in no state dict, no optimiser and no synchronisation, and `train()` does not reach it.

`measure_held_out` measures KL, NLL, top-1 agreement and accuracy per held-out target through the same module, without
materialising a batch's logits; for models without logits, the objectives themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import reduce
from operator import or_
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.errors import DataError
from potstill.models.anatomy import dims, unwrap
from potstill.models.live import live_signals
from potstill.models.tasks import task_of
from potstill.models.unchanged import evaluating, unchanged
from potstill.objectives import Objective, token_statistics, total_loss
from potstill.recipe import value_at
from potstill.signals import Ask, Batch, Dense, Dims, Head, Side, Signals
from potstill.tasks import SPECS, Task
from potstill.teachers.base import Teacher, open_modules
from potstill.teachers.stored import StoredTeacher
from potstill.teachers.stored_several import StoredTeachers
from potstill.train.rows import Row, length_of

SIDES: tuple[Side, Side] = ("student", "teacher")

METRIC = "metric/"
"""Prefix of an objective's own metrics among the outputs of `DistillModule.forward`."""


class DistillModule(nn.Module):
    """The model that `transformers.Trainer` trains.

    Args:
        student: a model in fp32: a language model or encoder of `transformers`, wrapped by peft or not, or any module.
        teacher: gives the signals; None if no objective needs one.
        objectives: built objectives. Their projectors become submodules, initialised from the current random state.
        tokens: ascending ids, if the student learns over these alone (see `total_loss`).
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | None,
        objectives: Sequence[Objective[Any]],
        tokens: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        device = next(student.parameters()).device
        self.tokens: Tensor | None
        self.register_buffer("tokens", None if tokens is None else tokens.to(device), persistent=False)
        self.objectives = tuple(objectives)
        self.names = objective_names(objectives)
        self._aside = (teacher,)
        student_dims = dims(student)
        sizes = Dims(student_dims, teacher.dims if teacher is not None else student_dims)
        asks = [o.ask(sizes) for o in objectives]
        self.asks: Mapping[Side, Ask] = {side: reduce(or_, (a.get(side, Ask()) for a in asks)) for side in SIDES}
        built = {name: o.build(sizes) for name, o in zip(self.names, objectives, strict=True)}
        self.projectors = nn.ModuleDict({name: module for name, module in built.items() if module is not None})
        self.projectors.to(device)
        self.progress = 0.0
        self.task = task_of(student)
        self.statistics = _statistics(self.task, teacher)

    @property
    def teacher(self) -> Teacher | None:
        """The teacher, which is no submodule."""
        return self._aside[0]

    def forward(self, inputs: Mapping[str, Tensor], counts: Tensor | None = None) -> dict[str, Tensor]:
        """The loss of a micro-batch, or with `counts` None the statistics of its targets.

        Args:
            inputs: a collated batch (see `Batch.from_inputs`).
            counts: [objectives], each objective's count over the whole optimiser step and all processes.

        Returns:
            `loss`, this micro-batch's share of the global loss; `sums` [objectives], Σ values of each; and metrics,
            with a prefix. Without `counts`: per target the entries of `statistics`: `nll`, with a teacher `kl` and
            `top1_agreement`, and for classes `accuracy`.
        """
        batch = Batch.from_inputs(inputs)
        if counts is None:
            return self._statistics_of(batch)
        teacher = self._signals_of_teacher(batch, self.asks["teacher"])
        student = self._signals_of_student(batch)
        loss = total_loss(self.objectives, student, teacher, batch, counts, self._in_order, self.progress, self.tokens)
        metrics = {METRIC + name: value for name, value in loss.metrics.items()}
        return {"loss": loss.total, "sums": loss.sums, **metrics}

    def counts(self, batch: Batch) -> Tensor:
        """[objectives] each objective's count of a micro-batch; needs no model."""
        return torch.stack([o.count(batch).long() for o in self.objectives])

    def _statistics_of(self, batch: Batch) -> dict[str, Tensor]:
        taught = None
        if "kl" in self.statistics:
            teacher = self._signals_of_teacher(batch, Ask(response=True))
            taught = None if teacher is None else teacher.sparse or _response(teacher)
        response = _response(live_signals(self.student, batch, "student", Ask(response=True)))
        if self.tokens is not None and isinstance(response, Head):
            response = response.only(self.tokens)  # as the student is saved: see `frequent.forget_others`
        measured = token_statistics(response, taught, batch.target_ids)
        found = {"nll": measured.nll_student, "kl": measured.kl, "top1_agreement": measured.top1_agree}
        if "accuracy" in self.statistics:
            assert isinstance(response, Dense)
            found["accuracy"] = response.logits.argmax(-1) == batch.target_ids
        return {name: values for name in self.statistics if (values := found[name]) is not None}

    def initialise_projectors(self, inputs: Mapping[str, Tensor]) -> None:
        """Give projectors the initial weights that their objectives choose, from a first batch (see
        `Objective.initialise`)."""
        if not self.projectors:
            return
        batch = Batch.from_inputs(inputs)
        with torch.no_grad(), evaluating(self.student):
            teacher = self._signals_of_teacher(batch, self.asks["teacher"])
            student = self._signals_of_student(batch)
            for objective, module in zip(self.objectives, self._in_order, strict=True):
                if module is not None:
                    objective.initialise(module, student, teacher, batch)

    @property
    def _in_order(self) -> list[nn.Module | None]:
        projectors = dict(self.projectors.items())
        return [projectors.get(name) for name in self.names]

    def _signals_of_student(self, batch: Batch) -> Signals:
        """Where no objective asks for anything of it (modules alone learn), the student does not run."""
        ask = self.asks["student"]
        return live_signals(self.student, batch, "student", ask) if ask else Signals(dims=dims(self.student))

    def _signals_of_teacher(self, batch: Batch, ask: Ask) -> Signals | None:
        if not ask:
            return None
        if self.teacher is None:
            raise ValueError("an objective needs a teacher, and there is none")
        return self.teacher.signals(batch, ask)

    # Attributes that `transformers.Trainer` and its callbacks read.

    @property
    def config(self) -> Any:
        """The student's configuration; None for a plain module."""
        return getattr(self._inner, "config", None)

    @property
    def generation_config(self) -> Any:
        """The student's generation configuration, if it has one."""
        return getattr(self._inner, "generation_config", None)

    def get_input_embeddings(self) -> nn.Module:
        """The student's token embeddings."""
        inner: Any = self._inner
        embeddings: nn.Module = inner.get_input_embeddings()
        return embeddings

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Recompute the student's activations in the backward pass."""
        inner: Any = self._inner
        inner.activation_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """The same, under the name that earlier versions of `transformers` call."""
        inner: Any = self._inner
        inner.gradient_checkpointing_enable(*args, **kwargs)

    @property
    def _inner(self) -> nn.Module:
        return unwrap(self.student) if isinstance(self.student, (PreTrainedModel, PeftModel)) else self.student


def objective_names(objectives: Sequence[Objective[Any]]) -> tuple[str, ...]:
    """A name for each objective in logs and files: its kind, numbered from the second of a kind on. A plug-in that was
    named by its file has the short name that its settings give it."""
    seen: dict[str, int] = {}
    names = []
    for objective in objectives:
        kind = str(type(objective.settings).model_fields["kind"].default)
        seen[kind] = seen.get(kind, 0) + 1
        names.append(kind if seen[kind] == 1 else f"{kind}_{seen[kind]}")
    return tuple(names)


def _statistics(task: Task, teacher: Teacher | None) -> tuple[str, ...]:
    """The statistics measured per target; none if the student gives no logits."""
    spec = SPECS[task]
    if not spec.has_response:
        return ()
    taught = teacher is not None and bool(teacher.capabilities & {"head", "dense"})
    if isinstance(teacher, (StoredTeacher, StoredTeachers)):
        responds = bool(teacher.capabilities & {"head", "dense", "top_logprobs"})
        taught = responds and teacher.at_temperature in (None, 1.0)  # statistics are at T = 1
    return ("nll", *(("kl", "top1_agreement") if taught else ()), *(("accuracy",) if spec.has_classes else ()))


def _response(signals: Signals) -> Head | Dense:
    response = signals.head or signals.dense
    if response is None:
        raise ValueError("the model gives neither a head nor dense logits")
    return response


# ---- measuring held-out rows -----------------------------------------------------------------------------------------


def batches_by_length(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """Every row once, in batches of similar length, longest first."""
    longest_first = sorted(rows, key=lambda row: -length_of(row))
    return [longest_first[start : start + size] for start in range(0, len(longest_first), size)]


def measure_held_out(
    module: DistillModule,
    wrapped: Any,
    inputs: Iterable[Mapping[str, Any]],
    *,
    precision: Callable[[], AbstractContextManager[Any]],
    sum_over_processes: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """The mean of each of the module's statistics over all targets, and `targets`, their number. A module without
    statistics (a sentence embedding) gives `objectives`, Σ weight · Σ values ÷ count over all rows.

    The module runs without dropout. Measuring changes nothing in the run: modes (rule 8), buffers of student and
    teacher, and random states are as before (see `unchanged`).

    Args:
        wrapped: the module with its wrapper for several processes.
        inputs: the collated batches of this process, on the module's device.
        precision: the autocast context of training.
        sum_over_processes: collective: called once on every process.

    Raises:
        DataError: there are no targets.
    """
    mode = wrapped.training
    totals: Tensor | None = None
    with unchanged(module, *open_modules(module.teacher)):
        try:
            wrapped.eval()
            of_batch = _statistics_of(module, wrapped) if module.statistics else _objectives_of(module, wrapped)
            for batch in inputs:
                with torch.no_grad(), precision():
                    found = of_batch(batch)
                totals = found if totals is None else totals + found
        finally:
            wrapped.training = mode
    if totals is None:  # a process without rows
        totals = torch.zeros(len(module.statistics) + 1 if module.statistics else 2 * len(module.names)).double()
    totals = sum_over_processes(totals)
    if not module.statistics:
        sums, counts = totals.view(2, -1)
        weights = torch.tensor([value_at(o.settings.weight, module.progress) for o in module.objectives])
        return {"objectives": float((weights * sums / counts.clamp(min=1)).sum())}
    targets, *sums_of = totals.tolist()
    if not targets:
        raise DataError("no held-out token is learned, so nothing can be measured", where="eval_dataset")
    return {n: total / targets for n, total in zip(module.statistics, sums_of, strict=True)} | {"targets": targets}


def _statistics_of(module: DistillModule, wrapped: Any) -> Callable[[Mapping[str, Any]], Tensor]:
    def of_batch(inputs: Mapping[str, Any]) -> Tensor:
        found = wrapped(inputs)
        columns = [torch.ones_like(found["nll"]), *(found[name] for name in module.statistics)]
        return torch.stack([column.double().sum().cpu() for column in columns])

    return of_batch


def _objectives_of(module: DistillModule, wrapped: Any) -> Callable[[Mapping[str, Any]], Tensor]:
    def of_batch(inputs: Mapping[str, Any]) -> Tensor:
        counts = module.counts(Batch.from_inputs(inputs))
        sums = wrapped(inputs, torch.ones_like(counts))["sums"]
        return torch.cat([sums.double().cpu(), counts.double().cpu()])

    return of_batch

"""Fidelity of models with a response: per target the NLL of each model, KL(teacher ‖ model) and top-1 agreement; for
classes also the first choice and its probability.

Temperature 1 and fp32, weights and products both, whatever the precision of training or serving. Logits over a
vocabulary exist only for a chunk of rows at a time (`token_statistics`).

One model is in memory at a time. The teacher runs once: the hidden rows of its targets (for classes its logits) are
written to disk, 16 MB for 1,000 targets of width 4,096, and its head is kept, which is all that divergences need.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from potstill.errors import ModelError
from potstill.evaluate.held_out import HeldOut
from potstill.evaluate.scores import Scores
from potstill.models.live import check_head
from potstill.objectives import token_statistics
from potstill.objectives.statistics import OF_BOTH, TEMPERED
from potstill.signals import Ask, Batch, Dense, Head, Side, Sparse
from potstill.tasks import SPECS
from potstill.teachers.base import OpenTeacher, device_of

Advance = Callable[[float], None]
"""Called after each batch with the number of targets measured."""


class Batches:
    """The held-out rows in batches, which become tensors on access.

    Args:
        held_out: the rows.
        tokens_per_batch: size of a batch, padding included.
    """

    def __init__(self, held_out: HeldOut, tokens_per_batch: int) -> None:
        self.held_out = held_out
        self.rows = held_out.batches(tokens_per_batch)
        self.targets = int(held_out.starts[-1])
        self._starts = held_out.starts

    def __len__(self) -> int:
        return len(self.rows)

    def inputs(self, index: int) -> dict[str, Any]:
        """The collated rows of one batch."""
        found: dict[str, Any] = self.held_out.collate([self.held_out.rows[i] for i in self.rows[index]])
        return found

    def batch(self, index: int, device: torch.device) -> Batch:
        """One batch, on a device."""
        return Batch.from_inputs(self.inputs(index), device)

    def numbers(self, index: int) -> NDArray[np.int64]:
        """The indices of a batch's targets among all targets, in the batch's order."""
        return np.concatenate([np.arange(self._starts[i], self._starts[i + 1]) for i in self.rows[index]])


class Responses(Protocol):
    """A teacher's response to each batch."""

    def signal(self, index: int) -> Head | Dense | Sparse:
        """Its side of a batch."""
        ...


_HEAD, _ABOUT_HEAD = "head.safetensors", "head.json"


class TeacherRows:
    """The teacher's response to each batch, after the teacher has left memory.

    Args:
        batches: the held-out rows.
        folder: takes its hidden rows, or its logits over classes.
    """

    def __init__(self, batches: Batches, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._batches, self._folder = batches, folder
        self._whole_logits = SPECS[batches.held_out.task].has_classes
        self._head: Head | None = None
        self._teacher: OpenTeacher | None = None

    def keep(self, teacher: OpenTeacher, index: int, signal: Head | Dense) -> None:
        """Write a batch's rows to disk, and keep the first head, since all are the same. A teacher whose head over a
        vocabulary cannot be taken apart stays in memory, and runs again for each model."""
        if self._whole_logits:
            save_file({"logits": logits_of(signal).contiguous().cpu()}, self._file(index))
        elif isinstance(signal, Dense):
            self._teacher = teacher
        else:
            save_file({"hidden": signal.hidden.contiguous().cpu()}, self._file(index))
            if self._head is None:
                self._head = replace(signal, hidden=signal.hidden[:0].clone())

    def signal(self, index: int) -> Head | Dense:
        """The teacher's side of a batch."""
        if self._whole_logits:
            return Dense(load_file(self._file(index))["logits"])
        if self._teacher is not None:
            return response(self._teacher, self._batches.batch(index, device_of(self._teacher)))
        if self._head is None:
            raise ValueError(f"batch {index} of the teacher was not kept")
        hidden = load_file(self._file(index))["hidden"]
        return replace(self._head, hidden=hidden.to(self._head.weight.device))

    @property
    def can_be_kept(self) -> bool:
        """Whether the rows on disk and the head suffice: not where the teacher itself stays in memory."""
        return self._teacher is None

    def keep_in(self, folder: Path) -> None:
        """Move the rows into a folder, with the head beside them."""
        for index in range(len(self._batches)):
            shutil.move(self._file(index), folder)
        self._folder = folder
        if self._head is not None:
            head = {"weight": self._head.weight.detach(), "hidden": self._head.hidden}
            if self._head.bias is not None:
                head["bias"] = self._head.bias.detach()
            save_file({name: tensor.contiguous().cpu() for name, tensor in head.items()}, folder / _HEAD)
            about = {"softcap": self._head.softcap, "scale": self._head.scale}
            (folder / _ABOUT_HEAD).write_text(json.dumps(about), encoding="utf-8")

    @classmethod
    def kept_in(cls, folder: Path, batches: Batches) -> TeacherRows:
        """The rows that `keep_in` wrote into a folder."""
        rows = cls(batches, folder)
        if (folder / _HEAD).exists():
            about: dict[str, Any] = json.loads((folder / _ABOUT_HEAD).read_text(encoding="utf-8"))
            kept: dict[str, Any] = load_file(folder / _HEAD)
            rows._head = Head(**kept, **about)
        return rows

    def _file(self, index: int) -> Path:
        return self._folder / f"rows-{index:06d}.safetensors"


def response(model: OpenTeacher, batch: Batch) -> Head | Dense:
    """A model's response at the targets of a batch.

    Raises:
        ModelError: it has none (an encoder without a head).
    """
    signals = model.signals(batch, Ask(response=True))
    signal = signals.head if signals.head is not None else signals.dense
    if signal is None:
        raise ModelError("the model gives no response: it has no head")
    return signal


def measure_teacher(
    model: OpenTeacher, batches: Batches, folder: Path, advance: Advance, columns: Sequence[str] = ()
) -> tuple[Scores, TeacherRows]:
    """The teacher's own NLL, and its rows, for comparison with the other models.

    Args:
        model: the teacher, in fp32.
        batches: the held-out rows.
        folder: takes its rows.
        advance: called with progress.
        columns: further values per target (`objectives.statistics.Column`).

    Raises:
        ModelError: some of its losses are not finite.
    """
    rows = TeacherRows(batches, folder)
    return _measure(model, batches, None, "teacher", advance, rows, columns), rows


def measure(
    model: OpenTeacher,
    batches: Batches,
    teacher: Responses | None,
    advance: Advance,
    name: str = "student",
    columns: Sequence[str] = (),
) -> Scores:
    """The scores of one model on all held-out targets.

    Args:
        model: a language model or classifier, in fp32.
        batches: the held-out rows.
        teacher: from `measure_teacher`, or stored; None without a teacher.
        advance: called with progress.
        name: of the model, for messages.
        columns: as for `measure_teacher`.

    Raises:
        ModelError: some of its losses are not finite.
    """
    return _measure(model, batches, teacher, name, advance, None, columns)


def _measure(
    model: OpenTeacher,
    batches: Batches,
    teacher: Responses | None,
    name: str,
    advance: Advance,
    kept: TeacherRows | None,
    columns: Sequence[str],
) -> Scores:
    """Measure all batches. `kept` receives the rows, if given."""
    side: Side = "teacher" if name == "teacher" else "student"

    def respond(index: int) -> tuple[Batch, Head | Dense]:
        batch = batches.batch(index, device_of(model))
        signal = response(model, batch)
        if kept is not None:
            kept.keep(model, index, signal)
        return batch, signal

    with torch.no_grad():
        for module in model.modules:
            check_head(module, batches.batch(0, device_of(model)), side)
    return scores_of(respond, batches, teacher, advance, name, columns)


def scores_of(
    respond: Callable[[int], tuple[Batch, Head | Dense]],
    batches: Batches,
    teacher: Responses | None,
    advance: Advance,
    name: str,
    columns: Sequence[str],
) -> Scores:
    """The scores of a model, from its response to each batch. Arguments and errors otherwise as `measure`; columns that
    need the teacher's whole distribution are left out where the store has none."""
    classes = _Classes(batches.targets) if SPECS[batches.held_out.task].has_classes else None
    nll = np.full(batches.targets, np.nan, dtype=np.float32)
    kl, agree = np.full_like(nll, np.nan), np.zeros(batches.targets, dtype=np.bool_)
    more: dict[str, NDArray[np.float32]] = {}
    with torch.no_grad():
        for index in range(len(batches)):
            (batch, signal), numbers = respond(index), batches.numbers(index)
            told = None if teacher is None else _on(teacher.signal(index), _place(signal))
            targets = batch.target_ids.to(_place(signal))
            asked = [c for c in columns if not (isinstance(told, Sparse) and c in OF_BOTH)]
            statistics = token_statistics(signal, told, targets, asked)
            nll[numbers] = statistics.nll_student.cpu().numpy()
            if statistics.kl is not None and statistics.top1_agree is not None:
                kl[numbers], agree[numbers] = statistics.kl.cpu().numpy(), statistics.top1_agree.cpu().numpy()
            for column, values in statistics.more.items():
                more.setdefault(column, np.full_like(nll, np.nan))[numbers] = values.cpu().numpy()
            if classes is not None:
                classes.add(numbers, logits_of(signal), targets)
            advance(len(numbers))
    check_numbers(nll if teacher is None else nll + kl, name)
    found = with_columns(Scores(nll) if teacher is None else Scores(nll, kl, agree), more)
    return found if classes is None else classes.added_to(found, batches.held_out.target_ids)


def with_columns(scores: Scores, columns: Mapping[str, NDArray[np.float32]]) -> Scores:
    """Scores with further columns."""
    tempered = {float(name.removeprefix(TEMPERED)): v for name, v in columns.items() if name.startswith(TEMPERED)}
    hit = columns.get("hit")
    return replace(
        scores,
        probability=columns.get("probability"),
        hit=None if hit is None else hit > 0.5,
        entropy=columns.get("entropy"),
        collision=columns.get("collision"),
        nll_at=tempered,
        more={name: columns[name] for name in ("reverse_kl", "total_variation") if name in columns},
    )


MOST_CLASSES_KEPT = 100
"""With more classes, probabilities other than of the first choice are not kept."""


class _Classes:
    """The first choice of class, its probability, whether it is right; and all probabilities if classes are few."""

    def __init__(self, targets: int) -> None:
        self.predicted = np.full(targets, -1, dtype=np.int64)
        self.probability = np.full(targets, np.nan, dtype=np.float32)
        self.correct = np.zeros(targets, dtype=np.bool_)
        self.probabilities: NDArray[np.float32] | None = None

    def add(self, numbers: NDArray[np.int64], logits: Tensor, targets: Tensor) -> None:
        softmax = logits.float().softmax(-1)
        probability, predicted = softmax.max(-1)
        if softmax.shape[-1] <= MOST_CLASSES_KEPT:
            if self.probabilities is None:
                self.probabilities = np.full((len(self.predicted), softmax.shape[-1]), np.nan, dtype=np.float32)
            self.probabilities[numbers] = softmax.cpu().numpy()
        self.predicted[numbers], self.probability[numbers] = predicted.cpu().numpy(), probability.cpu().numpy()
        self.correct[numbers] = (predicted == targets).cpu().numpy()

    def added_to(self, scores: Scores, labels: NDArray[np.int64]) -> Scores:
        more = dict(scores.more) if self.probabilities is None else {**scores.more, "classes": self.probabilities}
        return replace(
            scores,
            predicted=self.predicted,
            probability=self.probability,
            correct=self.correct,
            labels=labels,
            more=more,
        )


def logits_of(signal: Head | Dense) -> Tensor:
    """Complete logits, for classes (which are few)."""
    return signal.logits if isinstance(signal, Dense) else signal.logits()


def _on(signal: Head | Dense | Sparse, device: torch.device) -> Head | Dense | Sparse:
    if isinstance(signal, Sparse):
        moved: dict[str, Any] = {n: t.to(device) for n, t in vars(signal).items() if isinstance(t, Tensor)}
        return replace(signal, **moved)
    if isinstance(signal, Dense):
        return Dense(signal.logits.to(device))
    bias = None if signal.bias is None else signal.bias.to(device)
    return replace(signal, hidden=signal.hidden.to(device), weight=signal.weight.to(device), bias=bias)


def _place(signal: Head | Dense) -> torch.device:
    tensor: Tensor = signal.logits if isinstance(signal, Dense) else signal.weight
    return tensor.device


def check_numbers(values: NDArray[np.floating], name: str) -> None:
    """Reject losses that are not finite.

    Raises:
        ModelError: there are some.
    """
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise ModelError(
            f"{wrong:,} of {len(values):,} losses of {name} are not numbers",
            where=name,
            fix="if training diverged, lower train.args.learning_rate; else its weights are damaged",
        )

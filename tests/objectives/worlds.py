"""Small random heads and models of tables, and the objectives that every common claim is tested on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from objectives.tables import TAPPED
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from potstill.objectives import divergences
from potstill.recipe import response
from potstill.recipe.objectives import ObjectiveSettings
from potstill.recipe.schedules import value_at
from potstill.signals import IGNORE, Batch, Head, ModelDims, Signals

RESPONSE: tuple[ObjectiveSettings, ...] = (
    response.ForwardKL(temperature=2.0),
    response.ForwardKL(temperature=0.5, scale_by_temperature_squared=False),
    response.ReverseKL(temperature=2.0),
    response.ReverseKL(temperature=0.5, scale_by_temperature_squared=False),
    response.JSD(),
    response.JSD(beta=0.1, temperature=2.0),
    response.SkewedKL(temperature=2.0),
    response.SkewedKL(alpha=0.7, temperature=0.5, scale_by_temperature_squared=False),
    response.SkewedReverseKL(temperature=2.0),
    response.SkewedReverseKL(alpha=0.7, temperature=0.5, scale_by_temperature_squared=False),
    response.TotalVariation(temperature=2.0),
    response.Acceptance(),
    response.Acceptance(temperature=2.0),
    response.SoftCE(temperature=2.0),
    response.LogitMSE(),
    response.DecoupledKD(temperature=4.0),
    response.DecoupledKD(alpha=0.5, beta=2.0, scale_by_temperature_squared=False),
    response.HardCE(),
)
"""Every objective on the response, some of them in several settings."""

EVERY: tuple[ObjectiveSettings, ...] = (
    *RESPONSE,
    *TAPPED,
)
"""What every objective is held to (`test_loss.py`). A new kind goes here, and its common claims are tested."""


@dataclass(frozen=True)
class World:
    """A student and a teacher head over the same rows, and their targets."""

    student: Head
    teacher: Head
    target_ids: Tensor

    def leaves(self) -> list[Tensor]:
        return [t for t in (self.student.hidden, self.student.weight, self.student.bias) if t is not None]

    def rows(self, keep: slice | Tensor) -> World:
        """Only some rows."""
        return World(
            replace(self.student, hidden=self.student.hidden[keep]),
            replace(self.teacher, hidden=self.teacher.hidden[keep]),
            self.target_ids[keep],
        )


def make_world(
    rows: int = 23,
    vocab: int = 37,
    width: int = 8,
    *,
    teacher_vocab: int | None = None,
    teacher_width: int | None = None,
    bias: bool = False,
    softcap: float | None = None,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> World:
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen, dtype=torch.float64).to(dtype)

    teacher_vocab, teacher_width = teacher_vocab or vocab, teacher_width or width
    student = Head(
        normal(rows, width).requires_grad_(),
        normal(vocab, width).requires_grad_(),
        normal(vocab).requires_grad_() if bias else None,
        softcap,
        scale,
    )
    teacher = Head(
        normal(rows, teacher_width),
        normal(teacher_vocab, teacher_width),
        normal(teacher_vocab) if bias else None,
        softcap,
    )
    target_ids = torch.randint(0, min(vocab, teacher_vocab), (rows,), generator=gen)
    return World(student, teacher, target_ids)


def reference(
    settings: ObjectiveSettings, student_logits: Tensor, teacher_logits: Tensor, target_ids: Tensor
) -> Tensor:
    """Values per row of a response objective from whole logits, as `divergences.py` writes it."""
    if isinstance(settings, response.HardCE):
        return divergences.hard_ce(student_logits, target_ids)
    if isinstance(settings, response.LogitMSE):
        return divergences.logit_mse(student_logits, teacher_logits)
    assert isinstance(settings, response.SoftSettings)
    own: dict[str, Any] = {name: getattr(settings, name) for name in ("alpha", "beta") if hasattr(settings, name)}
    own["temperature"] = value_at(settings.temperature, 0.0)
    own["scale_by_temperature_squared"] = settings.scale_by_temperature_squared
    function: Callable[..., Tensor] = getattr(divergences, settings.kind)
    if isinstance(settings, response.DecoupledKD):
        return function(student_logits, teacher_logits, target_ids, **own)
    return function(student_logits, teacher_logits, **own)


class Pair:
    """A student and a teacher whose "models" are tables of inner tensors, and a head on the last hidden state.

    Two layers of width 4 and two attention heads of width 3 over the batch of `make_batch`; `leaves` are the student's.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, teacher_vocab: int = 11) -> None:
        gen = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=gen, dtype=torch.float64).to(dtype)

        def tables() -> dict[str, Tensor]:
            hidden = {f"hidden.{k}": normal(2, 6, 4) for k in range(3)}
            attention = {f"{part}.{k}": normal(2, 2, 6, 3) for part in ("queries", "keys", "values") for k in range(2)}
            return {**hidden, **attention, "module:conv": normal(2, 3, 4, 4), "module:mlp": normal(2, 6, 5)}

        self.tables = {"student": tables(), "teacher": tables()}
        self.weights = {"student": normal(11, 4).requires_grad_(), "teacher": normal(teacher_vocab, 4)}
        for table in self.tables["student"].values():
            table.requires_grad_()

    @property
    def states(self) -> Tensor:
        """The student's last hidden states [2,6,4]."""
        return self.tables["student"]["hidden.2"]

    @property
    def aims(self) -> Tensor:
        """The teacher's."""
        return self.tables["teacher"]["hidden.2"]

    @property
    def leaves(self) -> list[Tensor]:
        """All that a gradient may go to: the student's tables, and the weight of its head."""
        return [*self.tables["student"].values(), self.weights["student"]]

    def signals(self, batch: Batch, rows: slice = slice(None)) -> tuple[Signals, Signals]:
        """What student and teacher give for a batch made of some rows of `make_batch`."""
        given = []
        for side in ("student", "teacher"):
            taps = {name: table[rows] for name, table in self.tables[side].items()}
            weight = self.weights[side]
            head = Head(taps["hidden.2"].flatten(0, 1)[batch.target_positions["student"]], weight)
            dims = ModelDims(weight.shape[0], hidden=4, layers=2, heads=2, kv_heads=2)
            given.append(Signals(head=head, taps=taps, dims=dims))
        return given[0], given[1]

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Of a loss with respect to all leaves; zeros where it does not reach."""
        return list(torch.autograd.grad(loss, self.leaves, retain_graph=True, materialize_grads=True))


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Relative L2 error, in fp64; 0 where both are zero."""
    got, expected = got.detach().double(), expected.detach().double()
    error = (got - expected).norm().item()
    return error / expected.norm().item() if error else 0.0


def make_batch(labels: Tensor | None = None) -> Batch:
    """Two rows of six tokens over eleven words, the second with two of padding; five targets unless `labels` [2,6] say
    otherwise."""
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 0, 0]])
    if labels is None:
        labels = torch.tensor([[IGNORE, IGNORE, 3, 4, 5, 6], [IGNORE, IGNORE, IGNORE, 10, IGNORE, IGNORE]])
    segments = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    positions = torch.arange(6).repeat(2, 1)
    return Batch.from_inputs({"input_ids": ids, "labels": labels, "position_ids": positions, "segment_ids": segments})


@contextmanager
def recorded() -> Iterator[tuple[Counter[str], list[int]]]:
    """Counts operations by name, and notes the size of every tensor made or written."""
    operations: Counter[str] = Counter()
    sizes: list[int] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            operations[func.overloadpacket.__name__] += 1
            sizes.extend(
                t.numel() for t in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(t, Tensor)
            )
            return result

    with Recorder():
        yield operations, sizes


def products(operations: Counter[str]) -> int:
    """How many matrix products were computed."""
    return operations["mm"] + operations["addmm"] + operations["addmm_"]

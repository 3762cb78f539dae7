"""Small random heads, and the loss that whole logits give for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from potstill.signals import IGNORE, Batch, Head


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


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Relative L2 error, in fp64."""
    got, expected = got.detach().double(), expected.detach().double()
    return ((got - expected).norm() / expected.norm()).item()


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

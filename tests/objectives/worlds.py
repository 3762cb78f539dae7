"""Small random heads, and the loss that whole logits give for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from potstill.signals import Head


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

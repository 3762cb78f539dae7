"""Training: `DistillTrainer` on `transformers.Trainer`, and the stage around it.

`DistillTrainer` is loaded on first use, so that the stage's key can be computed without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.train.trainer import DistillTrainer

__all__ = ["DistillTrainer"]


def __getattr__(name: str) -> Any:
    if name == "DistillTrainer":
        from potstill.train.trainer import DistillTrainer

        return DistillTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

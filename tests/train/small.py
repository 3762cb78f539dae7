"""A tiny teacher, a tiny student, some conversations, and a `DistillTrainer` over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from potstill.train import DistillTrainer
from tiny_models import make_tiny_tokenizer, tiny_model

WORDS = "the still runs slow and what comes over is never quite what went in".split()
THREE = (
    {"kind": "forward_kl", "weight": 2.0, "temperature": 2.0},
    {"kind": "hard_ce", "weight": 1.0},
    {"kind": "hidden_cosine", "weight": 1.5, "over": "tokens"},
)


def conversations(n: int) -> list[dict[str, Any]]:
    """`n` short conversations of unequal lengths."""
    answers = [" ".join(WORDS[(i * 3) % 7 :][: 1 + i % 6]) for i in range(n)]
    return [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": answer}]}
        for i, answer in enumerate(answers)
    ]


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    """Plain SGD without clipping on the CPU, no saving, no logging but what is asked for."""
    settings: dict[str, Any] = {
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return TrainingArguments(str(folder), **settings | changes)


def trainer(
    folder: Path,
    *,
    objectives: Sequence[dict[str, Any]] = THREE,
    rows: Any = None,
    student: nn.Module | None = None,
    teacher: Any = None,
    callbacks: list[TrainerCallback] | None = None,
    trainer_settings: dict[str, Any] | None = None,
    **changes: Any,
) -> DistillTrainer:
    """A trainer whose teacher is wider than its student, so that there is a projector to learn."""
    return DistillTrainer(
        model=student if student is not None else tiny_model(layers=2, seed=1),
        teacher=teacher if teacher is not None else tiny_model(layers=3, hidden=48, seed=2),
        args=arguments(folder, **changes),
        objectives=objectives,
        train_dataset=conversations(22) if rows is None else rows,
        processing_class=make_tiny_tokenizer(),
        callbacks=callbacks,
        **trainer_settings or {},
    )


class Gradients(TrainerCallback):
    """Keeps the gradients of every optimiser step, as the optimiser sees them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest relative L2 error over the tensors of two gradients (or sets of weights)."""
    assert ours.keys() == theirs.keys()
    errors = [
        float((ours[name].double() - theirs[name].double()).norm() / theirs[name].double().norm().clamp(min=1e-30))
        for name in ours
    ]
    return max(errors)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's parameters by name."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}

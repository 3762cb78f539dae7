"""Rule 14: whatever the head is, loss and gradients are those of naive logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from train.small import Gradients, largest_difference, trainer
from transformers import PreTrainedModel

from tiny_models import Family, tiny_model

OBJECTIVES = ({"kind": "forward_kl", "weight": 2.0, "temperature": 2.0}, {"kind": "hard_ce"})


def lora_on_the_head(tied: bool) -> nn.Module:
    student = get_peft_model(
        tiny_model(layers=2, seed=1, tied=tied),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "lm_head"]),
    )
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:  # zero at first, and then nothing of it would be seen
                parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(5))
    return student


STUDENTS: dict[str, Any] = {
    "tied": lambda: tiny_model(layers=2, seed=1, tied=True),
    "untied": lambda: tiny_model(layers=2, seed=1, tied=False),
    "lora on the head": lambda: lora_on_the_head(tied=False),
    "lora on a tied head": lambda: lora_on_the_head(tied=True),
    "soft-capped (gemma2)": lambda: tiny_model("gemma2", layers=2, seed=1),
    "scaled (cohere)": lambda: tiny_model("cohere", layers=2, seed=1),
    "scaled (granite)": lambda: tiny_model("granite", layers=2, seed=1),
    "gpt2": lambda: tiny_model("gpt2", layers=2, seed=1),
}


def teacher_of(name: str) -> PreTrainedModel:
    families: dict[str, Family] = {"soft": "gemma2", "scaled (c": "cohere", "scaled (g": "granite"}
    family = next((family for start, family in families.items() if name.startswith(start)), "qwen2")
    return tiny_model(family, layers=3, hidden=48, seed=2)


def naive(student: nn.Module, teacher: nn.Module, rows: list[Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients from whole logits, row by row."""
    student.train()
    total = torch.zeros(())
    count = sum(len(row.learned) for row in rows)
    for row in rows:
        ids = torch.tensor([row.input_ids])
        at = torch.tensor([t - 1 for t in range(1, len(row.labels)) if row.labels[t] != -100])
        q = student(input_ids=ids, use_cache=False).logits[0, at]
        with torch.no_grad():
            p = teacher(input_ids=ids, use_cache=False).logits[0, at]
        soft = (p / 2).softmax(-1) * ((p / 2).log_softmax(-1) - (q / 2).log_softmax(-1))
        total = total + (2 * 4 * soft.sum() + nn.functional.cross_entropy(q, ids[0, at + 1], reduction="sum")) / count
    student.zero_grad()
    total.backward()
    gradients = {f"student.{n}": p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    return float(total.detach()), gradients


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [*((name, False) for name in STUDENTS), ("tied", True), ("lora on the head", True)],
)
def test_the_loss_is_that_of_naive_logits(tmp_path: Path, name: str, checkpointing: bool) -> None:
    kept = Gradients()
    made = trainer(
        tmp_path, student=STUDENTS[name](), teacher=teacher_of(name), objectives=OBJECTIVES, callbacks=[kept],
        activation_checkpointing=checkpointing, per_device_train_batch_size=8, max_steps=1,
    )  # fmt: skip
    rows = [made.train_rows[i] for i in made.step_source().order(0)[0]]
    loss, gradients = naive(made.student, made.module.teacher.model, rows)
    made.train()
    assert made.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert largest_difference(kept.steps[0], gradients) < 1e-5

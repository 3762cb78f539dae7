"""Two processes that share a step do what one does alone (rules 1 and 14)."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from peft import LoraConfig, get_peft_model
from torch import nn
from train.small import THREE, Gradients, conversations, largest_difference, trainer

from tiny_models import tiny_model

STEPS = 3
ROWS = 17
"""Two steps of 8 and one of a single row, where the second process has none."""


def tied() -> nn.Module:
    return tiny_model(layers=2, seed=1)


def lora() -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    return get_peft_model(tiny_model(layers=2, seed=1, tied=False), config)


def spare() -> nn.Module:
    """A student with a part that no objective reaches: processes must not wait for its gradient."""
    model = tiny_model(layers=2, seed=1)
    model.spare = nn.Linear(3, 3)
    return model


STATES = ({"kind": "hidden_mse", "layers": ((1, 1),), "over": "tokens"},)
"""What does not reach the student's second layer, nor its head."""

CASES = {"tied": (tied, THREE), "lora": (lora, THREE), "spare": (spare, THREE), "states": (tied, STATES)}


def train(folder: Path, batch: int, accumulation: int) -> dict[str, Any]:
    """Gradients of every step, the log, and held-out measures of each case."""
    torch.set_num_threads(1)
    found = {}
    for name, (student, objectives) in CASES.items():
        kept = Gradients()
        made = trainer(
            folder, objectives=objectives, rows=conversations(ROWS), callbacks=[kept],
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            student=student(), max_steps=STEPS,
            learning_rate=0.0,  # so that all compare the gradient at the same weights
        )  # fmt: skip
        made.train()
        found[name] = (kept.steps, made.state.log_history, made.evaluate(conversations(5)))
    return found


def process(rank: int, port: int, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.save(train(Path(folder), 2, 2), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(process, args=(port, str(tmp_path)), nprocs=2, start_method="spawn")
    alone = train(tmp_path, 4, 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    for name in CASES:
        for ours, theirs in zip(first[name][0], second[name][0], strict=True):
            assert largest_difference(ours, theirs) == 0, "the processes drift apart"
        _check_equal(first[name], alone[name])
        assert second[name][2] | {"eval_runtime": 0} == first[name][2] | {"eval_runtime": 0}


def _check_equal(shared: Any, alone: Any) -> None:
    (steps, log, measures), (their_steps, their_log, their_measures) = shared, alone
    assert len(steps) == len(their_steps) == STEPS
    for ours, theirs in zip(steps, their_steps, strict=True):
        named = {name.removeprefix("module."): gradient for name, gradient in ours.items()}
        assert any("projectors" in name for name in named)
        assert largest_difference(named, theirs) <= 1e-6
    for ours, theirs in zip(log[:STEPS], their_log[:STEPS], strict=True):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    for key in ("eval_kl", "eval_nll", "eval_top1_agreement", "eval_targets"):
        assert measures[key] == pytest.approx(their_measures[key], rel=1e-5)

"""Evaluations and logging in the middle of a training leave it as it would have been, byte for byte."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    FakeQuantize,
    HistogramObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from train.small import conversations, trainer
from train.test_tasks import CE, KL, Net, images, made

from potstill.models.unchanged import evaluating
from tiny_models import tiny_model


class Stateful(nn.Module):
    """Base of parts whose forward pass changes something, in either mode, on which later passes depend."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))


class Counter(Stateful):
    """Counts its calls in a plain number."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.01 * self.calls)


class Average(Stateful):
    """A running mean in both modes, in a buffer, in a tensor that is no buffer, and one made on the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.seen.mul_(0.9).add_(0.1 * x.detach().mean())
        self.mean = 0.9 * self.mean + 0.1 * x.detach().abs().mean()
        if not hasattr(self, "first"):
            self.register_buffer("first", x.detach().mean())
            self.begun = float(x.detach().std())
        return x - self.seen + self.mean * self.first + self.begun


class Draws(Stateful):
    """Noise from a generator of its own or a library's, in both modes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.generator = source, torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        drawn: dict[str, Callable[[], Any]] = {
            "python": random.random,
            "numpy": np.random.rand,
            "torch": lambda: torch.rand(()),
            "own": lambda: torch.rand((), generator=self.generator),
        }
        return x * (1 + 0.1 * drawn[self.source]())


PARTS: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.3),
    "alpha dropout": lambda: nn.AlphaDropout(0.3),
    "dropout of channels": lambda: nn.Dropout2d(0.3),
    "randomised ReLU": nn.RReLU,
    "batch norm": lambda: nn.BatchNorm2d(4),
    "batch norm of a cumulative mean": lambda: nn.BatchNorm2d(4, momentum=None),
    "batch norm without statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "batch norm not yet begun": nn.LazyBatchNorm2d,
    "instance norm": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)),
    "spectral norm by hooks": lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 1)),
    "weight norm by hooks": lambda: nn.utils.weight_norm(nn.Conv2d(4, 4, 1)),
    "fake quantisation": lambda: FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=15),
    "fake quantisation of channels": lambda: FakeQuantize(
        MovingAveragePerChannelMinMaxObserver, quant_min=-8, quant_max=7, dtype=torch.qint8, ch_axis=1
    ),
    "histogram observer": HistogramObserver,
    "counter": Counter,
    "averages": Average,
    "Python's numbers": lambda: Draws("python"),
    "NumPy's numbers": lambda: Draws("numpy"),
    "torch's numbers": lambda: Draws("torch"),
    "numbers of its own": lambda: Draws("own"),
}


def net(part: str, seed: int) -> nn.Module:
    """A small network of images with one of the parts."""
    made = Net(4, seed)
    made.insert(1, PARTS[part]())
    if part == "batch norm not yet begun":
        made(torch.zeros(2, 1, 8, 8))
    return made


def trained(student: nn.Module, teacher: nn.Module, folder: Path, **changes: Any) -> dict[str, Tensor]:
    """All that a training leaves: weights, buffers, tensors and numbers of student and teacher, and random states."""
    random.seed(5), np.random.seed(5)
    given = made(folder, student, teacher, [KL, CE], images(12), optim="adamw_torch", **changes)
    given.train()
    found = {"random": torch.get_rng_state(), "python": torch.tensor(random.random())}
    found["numpy"] = torch.tensor(np.random.rand())
    for who, model in (("student", student), ("teacher", teacher)):
        found |= {f"{who}.{name}": value.detach().clone() for name, value in model.state_dict().items()}
        for prefix, module in model.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, (int, float, Tensor)):
                    found[f"{who}.{prefix}.{name}"] = torch.as_tensor(value).detach().clone()
    return found


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return sorted(one.keys() ^ other.keys()) + [
        name for name in one.keys() & other.keys() if not torch.equal(one[name], other[name])
    ]


@pytest.mark.parametrize("part", PARTS)
def test_evaluations_and_logged_gradient_norms_change_nothing_with(part: str, tmp_path: Path) -> None:
    plain = trained(net(part, 1), net(part, 2), tmp_path)
    watched = trained(
        net(part, 1),
        net(part, 2),
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        trainer_settings={"log_gradient_norms": True},
    )
    assert differences(plain, watched) == []


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_evaluation_in_the_middle_leaves_a_language_model_with_dropout_alone(family: str, tmp_path: Path) -> None:
    drops = {"attention_dropout": 0.3} if family == "llama" else {"resid_pdrop": 0.3, "embd_pdrop": 0.3}

    def after(**changes: Any) -> dict[str, Tensor]:
        student = tiny_model(family, layers=2, seed=1, **drops)
        given = trainer(
            tmp_path, student=student, trainer_settings={"eval_dataset": conversations(5)}, max_steps=4, **changes
        )
        given.train()
        return {**given.module.state_dict(), "random": torch.get_rng_state()}

    assert differences(after(), after(eval_strategy="steps", eval_steps=1)) == []


def test_a_look_restores_after_an_exception_and_every_module_its_own_mode() -> None:
    model = net("batch norm", 1).train()
    model[1].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), evaluating(model):
        assert not any(part.training for part in model.modules())
        model[1].train()
        model(torch.randn(4, 1, 8, 8))
        raise KeyboardInterrupt
    assert [part.training for part in model] == [True, False, True, True, True, True]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())

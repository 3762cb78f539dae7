"""Responses on logits that are there in whole, as classifiers have them, against torchdistill, TextBrewer and
transformers: equal, or different by a factor that is shown."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from objectives.worlds import make_world, relative_error
from torch import Tensor

from potstill.objectives import RowRule, fused_sweep
from potstill.objectives.response import ForwardKLRule, HardCERule, LogitMSERule, SoftCERule
from potstill.signals import IGNORE, Dense
from tiny_models import tiny_model

pytestmark = pytest.mark.peers

WORLD = make_world(dtype=torch.float64)
STUDENT = WORLD.student.logits().detach().requires_grad_()
TEACHER = WORLD.teacher.logits().detach()
TARGETS = WORLD.target_ids
AT = 3.0


def assert_equal_to(theirs: Tensor, *rules: tuple[RowRule, float]) -> None:
    """The mean over rows of Σ weight × value, in value and in gradient."""
    rows = TARGETS.shape[0]
    ours = fused_sweep(Dense(STUDENT), Dense(TEACHER), TARGETS, [(rule, weight / rows) for rule, weight in rules])
    torch.testing.assert_close(ours.loss, theirs, rtol=1e-10, atol=0)
    one, two = (torch.autograd.grad(loss, STUDENT)[0] for loss in (ours.loss, theirs))
    assert relative_error(one, two) < 1e-10


def outputs(logits: Tensor) -> dict[str, dict[str, Tensor]]:
    return {"at": {"output": logits}}


def their_kd(torchdistill: ModuleType, alpha: float | None, targets: Tensor | None) -> Tensor:
    loss = torchdistill.KDLoss("at", "output", "at", "output", AT, alpha, None if alpha is not None else 1.0)
    result: Tensor = loss(outputs(STUDENT), outputs(TEACHER), targets)
    return result


def test_torchdistills_kd_loss_is_hard_ce_and_forward_kl_with_t_squared(torchdistill: ModuleType) -> None:
    soft = ForwardKLRule(AT, scale_by_temperature_squared=True)
    assert_equal_to(their_kd(torchdistill, 0.3, TARGETS), (HardCERule(), 0.3), (soft, 0.7))


@pytest.mark.parametrize(("alpha", "targets"), [(0.3, None), (0.0, TARGETS), (None, TARGETS)], ids=str)
def test_without_a_hard_term_torchdistill_leaves_out_t_squared_and_its_weight(
    torchdistill: ModuleType, alpha: float | None, targets: Tensor | None
) -> None:
    # Their docstring has (1 − α) τ² here too; a recipe that drops its labels changes its learning rate by 1/τ².
    assert_equal_to(their_kd(torchdistill, alpha, targets), (ForwardKLRule(AT), 1.0))


def test_textbrewers_cross_entropy_is_soft_ce_without_t_squared(textbrewer: ModuleType) -> None:
    assert_equal_to(textbrewer.kd_ce_loss(STUDENT, TEACHER, AT), (SoftCERule(AT), 1.0))


def test_textbrewers_mse_divides_the_logits_by_t_and_so_the_loss_by_t_squared(textbrewer: ModuleType) -> None:
    assert_equal_to(textbrewer.kd_mse_loss(STUDENT, TEACHER, 1.0), (LogitMSERule(), 1.0))
    assert_equal_to(textbrewer.kd_mse_loss(STUDENT, TEACHER, AT), (LogitMSERule(), AT**-2))


def test_a_language_models_own_loss_in_transformers_is_hard_ce_over_its_targets() -> None:
    # In fp32 on both sides: theirs is, whatever the model's dtype.
    model = tiny_model(seed=3)
    ids = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(7) < torch.tensor([[2], [5], [1]]), IGNORE)
    theirs = model(input_ids=ids, labels=labels)
    shifted = labels[:, 1:]
    kept = shifted != IGNORE
    logits = theirs.logits[:, :-1][kept]
    ours = fused_sweep(Dense(logits), None, shifted[kept], [(HardCERule(), 1 / int(kept.sum()))])
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-6, atol=0)
    parameters = list(model.parameters())
    one, two = (torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (ours.loss, theirs.loss))
    assert all(relative_error(got, expected) < 2e-6 for got, expected in zip(one, two, strict=True))

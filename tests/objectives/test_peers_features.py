"""Feature and relation objectives against other people's: equal, or different for a reason that is shown."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from objectives.tables import LENGTHS, signals, tables, text_batch
from objectives.worlds import relative_error
from torch import Tensor

from potstill.objectives import attention_transfer, hint, rkd_angle, rkd_distance, similarity_preserving
from potstill.objectives.attention import distribution_kl, score_mse, scores_of, visible_pairs
from potstill.recipe.features import HiddenCosine, HiddenMSE
from potstill.registry import build

pytestmark = pytest.mark.peers

IDS = text_batch().text("student").example_ids
MASK = (IDS >= 0).long()
FULL = torch.arange(5)[:, None].expand(5, 6)


def embeddings(seed: int = 0, number: int = 12, width: int = 6) -> Tensor:
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(ours: Tensor, theirs: Tensor, student: Tensor) -> None:
    """Value and gradient."""
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    one, two = (torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (ours, theirs))
    assert relative_error(one, two) < 1e-9


def outputs(tensor: Tensor) -> dict[str, Any]:
    return {"at": {"output": tensor}}


# ---- torchdistill --------------------------------------------------------------------------------------------------


def rkd(torchdistill: ModuleType, distance: float, angle: float, student: Tensor, teacher: Tensor) -> Tensor:
    loss = torchdistill.RKDLoss("at", "at", distance, angle, reduction="mean")
    result: Tensor = loss(outputs(student), outputs(teacher))
    return result


def test_rkd_is_the_authors(torchdistill: ModuleType) -> None:
    # torchdistill's is the authors' code (github.com/lenscloth/RKD, metric/loss.py).
    student, teacher = embeddings(0).requires_grad_(), embeddings(1, width=9)
    assert_same(rkd_distance(student, teacher).mean(), rkd(torchdistill, 1.0, 0.0, student, teacher), student)
    assert_same(rkd_angle(student, teacher).mean(), rkd(torchdistill, 0.0, 1.0, student, teacher), student)


def test_rkd_where_points_coincide(torchdistill: ModuleType) -> None:
    # Theirs sets the distance of points that coincide to 1e-6, which counts among the positive ones in the mean; and a
    # direction of no length gets 1e12 times its gradient.
    student, teacher = embeddings(0), embeddings(1)
    student[1] = student[0]
    student.requires_grad_()
    ours, theirs = rkd_distance(student, teacher).mean(), rkd(torchdistill, 1.0, 0.0, student, teacher)
    pairs = 12 * 11
    assert 1e-4 < abs(ours - theirs) / theirs < 20 / pairs
    (gradient,) = torch.autograd.grad(rkd(torchdistill, 0.0, 1.0, student, teacher), student)
    assert gradient.abs().max() > 1e6
    (gradient,) = torch.autograd.grad(rkd_angle(student, teacher).mean(), student)
    assert gradient.abs().max() < 1


def test_rkd_far_from_the_origin(torchdistill: ModuleType) -> None:
    # |a|² + |b|² − 2a·b cancels: embeddings that share a large mean lose their distances in fp32.
    student, teacher = embeddings(0), embeddings(1)
    expected = rkd_distance(student, teacher).mean()
    far = (student + 1000).float()
    theirs = rkd(torchdistill, 1.0, 0.0, far, teacher.float())
    assert abs(rkd_distance(far, teacher.float()).mean() - expected) / expected < 2e-5
    assert abs(theirs - expected) / expected > 1e-2


def test_similarities_are_divided_by_lengths_and_not_by_sums(torchdistill: ModuleType) -> None:
    # A defect of theirs: the second argument of `normalize`, meant as the axis, is the power. The paper has the
    # L2 norm of a row.
    student, teacher = embeddings(0).requires_grad_(), embeddings(1, width=9)
    theirs = torchdistill.SPKDLoss("at", "at", reduction="batchmean")(outputs(student), outputs(teacher))
    gram = [q @ q.T for q in (student, teacher)]
    by_power = {p: [torch.nn.functional.normalize(g, p, dim=1) for g in gram] for p in (1, 2)}
    squares = {p: (s - t).square().sum() / 12**2 for p, (s, t) in by_power.items()}
    torch.testing.assert_close(theirs, squares[1])
    assert_same(similarity_preserving(student, teacher).mean(), squares[2], student)


def test_attention_transfer_is_their_code_and_not_their_paper(torchdistill: ModuleType) -> None:
    student = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 7, 5, 5, dtype=torch.float64)
    at = {"io": "output", "path": "at"}
    losses = {m: torchdistill.ATLoss({"p": {"student": at, "teacher": at}}, mode=m) for m in ("code", "paper")}
    ours = attention_transfer(student, teacher)
    code = losses["code"](outputs(student), outputs(teacher))
    assert_same(ours.mean(), code, student)
    # Eq. 2 has the length of the difference: the root of the sum of which ours is the mean.
    paper = losses["paper"](outputs(student), outputs(teacher))
    torch.testing.assert_close(paper, (25 * ours).sqrt().mean())


# ---- TextBrewer ----------------------------------------------------------------------------------------------------


def test_hidden_states_are_textbrewers(textbrewer: ModuleType) -> None:
    batch, taps, aims = text_batch(), tables(0), tables(1)
    states = taps["hidden.2"].requires_grad_()
    for settings, theirs in (
        (HiddenMSE(over="tokens"), textbrewer.hid_mse_loss),
        (HiddenCosine(over="tokens"), textbrewer.cos_loss),
    ):
        ours = build(settings)(signals(taps), signals(aims), batch).values.mean()
        assert_same(ours, theirs(states, aims["hidden.2"], MASK), states)


def scores(seed: int) -> Tensor:
    taps = tables(seed)
    return scores_of(taps["queries.0"], taps["keys.0"]).requires_grad_()


def test_attention_scores_without_padding_are_textbrewers(textbrewer: ModuleType) -> None:
    student, teacher = scores(0), scores(1).detach()
    ours = score_mse(student, teacher, FULL, causal=False).mean()
    theirs = textbrewer.att_mse_loss(student, teacher, torch.ones(5, 6))
    assert_same(ours, theirs, student)


def test_textbrewer_weighs_long_texts_more(textbrewer: ModuleType) -> None:
    # Σ over all pairs of the batch over their number, where ours is a mean per example.
    student, teacher = scores(0), scores(1).detach()
    ours = score_mse(student, teacher, IDS, causal=False)
    pairs = torch.tensor(LENGTHS).square()
    theirs = textbrewer.att_mse_loss(student, teacher, MASK)
    assert_same((ours * pairs).sum() / pairs.sum(), theirs, student)
    assert abs(ours.mean() - theirs) / theirs > 0.01


def test_textbrewer_without_a_mask_drops_every_negative_score(textbrewer: ModuleType) -> None:
    # A defect of theirs: −1e-3 where TinyBERT's code has −1e2.
    student, teacher = scores(0), scores(1).detach()
    theirs = textbrewer.att_mse_loss(student, teacher)
    kept = torch.where(student <= -1e-3, 0.0, student) - torch.where(teacher <= -1e-3, 0.0, teacher)
    torch.testing.assert_close(theirs, kept.square().mean())
    assert abs(score_mse(student, teacher, FULL, causal=False).mean() - theirs) / theirs > 0.1


def test_attention_kl_has_the_gradient_of_textbrewers_cross_entropy(textbrewer: ModuleType) -> None:
    student, teacher = scores(0), scores(1).detach()
    ours = distribution_kl(student, teacher, FULL, causal=False).mean()
    theirs = textbrewer.att_ce_loss(student, teacher, torch.ones(5, 6))
    entropy = -(teacher.softmax(-1) * teacher.log_softmax(-1)).sum(-1).mean()
    assert_same(ours, theirs - entropy, student)
    # Of padded texts only if the caller has masked the scores: it takes the softmax over the padding otherwise.
    seen = visible_pairs(IDS, causal=False)[:, None]
    student_masked, teacher_masked = (s.masked_fill(~seen, -1e9) for s in (student, teacher))
    per_example = distribution_kl(student, teacher, IDS, causal=False)
    lengths = torch.tensor(LENGTHS)
    over_tokens = (per_example * lengths).sum() / lengths.sum()
    p = teacher_masked.log_softmax(-1)
    entropy = -((p.exp() * p).sum(-1) * MASK[:, None]).sum() / (2 * MASK.sum())
    assert_same(over_tokens, textbrewer.att_ce_loss(student_masked, teacher_masked, MASK) - entropy, student)
    spilt = textbrewer.att_ce_loss(student, teacher, MASK)
    assert abs(spilt - entropy - over_tokens) / over_tokens > 0.05


# ---- the authors' formulas -----------------------------------------------------------------------------------------


def test_tinyberts_code_counts_the_padding() -> None:
    # It adds −10,000 to masked scores, sets those ≤ −100 to 0 on both sides, and takes the mean over all there is. Rows
    # of padding look at real tokens, so they are compared too. Without padding it is the same as ours.
    student, teacher = scores(0), scores(1).detach()

    def tinybert(mask: Tensor) -> Tensor:
        added = (1.0 - mask[:, None, None, :].double()) * -10000.0
        ours, theirs = (torch.where(s + added <= -1e2, 0.0, s + added) for s in (student, teacher))
        return torch.nn.functional.mse_loss(ours, theirs)

    assert_same(score_mse(student, teacher, FULL, causal=False).mean(), tinybert(torch.ones(5, 6)), student)
    squares = (student - teacher).square() * MASK[:, None, None, :]
    torch.testing.assert_close(tinybert(MASK), squares.mean())
    (gradient,) = torch.autograd.grad(tinybert(MASK), student)
    assert gradient[1, :, 4:].abs().max() > 0  # from tokens that are not there
    (gradient,) = torch.autograd.grad(score_mse(student, teacher, IDS, causal=False).sum(), student)
    assert gradient[1, :, 4:].abs().max() == 0


def test_hints_through_a_regressor_are_mse_of_a_convolution() -> None:
    torch.manual_seed(0)
    student = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    teacher, regressor = torch.randn(4, 7, 5, 5, dtype=torch.float64), torch.nn.Conv2d(3, 7, 1).double()
    mapped = regressor(student)
    assert_same(hint(mapped, teacher).mean(), torch.nn.functional.mse_loss(mapped, teacher), student)

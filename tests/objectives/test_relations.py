"""Distances, angles and similarities within a batch: by hand, where points coincide, and in pieces."""

from __future__ import annotations

import math

import pytest
import torch
from objectives.tables import signals, tables, text_batch
from objectives.worlds import recorded, relative_error

from potstill.objectives import angles, rkd_angle, rkd_distance, similarity_preserving, total_loss
from potstill.objectives.norms import unit
from potstill.objectives.relations import relative_distances
from potstill.recipe.features import Modules
from potstill.recipe.relations import RKDAngle, RKDDistance, SimilarityPreserving
from potstill.registry import build
from potstill.signals import Batch, Dims, ImageView, ModelDims, Signals

EACH = [rkd_distance, rkd_angle, similarity_preserving]
each = pytest.mark.parametrize("relation", EACH, ids=lambda r: r.__name__)


def test_distances_by_hand() -> None:
    line = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 2, 3: their mean is 2
    torch.testing.assert_close(relative_distances(line)[0], torch.tensor([0.0, 0.5, 1.5]))
    corners = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])  # all equal
    # Differences ½, ½ and 0: smooth L1 ⅛, ⅛ and 0, each twice among 9 pairs.
    values = rkd_distance(line, corners)
    torch.testing.assert_close(values, torch.tensor([0.25, 0.125, 0.125]) / 3)
    torch.testing.assert_close(values.mean(), torch.tensor(0.5 / 9))
    torch.testing.assert_close(rkd_distance(5 * line, corners), values)  # scale is divided out


def test_angles_by_hand() -> None:
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # a right angle and two of 45°
    teacher = torch.tensor([[0.0], [1.0], [2.0]])  # on a line: cosines 1, −1, 1
    half = math.sqrt(0.5)
    smooth = [1 - 0.5, (1 + half) - 0.5, (1 - half) ** 2 / 2]
    # As seen from each point twice (i and k change places) among 9 pairs; the others are degenerate.
    torch.testing.assert_close(rkd_angle(student, teacher), 2 * torch.tensor(smooth) / 9)


def test_similarities_by_hand() -> None:
    student, teacher = torch.eye(2), torch.tensor([[1.0], [1.0]])
    half = math.sqrt(0.5)
    expected = ((1 - half) ** 2 + half**2) / 2  # of a row's two
    torch.testing.assert_close(similarity_preserving(student, teacher), torch.tensor([expected, expected]))


@each
def test_gradients_equal_finite_differences(relation) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: relation(s, teacher), (student.requires_grad_(),))


def test_the_gradient_flows_through_the_mean_distance() -> None:
    # Were the mean a constant, growing all distances would pay; since it is not, scale has no gradient.
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 3, requires_grad=True), torch.randn(6, 3)
    (gradient,) = torch.autograd.grad(rkd_distance(student, teacher).sum(), student)
    assert abs((gradient * student).sum()) < 1e-6 < gradient.abs().max()


@each
def test_points_that_coincide_make_no_nan_and_no_huge_gradient(relation) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 3), torch.randn(6, 3)
    student[1] = student[0]
    student[3] = student[2] + 1e-8  # nearer than rounding can tell
    student[4] = 0.0
    student.requires_grad_()
    values = relation(student, teacher)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert values.isfinite().all() and gradient.isfinite().all() and 0 < gradient.abs().max() < 100
    same = torch.ones(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(relation(same, teacher[:4]).sum(), same)
    assert gradient.isfinite().all()
    (gradient,) = torch.autograd.grad(relation(student, torch.ones(6, 3)).sum(), student)
    assert gradient.isfinite().all()


@each
def test_one_example_relates_to_nothing(relation) -> None:  # type: ignore[no-untyped-def]
    student = torch.randn(1, 3, requires_grad=True)
    values = relation(student, torch.randn(1, 5))
    assert values.shape == (1,) and values.abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert gradient.abs().max() < 1e-6
    assert relation(torch.zeros(0, 3), torch.zeros(0, 5)).shape == (0,)


@each
def test_where_the_student_is_the_teacher_turned_and_grown_there_is_nothing_to_learn(relation) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    teacher = torch.randn(6, 4, dtype=torch.float64)
    turned = 3 * teacher @ torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    assert relation(turned, teacher).abs().max() < 1e-12


def test_angles_are_those_of_the_authors_unit_vectors() -> None:
    # In fp32, of points far from the origin and two that are near each other, against differences in fp64.
    torch.manual_seed(0)
    student, teacher = torch.randn(10, 5) + 50, torch.randn(10, 7)
    student[1] = student[0] + 1e-3 * torch.randn(5)
    student.requires_grad_()
    exact = student.detach().double().requires_grad_()
    cosines = []
    for points in (exact, teacher.double()):
        directions = torch.nn.functional.normalize(points[None] - points[:, None], dim=-1)
        cosines.append(directions @ directions.mT)
    expected = torch.nn.functional.smooth_l1_loss(cosines[0], cosines[1])
    loss = rkd_angle(student, teacher).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    one, two = (torch.autograd.grad(value, at)[0] for value, at in ((loss, student), (expected, exact)))
    assert relative_error(one, two) < 1e-6


def test_angles_in_pieces_are_the_angles(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(40, 8, requires_grad=True), torch.randn(40, 6)
    whole = rkd_angle(student, teacher)
    (expected,) = torch.autograd.grad(whole.sum(), student)
    monkeypatch.setattr(angles, "_TILE", 3 * 40 * 40)
    with recorded() as (_, sizes):
        pieces = rkd_angle(student, teacher)
        (gradient,) = torch.autograd.grad(pieces.sum(), student)
    torch.testing.assert_close(pieces, whole)
    assert relative_error(gradient, expected) < 1e-6
    assert max(sizes) <= 3 * 40 * 40 < 40 * 40 * 40


def test_a_vector_of_no_length_has_no_direction_and_no_gradient() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    directions = unit(vectors)
    assert directions.tolist() == [[3 / 5, 4 / 5], [0.0, 0.0]] or torch.allclose(
        directions, torch.tensor([[0.6, 0.8], [0.0, 0.0]])
    )
    (gradient,) = torch.autograd.grad(directions.sum(), vectors)
    assert gradient[1].tolist() == [0.0, 0.0] and gradient[0].abs().max() > 0


def test_over_micro_batches_the_loss_is_the_mean_weighted_by_examples() -> None:
    # Scope batch: each micro-batch relates its own examples; 3 and 2 of them here.
    objective = build(RKDAngle())
    ours, theirs = tables(0), tables(1)
    parts, sums = (slice(0, 3), slice(3, 5)), []
    for rows in parts:
        batch = text_batch((6, 4, 5) if rows.start == 0 else (2, 3), 6)
        cut = [signals({n: t[rows] for n, t in taps.items()}) for taps in (ours, theirs)]
        assert objective.count(batch) == rows.stop - rows.start
        counts = torch.tensor([5])
        sums.append(total_loss([objective], cut[0], cut[1], batch, counts).total)
        mean = objective(*cut, batch).values.mean()
        torch.testing.assert_close(sums[-1], mean * (rows.stop - rows.start) / 5)


def test_a_plain_module_is_asked_for_its_modules() -> None:
    plain = ModelDims(vocab=10, hidden=0, layers=0, heads=0, kv_heads=0)
    at = Modules(student="pool", teacher="layer4.pool")
    for settings in (RKDDistance(at=at), RKDAngle(at=at), SimilarityPreserving(at=at)):
        ask = build(settings).ask(Dims(plain, plain))
        assert ask["student"].taps == {"module:pool"} and ask["teacher"].taps == {"module:layer4.pool"}
    with pytest.raises(Exception, match=r"at: \{student: …, teacher: …\}"):
        build(RKDDistance()).ask(Dims(plain, plain))


def test_images_are_related_by_what_a_module_gives() -> None:
    plain = ModelDims(vocab=10, hidden=0, layers=0, heads=0, kv_heads=0)
    view = ImageView(torch.zeros(5, 1, 8, 8))
    batch = Batch(view, view, torch.zeros(0).long(), {}, "examples")
    maps, vectors = torch.randn(5, 3, 2, 2), torch.randn(5, 7)
    student = Signals(taps={"module:conv": maps}, dims=plain)
    teacher = Signals(taps={"module:pool": vectors}, dims=plain)
    loss = build(RKDDistance(at=Modules(student="conv", teacher="pool")))
    torch.testing.assert_close(loss(student, teacher, batch).values, rkd_distance(maps.flatten(1), vectors))

"""Each objective is divided by its own global count, once; masked tokens are gone; splits change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from objectives.worlds import EVERY, Pair, make_batch, relative_error
from torch import Tensor

from potstill import registry
from potstill.objectives import Objective, fused_sweep, hidden_cosine, total_loss
from potstill.objectives.divergences import forward_kl, hard_ce
from potstill.recipe.features import HiddenCosine
from potstill.recipe.objectives import ObjectiveSettings
from potstill.recipe.response import Acceptance, ForwardKL, HardCE, ReverseKL
from potstill.registry import build
from potstill.signals import IGNORE, Batch, Dense, Signals, Sparse, View

ALL = (ForwardKL(weight=2.0, temperature=2.0), HardCE(weight=0.5), HiddenCosine(weight=3.0, over="tokens"))


def objectives_of(*settings: ObjectiveSettings) -> list[Objective[Any]]:
    return [build(one) for one in settings]


def counts_of(objectives: Sequence[Objective[Any]], *batches: Batch) -> Tensor:
    return torch.stack([sum((o.count(b) for b in batches), torch.tensor(0)) for o in objectives])


def row_of(labels: Tensor, row: int) -> Batch:
    whole = make_batch(labels)
    view = whole.student
    return Batch.from_inputs(
        {
            "input_ids": view.input_ids[row : row + 1],
            "labels": labels[row : row + 1],
            "position_ids": view.position_ids[row : row + 1],
            "segment_ids": view.segment_ids[row : row + 1],
        }
    )


def test_each_objective_is_a_sum_over_its_own_count_times_its_weight() -> None:
    pair, batch, objectives = Pair(), make_batch(), objectives_of(*ALL)
    student, teacher = pair.signals(batch)
    counts = torch.tensor([50, 20, 7])
    loss = total_loss(objectives, student, teacher, batch, counts)
    assert student.head is not None and teacher.head is not None
    kl = forward_kl(student.head.logits(), teacher.head.logits(), 2.0, scale_by_temperature_squared=True).sum()
    ce = hard_ce(student.head.logits(), batch.target_ids).sum()
    kept = batch.positions("tokens", "student")
    cosine = hidden_cosine(pair.states.flatten(0, 1)[kept], pair.aims.flatten(0, 1)[kept]).sum()
    expected = 2.0 * kl / 50 + 0.5 * ce / 20 + 3.0 * cosine / 7
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.sums, torch.stack([kl, ce, cosine]).detach())
    assert not loss.sums.requires_grad
    for got, reference in zip(pair.gradients(loss.total), pair.gradients(expected), strict=True):
        assert relative_error(got, reference) < 1e-6


def test_an_objective_that_counts_nothing_gives_zero_and_no_nan() -> None:
    pair, batch = Pair(), make_batch(torch.full((2, 6), IGNORE))
    objectives = objectives_of(ForwardKL(), HardCE(), HiddenCosine())
    student, teacher = pair.signals(batch)
    counts = counts_of(objectives, batch)
    assert counts.tolist() == [0, 0, 0]
    loss = total_loss(objectives, student, teacher, batch, counts)
    assert loss.total == 0 and loss.sums.tolist() == [0, 0, 0]
    assert all(g.abs().max() == 0 for g in pair.gradients(loss.total))


def test_a_micro_batch_with_few_targets_does_not_weigh_as_much_as_one_with_many() -> None:
    # Rule 1. The rows have 4 targets and 1: a mean of means would weigh the one four times as much.
    labels = torch.tensor([[IGNORE, IGNORE, 3, 4, 5, 6], [IGNORE, IGNORE, IGNORE, 10, IGNORE, IGNORE]])
    pair, objectives, whole = Pair(), objectives_of(*ALL), make_batch(labels)
    parts = [row_of(labels, 0), row_of(labels, 1)]
    counts = counts_of(objectives, *parts)
    assert counts.tolist() == counts_of(objectives, whole).tolist() == [5, 5, 10]
    expected = pair.gradients(total_loss(objectives, *pair.signals(whole), whole, counts).total)
    losses = [
        total_loss(objectives, *pair.signals(part, slice(i, i + 1)), part, counts).total for i, part in enumerate(parts)
    ]
    split = [pair.gradients(loss) for loss in losses]
    for first, second, reference in zip(*split, expected, strict=True):
        assert relative_error(first + second, reference) < 1e-6


def test_every_kind_is_held_to_the_common_claims() -> None:
    shipped = {kind for kind, cls in registry._settings["objectives"].items() if cls.__module__.startswith("potstill.")}
    # Medusa heads learn the targets of later rows, by a module of their own: `test_medusa.py`.
    assert shipped == {settings.kind for settings in EVERY} | {"medusa"}


@pytest.mark.parametrize("settings", [s for s in EVERY if build(s).scope != "batch"], ids=lambda s: s.kind)
def test_one_batch_is_the_same_batch_in_pieces(settings: ObjectiveSettings) -> None:
    labels = torch.tensor([[IGNORE, IGNORE, 3, 4, 5, 6], [IGNORE, IGNORE, IGNORE, 10, IGNORE, IGNORE]])
    pair, objectives, whole = Pair(), objectives_of(settings), make_batch(labels)
    parts = [row_of(labels, 0), row_of(labels, 1)]
    counts = counts_of(objectives, *parts)
    expected = total_loss(objectives, *pair.signals(whole), whole, counts).total
    pieces = [
        total_loss(objectives, *pair.signals(part, slice(i, i + 1)), part, counts) for i, part in enumerate(parts)
    ]
    together = pieces[0].total + pieces[1].total
    torch.testing.assert_close(together, expected)
    assert any(reference.abs().max() > 0 for reference in pair.gradients(expected))
    for got, reference in zip(pair.gradients(together), pair.gradients(expected), strict=True):
        assert relative_error(got, reference) < 1e-6


@pytest.mark.parametrize("settings", [s for s in EVERY if build(s).over == "targets"], ids=lambda s: s.kind)
def test_masked_is_sliced(settings: ObjectiveSettings) -> None:
    # Rule 4: with more labels masked, values are those of the rows that are left, and nothing comes from the others.
    labels = torch.tensor([[IGNORE, 2, 3, IGNORE, 5, 6], [IGNORE, 8, IGNORE, 10, IGNORE, IGNORE]])
    pair, (objective,), masked = Pair(torch.float64), objectives_of(settings), make_batch(labels)
    kept = masked.target_positions["student"]
    gone = torch.ones(12, dtype=torch.bool)
    gone[kept] = False
    count = counts_of([objective], masked)
    assert count == kept.numel() == 6
    loss = total_loss([objective], *pair.signals(masked), masked, count).total
    got = pair.gradients(loss)
    # Sliced: a batch of six examples of one target each, with nothing else in it.
    view = View(torch.zeros(6, 1, dtype=torch.long), torch.zeros(6, 1, dtype=torch.long), torch.ones(6, 1).long())
    rows = {side: torch.arange(6) for side in ("student", "teacher")}
    sliced = Batch(view, view, masked.target_ids, rows)
    given = []
    for signals in pair.signals(masked):
        states = {n: t.flatten(0, 1)[kept][:, None] for n, t in signals.taps.items() if n.startswith("hidden.")}
        given.append(Signals(head=signals.head, taps=states, dims=signals.dims))
    expected = total_loss([objective], given[0], given[1], sliced, count).total
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for gradient, reference in zip(got, pair.gradients(expected), strict=True):
        assert relative_error(gradient, reference) < 1e-12
    assert pair.states.flatten(0, 1)[gone].numel() and got[2].flatten(0, 1)[gone].abs().max() == 0


def test_dense_signals_serve_as_well_as_heads() -> None:
    pair, batch, objectives = Pair(torch.float64), make_batch(), objectives_of(ForwardKL(), HardCE())
    heads = pair.signals(batch)
    dense = [Signals(dense=Dense(s.head.logits())) for s in heads if s.head is not None]
    counts = counts_of(objectives, batch)
    from_heads, from_dense = (total_loss(objectives, *given, batch, counts) for given in (heads, dense))
    torch.testing.assert_close(from_dense.sums, from_heads.sums)
    for got, reference in zip(pair.gradients(from_dense.total), pair.gradients(from_heads.total), strict=True):
        torch.testing.assert_close(got, reference)


def test_the_mass_on_cut_rows_is_a_metric() -> None:
    pair, batch, objectives = Pair(teacher_vocab=16), make_batch(), objectives_of(ForwardKL())
    student, teacher = pair.signals(batch)
    loss = total_loss(objectives, student, teacher, batch, counts_of(objectives, batch))
    assert teacher.head is not None
    expected = torch.softmax(teacher.head.logits(), -1)[:, 11:].sum()
    torch.testing.assert_close(loss.metrics["teacher_cut_mass"], expected)
    assert loss.metrics["student_cut_mass"] == 0


def test_a_student_without_a_response_is_refused() -> None:
    batch, objectives = make_batch(), objectives_of(HardCE())
    with pytest.raises(ValueError, match="neither a head nor dense logits"):
        total_loss(objectives, Signals(), None, batch, torch.tensor([5]))


SOME = torch.tensor([1, 2, 4, 7, 9])


@pytest.mark.parametrize("dense", [False, True], ids=["heads", "dense"])
@pytest.mark.parametrize("settings", [ForwardKL(temperature=2.0), ReverseKL(), Acceptance(), HardCE()], ids=repr)
def test_a_loss_over_some_tokens_is_that_of_models_that_have_no_others(
    settings: ObjectiveSettings, dense: bool
) -> None:
    """And targets that are others have none; the count is still of all."""
    pair, batch, objectives = Pair(), make_batch(), objectives_of(settings)
    student, teacher = pair.signals(batch)
    assert student.head is not None and teacher.head is not None
    if dense:
        student = Signals(dense=Dense(student.head.logits()))
        teacher = Signals(dense=Dense(teacher.head.logits()))
    counts = counts_of(objectives, batch)
    loss = total_loss(objectives, student, teacher, batch, counts, tokens=SOME)

    ours, theirs = pair.signals(batch)
    assert ours.head is not None and theirs.head is not None
    known = [row for row, target in enumerate(batch.target_ids.tolist()) if target in SOME.tolist()]
    assert 0 < len(known) < len(batch.target_ids)
    q, p = ours.head.logits()[known][:, SOME], theirs.head.logits()[known][:, SOME]
    wanted = torch.tensor([SOME.tolist().index(batch.target_ids[row]) for row in known])
    plain = fused_sweep(Dense(q), Dense(p), wanted, [(objectives[0].row_rule(), 1.0 / counts[0])])
    torch.testing.assert_close(loss.total, plain.loss)
    for got, reference in zip(pair.gradients(loss.total), pair.gradients(plain.loss), strict=True):
        assert relative_error(got, reference) < 1e-6


def test_a_sample_of_a_distribution_is_not_cut() -> None:
    pair, batch, objectives = Pair(), make_batch(), objectives_of(ForwardKL())
    student, _ = pair.signals(batch)
    targets = len(batch.target_ids)
    one_each = Sparse(
        torch.arange(targets + 1),
        torch.zeros(targets, dtype=torch.int64),
        torch.ones(targets),
        torch.zeros(targets),
        "unbiased",
    )
    with pytest.raises(ValueError, match="no logits that could be cut"):
        total_loss(objectives, student, Signals(sparse=one_each), batch, counts_of(objectives, batch), tokens=SOME)

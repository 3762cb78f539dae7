"""Claims that every objective on inner tensors is held to: features and relations alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from objectives.tables import LENGTHS, TAPPED, along_time, leaves, packed_batch, signals, tables, text_batch
from objectives.worlds import relative_error
from torch import Tensor

from potstill.objectives import TappedObjective
from potstill.recipe.objectives import ObjectiveSettings
from potstill.registry import build
from potstill.signals import Batch, Dims, Signals

every = pytest.mark.parametrize("settings", TAPPED, ids=lambda s: s.kind)
both_ways = pytest.mark.parametrize("causal", [False, True], ids=["encoder", "causal"])


def mean_of(settings: ObjectiveSettings, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
    """Its loss: Σ values ÷ count."""
    objective = build(settings)
    values = objective(student, teacher, batch).values
    assert values.ndim == 1 and (objective.settings.scope == "token" or len(values) == objective.count(batch))
    return values.sum() / objective.count(batch)


def gradients(loss: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(given.values()), materialize_grads=True)
    return dict(zip(given, found, strict=True))


@every
def test_it_asks_for_what_it_reads(settings: ObjectiveSettings) -> None:
    objective = build(settings)
    assert isinstance(objective, TappedObjective)
    student, teacher = signals(tables(0)), signals(tables(1))
    assert student.dims is not None and teacher.dims is not None
    ask = objective.ask(Dims(student.dims, teacher.dims))
    less = [signals({n: t for n, t in s.taps.items() if n in ask[side].taps}) for s, side in
            ((student, "student"), (teacher, "teacher"))]  # fmt: skip
    batch = text_batch()
    torch.testing.assert_close(objective(*less, batch).values, objective(student, teacher, batch).values)
    for missing in ask["student"].taps:
        short = signals({n: t for n, t in student.taps.items() if n != missing})
        with pytest.raises(ValueError, match=f"the student gives no {missing}; it gives"):
            objective(short, teacher, batch)
    for missing in ask["teacher"].taps:
        short = signals({n: t for n, t in teacher.taps.items() if n != missing})
        with pytest.raises(ValueError, match=f"the teacher gives no {missing}; it gives"):
            objective(student, short, batch)
    with pytest.raises(ValueError, match=f"{settings.kind} needs a teacher"):
        objective(student, None, batch)


@every
@both_ways
def test_its_gradient_equals_finite_differences_and_none_goes_to_the_teacher(
    settings: ObjectiveSettings, causal: bool
) -> None:
    batch, ours, theirs = text_batch(), leaves(tables(0)), leaves(tables(1))
    student, teacher = signals(ours, causal), signals(theirs, causal)
    loss = mean_of(settings, student, teacher, batch)
    found = gradients(loss, ours | {f"teacher {name}": t for name, t in theirs.items()})
    assert all(found[f"teacher {name}"].abs().max() == 0 for name in theirs)
    assert student.dims is not None and teacher.dims is not None
    read = build(settings).ask(Dims(student.dims, teacher.dims))["student"].taps
    torch.manual_seed(0)
    for name in read:
        assert found[name].abs().max() > 0
        for _ in range(2):
            direction, step = torch.randn_like(ours[name]), 1e-6
            ends = []
            for sign in (1, -1):
                moved = {**ours, name: ours[name].detach() + sign * step * direction}
                ends.append(mean_of(settings, signals(moved, causal), teacher, batch).detach())
            slope = (ends[0] - ends[1]) / (2 * step)
            torch.testing.assert_close((found[name] * direction).sum(), slope, rtol=1e-6, atol=1e-9)


@every
def test_a_student_that_is_its_teacher_has_nothing_to_learn(settings: ObjectiveSettings) -> None:
    batch, ours = text_batch(), leaves(tables(0))
    layers: dict[str, Any] = {"layers": "last"} if getattr(settings, "layers", None) == ((1, 2), (2, 1)) else {}
    layers |= {"at": "last"} if getattr(settings, "at", None) == (1, 2) else {}
    layers |= {"teacher_layer": -1} if settings.kind == "minilm_v2" else {}
    same = settings.model_copy(update=layers)
    loss = mean_of(same, signals(ours), signals(tables(0)), batch)
    assert abs(loss) < 1e-12
    assert all(g.abs().max() < 1e-9 for g in gradients(loss, ours).values())
    assert mean_of(settings, signals(ours), signals(tables(1)), batch) > 1e-4


@every
@both_ways
def test_padding_changes_nothing(settings: ObjectiveSettings, causal: bool) -> None:
    def lengthened(table: Tensor, axis: int) -> Tensor:
        shape = list(table.shape)
        shape[axis] = 3
        return torch.cat([table, 1e3 * torch.ones(shape, dtype=table.dtype)], axis)

    def filled(table: Tensor, axis: int) -> Tensor:
        padding = torch.arange(table.shape[axis])[None] >= torch.tensor(LENGTHS)[:, None]
        shape = [len(LENGTHS), *(1,) * (table.ndim - 1)]
        shape[axis] = table.shape[axis]
        return torch.where(padding.view(shape), 1e3, table)

    ours, theirs = leaves(tables(0)), tables(1)
    short, long = text_batch(), text_batch(time=9)
    loss = mean_of(settings, signals(ours, causal), signals(theirs, causal), short)
    other = mean_of(
        settings,
        signals(along_time(along_time(ours, filled), lengthened), causal),
        signals(along_time(along_time(theirs, filled), lengthened), causal),
        long,
    )
    torch.testing.assert_close(other, loss, rtol=1e-12, atol=0)
    one, two = gradients(loss, ours), gradients(other, ours)
    for name in ours:
        assert relative_error(two[name], one[name]) < 1e-12
    # And nothing comes to the padding of the short batch: `filled` cut it off, so equal gradients are 0 there.


@pytest.mark.parametrize("settings", [s for s in TAPPED if "conv" not in repr(s)], ids=lambda s: s.kind)
@both_ways
def test_packed_texts_are_the_texts_themselves(settings: ObjectiveSettings, causal: bool) -> None:
    def packed(table: Tensor, axis: int) -> Tensor:
        return torch.cat([row[None].narrow(axis, 0, n) for row, n in zip(table, LENGTHS, strict=True)], axis)

    ours, theirs = leaves(tables(0)), tables(1)
    loss = mean_of(settings, signals(ours, causal), signals(theirs, causal), text_batch())
    together = mean_of(
        settings, signals(along_time(ours, packed), causal), signals(along_time(theirs, packed), causal), packed_batch()
    )
    torch.testing.assert_close(together, loss, rtol=1e-12, atol=0)
    one, two = gradients(loss, ours), gradients(together, ours)
    for name in ours:
        assert relative_error(two[name], one[name]) < 1e-12


@pytest.mark.parametrize("settings", [s for s in TAPPED if s.scope != "batch"], ids=lambda s: s.kind)
def test_micro_batches_sum_to_the_batch(settings: ObjectiveSettings) -> None:
    # In fp32: a relative L2 error per tensor of 1e-6 at most. Rows of 6 and 4 tokens, then of 5, 2 and 3.
    ours, theirs, objective = leaves(tables(0, torch.float32)), tables(1, torch.float32), build(settings)
    whole = text_batch()
    loss = mean_of(settings, signals(ours), signals(theirs), whole)
    parts = []
    for rows in (slice(0, 2), slice(2, 5)):
        batch = text_batch(LENGTHS[rows], 6)
        if rows.start:
            # Targets go on being every second token of the whole.
            batch = Batch(batch.student, batch.teacher, *_targets(whole, rows))
        cut = [signals({n: t[rows] for n, t in taps.items()}) for taps in (ours, theirs)]
        parts.append((objective(*cut, batch).values.sum(), objective.count(batch)))
    assert sum(int(count) for _, count in parts) == objective.count(whole)
    split = sum((values for values, _ in parts), torch.tensor(0.0)) / objective.count(whole)
    one, two = gradients(loss, ours), gradients(split, ours)
    for name in ours:
        assert relative_error(two[name], one[name]) < 1e-6


def _targets(whole: Batch, rows: slice) -> tuple[Tensor, dict[Any, Tensor]]:
    positions = whole.target_positions["student"]
    kept = positions[(positions >= rows.start * 6) & (positions < rows.stop * 6)] - rows.start * 6
    return torch.zeros_like(kept), {"student": kept, "teacher": kept}


LOSS_ERROR = {torch.float32: 5e-7, torch.bfloat16: 1e-2}
GRADIENT_ERROR = {torch.float32: 1e-6, torch.bfloat16: 1.5e-2}
"""Relative to fp64, of the loss and of each gradient (L2). What bf16 loses is what its inputs lose by rounding: all is
computed in fp32."""


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_in_fp32_and_bf16_it_is_near_the_fp64_reference(settings: ObjectiveSettings, dtype: torch.dtype) -> None:
    batch = text_batch()
    reference, theirs = leaves(tables(0)), tables(1)
    exact = mean_of(settings, signals(reference), signals(theirs), batch)
    expected = gradients(exact, reference)
    ours = leaves({name: table.to(dtype) for name, table in reference.items()})
    loss = mean_of(settings, signals(ours), signals({n: t.to(dtype) for n, t in theirs.items()}), batch)
    assert loss.dtype == torch.float32
    assert abs(loss.double() - exact) / exact < LOSS_ERROR[dtype]
    for name, gradient in gradients(loss, ours).items():
        assert gradient.dtype == dtype
        assert relative_error(gradient, expected[name]) < GRADIENT_ERROR[dtype], name


@every
def test_autocast_changes_nothing(settings: ObjectiveSettings) -> None:
    batch, ours, theirs = text_batch(), signals(tables(0, torch.float32)), signals(tables(1, torch.float32))
    plain = mean_of(settings, ours, theirs, batch)
    with torch.autocast("cpu", torch.bfloat16):
        under = mean_of(settings, ours, theirs, batch)
    torch.testing.assert_close(under, plain, rtol=1e-6, atol=0)

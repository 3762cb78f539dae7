"""Per-token measures equal those of whole logits in fp32, whatever the models' dtype."""

from __future__ import annotations

from dataclasses import replace

import torch
from objectives.worlds import make_world, products, recorded

from potstill.objectives import token_statistics
from potstill.objectives.divergences import forward_kl, hard_ce
from potstill.signals import Head


def in_fp32(head: Head) -> Head:
    return replace(head, hidden=head.hidden.detach().float(), weight=head.weight.detach().float())


def test_measures_equal_whole_logits() -> None:
    world = make_world(50, 301, 16, scale=0.4)
    got = token_statistics(world.student, world.teacher, world.target_ids)
    student, teacher = world.student.logits().detach(), world.teacher.logits()
    torch.testing.assert_close(got.nll_student, hard_ce(student, world.target_ids))
    torch.testing.assert_close(got.nll_teacher, hard_ce(teacher, world.target_ids))
    torch.testing.assert_close(got.kl, forward_kl(student, teacher))
    assert got.top1_agree is not None
    assert torch.equal(got.top1_agree, student.argmax(-1) == teacher.argmax(-1))


def test_bf16_models_under_autocast_are_measured_in_fp32() -> None:
    world = make_world(50, 301, 16, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        got = token_statistics(world.student, world.teacher, world.target_ids)
    student, teacher = (in_fp32(head).logits() for head in (world.student, world.teacher))
    assert got.kl is not None and got.kl.dtype == torch.float32
    torch.testing.assert_close(got.kl, forward_kl(student, teacher))
    torch.testing.assert_close(got.nll_student, hard_ce(student, world.target_ids))


def test_a_model_agrees_with_itself() -> None:
    world = make_world()
    got = token_statistics(world.student, world.student, world.target_ids)
    assert got.kl is not None and got.kl.abs().max() == 0
    assert got.top1_agree is not None and got.top1_agree.all()


def test_over_padded_heads_nll_keeps_all_rows_and_the_comparison_is_over_shared_tokens() -> None:
    world = make_world(60, 12, 4, teacher_vocab=20)
    got = token_statistics(world.student, world.teacher, world.target_ids)
    student, teacher = world.student.logits().detach(), world.teacher.logits()
    torch.testing.assert_close(got.nll_teacher, hard_ce(teacher, world.target_ids))
    torch.testing.assert_close(got.kl, forward_kl(student, teacher))
    assert got.top1_agree is not None
    assert torch.equal(got.top1_agree, student.argmax(-1) == teacher[:, :12].argmax(-1))
    assert (teacher.argmax(-1) >= 12).any()


def test_without_a_teacher_only_the_students_nll_is_measured() -> None:
    world = make_world()
    got = token_statistics(world.student, None, world.target_ids)
    torch.testing.assert_close(got.nll_student, hard_ce(world.student.logits(), world.target_ids).detach())
    assert got.nll_teacher is None and got.kl is None and got.top1_agree is None


def test_measuring_computes_no_gradient_though_grad_mode_is_on() -> None:
    world = make_world()
    with recorded() as (operations, _):
        token_statistics(world.student, world.teacher, world.target_ids)
    assert products(operations) == 2

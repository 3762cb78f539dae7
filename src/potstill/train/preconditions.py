"""Reject settings that would fail silently; warn about the rest."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import TrainingArguments

from potstill.errors import CapabilityError, UserError
from potstill.recipe import ObjectiveSettings
from potstill.recipe.objectives import why_not
from potstill.tasks import Task
from potstill.teachers.base import Teacher

logger = logging.getLogger(__name__)


def refuse_arguments(args: TrainingArguments) -> None:
    """Refuse arguments that the loss cannot honour.

    Raises:
        UserError: one of them is set.
    """
    if args.fp16 or args.fp16_full_eval:
        _refuse(
            "fp16 is not supported: its loss scaling breaks gradients that are made in the forward pass",
            "fp16",
            "use bf16=True, or neither",
        )
    if args.bf16_full_eval:
        _refuse(
            "bf16_full_eval would turn the student's fp32 weights into bf16 for good",
            "bf16_full_eval",
            "leave it out: held-out records are measured with the precision of training, and summed in fp32",
        )
    if args.n_gpu > 1:
        _refuse(
            f"{args.n_gpu} GPUs without a launcher would be driven by nn.DataParallel, which splits a batch after it "
            "has been counted",
            "n_gpu",
            "start one process per GPU: `torchrun --nproc-per-node "
            f"{args.n_gpu} your_script.py`, or choose one GPU with CUDA_VISIBLE_DEVICES=0",
        )
    if args.label_smoothing_factor != 0:
        _refuse(
            "label smoothing has no place beside objectives: they are the loss",
            "label_smoothing_factor",
            "leave it out",
        )
    if args.use_liger_kernel:
        _refuse(
            "use_liger_kernel replaces parts of the model; the losses over the vocabulary are fused already",
            "use_liger_kernel",
            "leave it out",
        )
    if args.fsdp or args.deepspeed:
        _refuse(
            "sharded weights (FSDP, DeepSpeed) are not supported yet: the head is read as one tensor",
            "fsdp" if args.fsdp else "deepspeed",
            "use several processes with torchrun (DDP)",
        )
    if args.torch_compile:
        _refuse(
            "torch_compile does not see through the fused loss",
            "torch_compile",
            "leave it out",
        )
    if args.train_sampling_strategy == "batch_rebalance":
        _refuse(
            "steps are dealt out by length already",
            "train_sampling_strategy",
            "leave it out (rows of like length stand together), or say 'sequential'",
        )


def refuse_metrics(compute_metrics: Any) -> None:
    """Refuse metrics that are computed from a batch's logits.

    Raises:
        UserError: there is one.
    """
    if compute_metrics is not None:
        _refuse(
            "compute_metrics would hold the logits of all held-out tokens in memory",
            "compute_metrics",
            "evaluate() gives KL, NLL and top-1 agreement token by token; `potstill evaluate` gives more",
        )


def check_task(task: Task, objectives: Sequence[ObjectiveSettings]) -> None:
    """Check that the student's task has everything that the objectives read.

    Raises:
        UserError: an objective is impossible; the error names alternatives.
    """
    for objective in objectives:
        if reason := why_not(task, objective):
            raise UserError(reason, where="objectives")


def check_capabilities(objectives: Sequence[ObjectiveSettings], teacher: Teacher | None) -> None:
    """Compare the needs of the objectives with the teacher's capabilities.

    Raises:
        CapabilityError: an objective needs a capability that the teacher lacks.
    """
    able = teacher.capabilities if teacher is not None else frozenset()
    for objective in objectives:
        for alternatives in objective.needs().teacher:
            if alternatives & able:
                continue
            wanted = " or ".join(sorted(alternatives))
            given = ", ".join(sorted(able)) if teacher is not None else "nothing: there is none"
            raise CapabilityError(
                f"{objective.kind} needs a teacher that gives {wanted}; this one gives {given}",
                where="objectives",
                fix=f"give a local teacher, or leave {objective.kind} out",
            )


def say_batch_statistics(student: nn.Module, args: TrainingArguments) -> None:
    """Warn if batch normalisation makes the result depend on how a step is split. Over processes it may be
    synchronised."""
    accumulation, processes = args.gradient_accumulation_steps, args.world_size
    norms = [part for part in student.modules() if isinstance(part, _BatchNorm)]
    apart = [norm for norm in norms if accumulation > 1 or not isinstance(norm, nn.SyncBatchNorm)]
    if apart and accumulation * processes > 1 and args.process_index == 0:
        logger.warning(
            "the student normalises by the statistics of a micro-batch (batch normalisation), so splitting a step into "
            "%d changes what is learned",
            accumulation * processes,
        )


def _refuse(what: str, argument: str, fix: str) -> None:
    where = argument if argument == "compute_metrics" else f"TrainingArguments.{argument}"
    raise UserError(what, where=where, fix=fix)

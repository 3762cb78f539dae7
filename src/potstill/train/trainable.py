"""The parameters that are trained: those that a stage does not freeze, and that its objectives reach."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.errors import RecipeError, UserError, did_you_mean
from potstill.models.unchanged import evaluating
from potstill.signals import Batch
from potstill.train.module import DistillModule


def matching(model: nn.Module, patterns: Sequence[str], where: str) -> list[str]:
    """The names of the parameters that any pattern matches (`*` matches anything, dots too).

    Raises:
        RecipeError: a pattern matches none.
    """
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatchcase(name, pattern)}
        if not hits:
            raise RecipeError(
                f"{pattern!r} matches no parameter{_nearest(pattern, names)}",
                where=where,
                fix="give names of parameters; * stands for anything, dots too (model.embed_tokens.*)",
            )
        found |= hits
    return [name for name in names if name in found]


def _nearest(pattern: str, names: Sequence[str]) -> str:
    """The nearest name, with its layer as `*` if the pattern has one; else how names begin."""
    known = {re.sub(r"\.\d+\.", ".*.", name) for name in names} if "*" in pattern else set(names)
    near = did_you_mean(pattern, known | {f"{name.rpartition('.')[0]}.*" for name in known})
    if near.startswith("; did you mean"):
        return near
    begins = sorted({".".join(name.split(".")[:2]) for name in names})
    return f"; names begin with {', '.join(begins[:12])}"


@contextmanager
def frozen(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Freeze some parameters within the context; each is restored afterwards."""
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].requires_grad for name in names}
    for name in names:
        parameters[name].requires_grad_(False)
    try:
        yield
    finally:
        for name, learns in before.items():
            parameters[name].requires_grad_(learns)


def unreached(module: DistillModule, inputs: Mapping[str, Tensor]) -> list[str]:
    """The names of the parameters that get no gradient from the module's objectives on a batch: layers above the
    matched state, say, and the head. Weights and modes are unchanged.

    Raises:
        UserError: none of the student's gets one, and no module that is trained along is a result.
    """
    learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
    counts = module.counts(Batch.from_inputs(inputs))
    with evaluating(module), torch.enable_grad():
        loss = module(inputs, counts)["loss"]
        gradients = (
            torch.autograd.grad(loss, list(learning.values()), allow_unused=True)
            if loss.requires_grad
            else (None,) * len(learning)
        )
    reached = {name for name, gradient in zip(learning, gradients, strict=True) if gradient is not None}
    alone = any(objective.settings.trains_alone for objective in module.objectives)
    if not alone and not any(name.startswith("student.") for name in reached):
        raise UserError(
            "nothing learns: every parameter of the student that the objectives reach is frozen",
            where="objectives",
            fix="freeze fewer parameters, or add an objective that reaches others",
        )
    return [name for name in learning if name not in reached]


def has_experts(model: nn.Module) -> bool:
    """Whether a model has experts with their own weights, which get no gradient if no token chooses them."""
    return any(re.search(r"(^|\.)experts\.\w*\d+\.", name) for name, _ in model.named_parameters())


def may_leave_out(module: DistillModule, inputs: Mapping[str, Tensor]) -> bool:
    """Whether a step may leave a parameter without gradient: this batch does, or the student has experts."""
    return has_experts(module.student) or bool(unreached(module, inputs))


def initialise(model: nn.Module, names: Sequence[str], seed: int) -> None:
    """Give some parameters fresh weights, by their family's initialisation. The caller's random state is unchanged.

    Raises:
        RecipeError: a parameter whose module does not say how it is initialised.
    """
    wanted = set(names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for prefix, part in model.named_modules():
            own = {f"{prefix}.{name}" if prefix else name: p for name, p in part.named_parameters(recurse=False)}
            chosen = own.keys() & wanted
            if not chosen:
                continue
            kept = {name: p.detach().clone() for name, p in own.items() if name not in chosen}
            _reset(model, part, prefix)
            with torch.no_grad():
                for name, value in kept.items():
                    own[name].copy_(value)


def _reset(model: nn.Module, part: nn.Module, name: str) -> None:
    inside: Any = part
    if isinstance(model, PreTrainedModel):
        # `transformers` marks initialised parameters, and would skip them.
        for marked in (part, *part.parameters(recurse=False)):
            if hasattr(marked, "_is_hf_initialized"):
                del marked._is_hf_initialized
        with torch.no_grad():
            model._init_weights(part)
    elif callable(getattr(part, "reset_parameters", None)):
        inside.reset_parameters()
    else:
        raise RecipeError(
            f"{name} ({type(part).__name__}) does not say how it is initialised",
            where="train.stages.initialise",
            fix="give it a method reset_parameters(), or name the modules inside it",
        )

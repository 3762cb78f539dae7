"""What the benchmark of the distillation loss compares: the fused sweep, whole logits, Liger, TRL, and the matrix
products alone, each from hidden states and output weights to the loss and its two gradients."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import PeakMemory, Row, seconds_of
from potstill.objectives import RowRule, divergences, fused_sweep
from potstill.objectives.sweep.engine import rows_of_chunk
from potstill.objectives.sweep.heads import logits_of
from potstill.recipe import response
from potstill.recipe.objectives import ObjectiveSettings
from potstill.registry import build
from potstill.signals import IGNORE, Head

OBJECTIVES: dict[str, Callable[[float], ObjectiveSettings]] = {
    "forward_kl": lambda t: response.ForwardKL(temperature=t, scale_by_temperature_squared=False),
    "reverse_kl": lambda t: response.ReverseKL(temperature=t, scale_by_temperature_squared=False),
    "jsd": lambda t: response.JSD(temperature=t, scale_by_temperature_squared=False),
    "skewed_kl": lambda t: response.SkewedKL(temperature=t, scale_by_temperature_squared=False),
    "skewed_reverse_kl": lambda t: response.SkewedReverseKL(temperature=t, scale_by_temperature_squared=False),
    "total_variation": lambda t: response.TotalVariation(temperature=t, scale_by_temperature_squared=False),
    "soft_ce": lambda t: response.SoftCE(temperature=t, scale_by_temperature_squared=False),
    "logit_mse": lambda t: response.LogitMSE(),
    "dkd": lambda t: response.DecoupledKD(temperature=t, scale_by_temperature_squared=False),
}
"""Settings by name, at a temperature; other constants as shipped (JSD's β = ½)."""

PRODUCT_CHUNK_ROWS = 256
"""Rows of a chunk of the products alone."""

ERROR_DRAWS = 5
"""Worlds over which a gradient's error is measured."""

PEER_BETA = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}
"""What TRL and Liger call the objectives that they have."""


@dataclass(frozen=True)
class World:
    """What a variant is given: hidden states and output weights of both, and the labels."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    labels: Tensor

    @classmethod
    def random(
        cls,
        rows: int,
        vocab: int,
        width: int,
        masked: float,
        device: torch.device,
        *,
        teacher_width: int | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> World:
        """Logits of standard deviation 3 or so; a share of `masked` of the labels, evenly spread, is masked."""
        generator = torch.Generator(device).manual_seed(seed)
        teacher_width = teacher_width or width

        def normal(rows: int, columns: int, deviation: float = 1.0) -> Tensor:
            made = torch.randn(rows, columns, generator=generator, device=device).mul_(deviation)
            return made.to(dtype)

        hidden, teacher_hidden = normal(rows, width), normal(rows, teacher_width)
        weight, teacher_weight = (normal(vocab, w, 3 / math.sqrt(w)) for w in (width, teacher_width))
        labels = torch.randint(0, vocab, (rows,), generator=generator, device=device)
        if masked:
            labels[(torch.arange(rows, device=device) * masked) % 1 < masked] = IGNORE
        return cls(hidden.requires_grad_(), weight.requires_grad_(), teacher_hidden, teacher_weight, labels)

    @property
    def kept(self) -> slice | Tensor:
        """The rows that are learned."""
        kept = (self.labels != IGNORE).nonzero().squeeze(-1)
        return slice(None) if kept.numel() == self.labels.numel() else kept

    def double(self) -> World:
        """The same numbers in fp64, with leaves of its own."""
        hidden, weight = (t.detach().double().requires_grad_() for t in (self.hidden, self.weight))
        return replace(
            self,
            hidden=hidden,
            weight=weight,
            teacher_hidden=self.teacher_hidden.double(),
            teacher_weight=self.teacher_weight.double(),
        )


def rule_of(settings: Mapping[str, Any]) -> RowRule:
    rule: RowRule = build(OBJECTIVES[settings["objective"]](settings["temperature"])).row_rule()
    return rule


def ours(world: World, settings: Mapping[str, Any]) -> Tensor:
    rows = world.kept
    hidden, labels = world.hidden[rows], world.labels[rows]
    student, teacher = Head(hidden, world.weight), Head(world.teacher_hidden[rows], world.teacher_weight)
    rules: list[tuple[RowRule, float]] = [(rule_of(settings), 1.0 / labels.numel())]
    if settings["hard_ce"]:
        rules.append((build(response.HardCE()).row_rule(), 1.0 / labels.numel()))
    return fused_sweep(student, teacher, labels, rules).loss


def naive(world: World, settings: Mapping[str, Any]) -> Tensor:
    rows = world.kept
    student, labels = world.hidden[rows] @ world.weight.t(), world.labels[rows]
    with torch.no_grad():
        teacher = world.teacher_hidden[rows] @ world.teacher_weight.t()
    name, temperature = settings["objective"], {"temperature": settings["temperature"]}
    function: Callable[..., Tensor] = getattr(divergences, name)
    if name == "logit_mse":
        loss = function(student, teacher).mean()
    elif name == "dkd":
        loss = function(student, teacher, labels, **temperature).mean()
    else:
        loss = function(student, teacher, **temperature).mean()
    return loss + divergences.hard_ce(student, labels).mean() if settings["hard_ce"] else loss


def liger(world: World, settings: Mapping[str, Any]) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=1.0 if settings["hard_ce"] else 0.0,
        weight_soft_loss=1.0,
        beta=PEER_BETA[settings["objective"]],
        temperature=settings["temperature"],
        compiled=settings["compiled"],
        chunk_size=settings["chunk_size"],
    )
    value: Tensor = loss(world.hidden, world.weight, world.teacher_hidden, world.teacher_weight, world.labels)
    return value


def trl(world: World, settings: Mapping[str, Any]) -> Tensor:
    """As TRL's trainer calls it: off CUDA it projects masked tokens too, and drops them afterwards."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    rows = world.kept if world.hidden.is_cuda else slice(None)
    learned = (world.labels[rows] != IGNORE).float()
    apply: Any = ChunkedDivergenceFunction.apply
    divergence, _ = apply(
        *(world.hidden[rows], world.weight, None, world.teacher_hidden[rows], world.teacher_weight, None),
        *(PEER_BETA[settings["objective"]], settings["temperature"]),
    )
    mean: Tensor = (divergence * learned).sum() / learned.sum()
    return mean


@torch.no_grad()
def products(world: World, settings: Mapping[str, Any]) -> None:
    """student and teacher logits, the gradient of the hidden states and that of the weight, with nothing between; of
    the learned rows alone, gathered before."""
    rows, vocab = world.kept, world.weight.shape[0]
    all_hidden, all_taught = world.hidden[rows], world.teacher_hidden[rows]
    chunk = settings["chunk_rows"] or all_hidden.shape[0]
    if chunk == "ours":
        ours_of = logits_of(Head(all_hidden, world.weight)), logits_of(Head(all_taught, world.teacher_weight))
        chunk = rows_of_chunk(*ours_of, (True, True, False), torch.float32)
    student, teacher = (torch.empty(chunk, vocab, device=all_hidden.device, dtype=all_hidden.dtype) for _ in range(2))
    grad_hidden, grad_weight = torch.empty_like(all_hidden), torch.empty_like(world.weight)
    for start in range(0, all_hidden.shape[0], chunk):
        part = slice(start, start + chunk)
        hidden = all_hidden[part]
        here = slice(0, hidden.shape[0])
        torch.mm(hidden, world.weight.t(), out=student[here])
        torch.mm(all_taught[part], world.teacher_weight.t(), out=teacher[here])
        torch.mm(student[here], world.weight, out=grad_hidden[part])
        if start == 0:
            torch.mm(student[here].t(), hidden, out=grad_weight)
        else:
            grad_weight.addmm_(student[here].t(), hidden)


def fastest_products(rows: Sequence[Row]) -> str:
    """The floor: the name of the fastest variant of the products alone; empty if none was measured."""
    found = [row for row in rows if row["by"] == "products"]
    return str(min(found, key=lambda row: float(row["seconds"]))["variant"]) if found else ""


LOSSES: dict[str, Callable[[World, Mapping[str, Any]], Tensor]] = {
    "ours": ours,
    "naive": naive,
    "liger": liger,
    "trl": trl,
}


def world_of(settings: Mapping[str, Any], rows: int, seed: int = 0) -> World:
    width = settings["width"]
    return World.random(
        rows,
        settings["vocab"],
        width,
        settings["masked"],
        torch.device(settings["device"]),
        teacher_width=width * settings["teacher_hidden"],
        dtype=getattr(torch, settings["dtype"]),
        seed=seed,
    )


def measure(settings: Mapping[str, Any]) -> Row:
    """The worker: one variant in this process, timed, or held against fp64."""
    settings = {"objective": "forward_kl", "hard_ce": False, "teacher_hidden": 1, **settings}
    if settings.get("error_rows"):
        return gradient_error(settings)
    device = torch.device(settings["device"])
    loss_of = LOSSES.get(settings["by"])

    def call(world: World) -> dict[str, float]:
        world.hidden.grad = world.weight.grad = None
        if loss_of is None:
            products(world, settings)
            return {}
        loss = loss_of(world, settings)
        loss.backward()
        return {"loss": loss.item()}

    call(world_of({**settings, "vocab": 64, "width": 16}, 8))
    world = world_of(settings, settings["rows"])
    peak = PeakMemory(device)
    peak.start()
    found: dict[str, Any] = {}
    seconds = [seconds_of(lambda: found.update(call(world)), device)]
    peak_bytes = peak.bytes()
    for _ in range(settings["calls"]):
        seconds.append(seconds_of(lambda: found.update(call(world)), device))
    if world.weight.grad is not None:  # looked at when time and memory have been taken
        found["weight_gradient_norm"] = world.weight.grad.float().norm().item()
    # Of the weight gradient as it is summed: in fp32, also where the models are narrower.
    beyond = None if peak_bytes is None else peak_bytes - world.weight.numel() * 4
    # The first call warms up the full sizes, and is timed only where it is the only one.
    timed = seconds[1:] or seconds
    return {"seconds": timed, "peak_bytes": peak_bytes, "peak_beyond_weight_gradient_bytes": beyond, **found}


def gradient_error(settings: Mapping[str, Any]) -> Row:
    """Relative L2 error of both gradients of a few rows against whole logits in fp64 on the same numbers: the median
    over some draws, and each. On one draw, two variants that round alike differ by 5 %, to either side."""
    draws = [_error_of_draw(settings, seed) for seed in range(ERROR_DRAWS)]
    found: Row = {"seconds": [draw["seconds"] for draw in draws], "peak_bytes": None}
    for name in ("hidden", "weight"):
        errors = [draw[name] for draw in draws]
        found |= {f"{name}_gradient_error": statistics.median(errors), f"{name}_gradient_errors": errors}
    return found


def _error_of_draw(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    device = torch.device(settings["device"])
    world = world_of({**settings, "masked": 0.0}, settings["error_rows"], seed)
    exact = world.double()
    naive(exact, settings).backward()
    found = {"seconds": seconds_of(lambda: LOSSES[settings["by"]](world, settings).backward(), device)}
    for name in ("hidden", "weight"):
        reference = getattr(exact, name).grad
        difference = getattr(world, name).grad.double().sub_(reference)
        found[name] = (difference.norm() / reference.norm()).item()
    return found

"""Students and teachers that are tables of inner tensors, over texts of several lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from potstill.recipe import features, relations
from potstill.recipe.objectives import ObjectiveSettings
from potstill.signals import Batch, ModelDims, Signals, View

LENGTHS = (6, 4, 5, 2, 3)
"""Tokens of the texts."""

TIME = {"hidden": 1, "queries": 2, "keys": 2, "values": 2, "module:mlp": 1}
"""Which axis of a tensor is time; it has none if it is not here."""

CONV = features.Modules(student="conv", teacher="conv")
MLP = features.Modules(student="mlp", teacher="mlp")

TAPPED: tuple[ObjectiveSettings, ...] = (
    features.HiddenCosine(),
    features.HiddenCosine(over="tokens", layers="uniform"),
    features.HiddenMSE(over="tokens"),
    features.HiddenMSE(layers=((1, 2), (2, 1))),
    features.HiddenSmoothL1(over="tokens", layers="embeddings", delta=0.5),
    features.AttentionScores(),
    features.AttentionKL(layers="uniform"),
    features.AttentionTransfer(modules=(CONV,)),
    features.AttentionTransfer(modules=(CONV, CONV), power=3.0),
    features.Hint(modules=CONV),
    features.Hint(modules=MLP),
    relations.RKDDistance(),
    relations.RKDDistance(at=(1, 2), pooling="max"),
    relations.RKDAngle(pooling="first"),
    relations.RKDAngle(at=CONV),
    relations.SimilarityPreserving(at=CONV),
    relations.SimilarityPreserving(at=MLP, pooling="last"),
    relations.MiniLMv1(),
    relations.MiniLMv2(relation_heads=3, teacher_layer=0),
)
"""Every objective on inner tensors, some of them in several settings."""


def time_axis(name: str) -> int | None:
    return TIME.get(name, TIME.get(name.split(".")[0]))


def tables(seed: int, dtype: torch.dtype = torch.float64, rows: int = len(LENGTHS), time: int = 6) -> dict[str, Tensor]:
    """Two layers of width 4, two heads of width 3, a map of three channels and a module that gives 5 for each token."""
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen, dtype=torch.float64).to(dtype)

    found = {f"hidden.{k}": normal(rows, time, 4) for k in range(3)}
    found |= {f"{part}.{k}": normal(rows, 2, time, 3) for part in ("queries", "keys", "values") for k in range(2)}
    return {**found, "module:conv": normal(rows, 3, 2, 4), "module:mlp": normal(rows, time, 5)}


def text_batch(lengths: Sequence[int] = LENGTHS, time: int | None = None) -> Batch:
    """One text a row; every second token is a target."""
    segments = torch.zeros(len(lengths), time or max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        segments[row, :length] = 1
    return _batch(segments)


def packed_batch(lengths: Sequence[int] = LENGTHS) -> Batch:
    """The same texts in one row."""
    segments = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths, 1)])
    return _batch(segments[None])


def _batch(segments: Tensor) -> Batch:
    view = View(torch.zeros_like(segments), torch.zeros_like(segments), segments)
    positions = (segments.flatten() > 0).nonzero().squeeze(-1)[::2]
    return Batch(view, view, torch.zeros_like(positions), {"student": positions, "teacher": positions})


def signals(taps: Mapping[str, Tensor], causal: bool = False) -> Signals:
    dims = ModelDims(vocab=11, hidden=4, layers=2, heads=2, kv_heads=2, causal=causal)
    return Signals(taps=taps, dims=dims)


def leaves(taps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that gradients go to."""
    return {name: table.detach().clone().requires_grad_() for name, table in taps.items()}


def along_time(taps: Mapping[str, Tensor], change: Callable[[Tensor, int], Tensor]) -> dict[str, Tensor]:
    """Every tensor that has an axis of time, changed along it."""
    axes = {name: time_axis(name) for name in taps}
    return {name: table if (axis := axes[name]) is None else change(table, axis) for name, table in taps.items()}

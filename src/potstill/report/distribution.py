"""The distribution of the loss over tokens: histograms and quantiles. A mean does not show where the loss is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 32
QUANTILES = (0.5, 0.9, 0.99)
WORST_SHARE = 0.1
BEND = 0.1
"""In nats. The histogram's scale is nearly linear below it and logarithmic above: Vega's symlog with this constant."""


@dataclass(frozen=True)
class Spread:
    """One model's loss per token: quantiles at `QUANTILES`, the maximum, and the share of the total loss on the worst
    tenth of the tokens (None if the total is 0)."""

    quantiles: tuple[float, ...]
    largest: float
    on_worst: float | None
    not_finite: int


def spread_of(values: NDArray[np.float64]) -> Spread | None:
    """The spread of one value per token [N]. Values that are not finite are counted and left out. None if no value is
    finite."""
    finite = np.sort(values[np.isfinite(values)])
    if finite.size == 0:
        return None
    worst = finite[finite.size - max(1, round(finite.size * WORST_SHARE)) :]
    total = float(finite.sum())
    return Spread(
        quantiles=tuple(float(q) for q in np.quantile(finite, QUANTILES)),
        largest=float(finite[-1]),
        on_worst=float(worst.sum()) / total if total > 0 else None,
        not_finite=int(values.size - finite.size),
    )


def histogram(columns: Mapping[str, NDArray[np.float64]], names: Sequence[str]) -> list[dict[str, float | str]]:
    """Shares of tokens in bins that are the same for all models: rows of model, `from`, `to` (nats) and `share`.

    Bins have equal width on a scale of log(1 + loss/0.1), which includes 0: wide in the tail, narrow near 0.
    """
    finite = {name: values[np.isfinite(values)] for name, values in columns.items() if name in names}
    top = max((float(v.max()) for v in finite.values() if v.size), default=0.0)
    if top <= 0:
        return []
    edges = BEND * np.expm1(np.linspace(0.0, np.log1p(top / BEND), BINS + 1))
    edges[-1] = max(edges[-1], top)
    rows: list[dict[str, float | str]] = []
    for name in names:
        if name not in finite or not finite[name].size:
            continue
        # By rounding, the KL of an exact match can be slightly below 0.
        counts, _ = np.histogram(np.maximum(finite[name], 0.0), bins=edges)
        shares = counts / finite[name].size
        rows += [
            {"model": name, "from": float(low), "to": float(high), "share": float(share)}
            for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True)
        ]
    return rows

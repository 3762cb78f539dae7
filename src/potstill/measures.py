"""What `evaluate` writes and `report` reads: `measures.json`, as frozen records. No torch.

Every comparison is paired by group, with a bootstrap interval (rule 10). Units: nats per target token at
temperature 1 for NLL and KL, shares in [0, 1] for agreement, seconds and bytes as their names say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Metric = Literal["nll", "kl", "top1_agreement"]
MODELS = ("teacher", "student", "text_only", "untrained")
"""Model names, in the order in which they are shown. A control may be absent."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Speed:
    """Rates of one model, medians over repetitions measured in turn with the other models; spreads are
    (minimum, maximum) over the repetitions."""

    prefill_tokens_per_second: float
    prefill_spread: tuple[float, float]
    decode_tokens_per_second: float
    decode_spread: tuple[float, float]
    peak_bytes: int
    dtype: str


@dataclass(frozen=True)
class ModelMeasures:
    """One model on the held-out records. `kl` is KL(teacher ‖ model), `top1_agreement` the share of target tokens where
    its first choice is the teacher's; both are None for the teacher itself."""

    name: str
    parameters: int
    bytes: int
    layers: int
    nll: Interval
    perplexity: float
    kl: Interval | None
    top1_agreement: Interval | None
    speed: Speed | None


@dataclass(frozen=True)
class Comparison:
    """`metric` of `model` minus that of `against`, paired by group. Negative is better for nll and kl."""

    model: str
    against: str
    metric: Metric
    difference: Interval

    @property
    def excludes_zero(self) -> bool:
        return self.difference.low > 0 or self.difference.high < 0


@dataclass(frozen=True)
class Measures:
    """The whole of `measures.json`."""

    models: Mapping[str, ModelMeasures]
    comparisons: tuple[Comparison, ...]
    groups: int
    records: int
    targets: int
    confidence: float
    resamples: int
    notes: tuple[str, ...] = ()

    def comparison(self, model: str, against: str, metric: Metric) -> Comparison | None:
        """The comparison of two models, if it was made."""
        for c in self.comparisons:
            if (c.model, c.against, c.metric) == (model, against, metric):
                return c
        return None

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Measures:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        models = {name: _model(m) for name, m in raw.pop("models").items()}
        comparisons = tuple(
            Comparison(**{**c, "difference": Interval(**c["difference"])}) for c in raw.pop("comparisons")
        )
        return cls(models=models, comparisons=comparisons, **{**raw, "notes": tuple(raw["notes"])})


def _model(raw: dict[str, Any]) -> ModelMeasures:
    def interval(value: dict[str, float] | None) -> Interval | None:
        return Interval(**value) if value is not None else None

    speed = raw["speed"]
    if speed is not None:
        spreads = {k: tuple(speed[k]) for k in ("prefill_spread", "decode_spread")}
        speed = Speed(**{**speed, **spreads})
    nll = Interval(**raw["nll"])
    return ModelMeasures(
        **{
            **raw,
            "nll": nll,
            "kl": interval(raw["kl"]),
            "top1_agreement": interval(raw["top1_agreement"]),
            "speed": speed,
        }
    )

"""What `evaluate` writes and `report` reads: `measures.json`, as frozen records. No torch.

Every comparison is paired by group, with a bootstrap interval (rule 10). Units: nats per target at temperature 1 for
NLL and KL (a target is a token, a masked token or an example, by the task), shares in [0, 1] for accuracy,
agreement and problems solved, seconds and bytes as their names say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from potstill.tasks import Task

Metric = Literal["accuracy", "solved", "nll", "kl", "top1_agreement"]
HIGHER_IS_BETTER: frozenset[Metric] = frozenset({"accuracy", "solved", "top1_agreement"})
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
    (minimum, maximum) over the repetitions. What writes text has prefill and decode rates, all others examples per
    second (forward only)."""

    peak_bytes: int
    dtype: str
    prefill_tokens_per_second: float | None = None
    prefill_spread: tuple[float, float] | None = None
    decode_tokens_per_second: float | None = None
    decode_spread: tuple[float, float] | None = None
    examples_per_second: float | None = None
    examples_spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Flips:
    """Where a model differs from its teacher in being right: equal accuracy can hide many (Dutta et al. 2024,
    arXiv 2407.09141). Shares of all examples: `lost` are those that the teacher has right and the model wrong, `won`
    the other way round; accuracy is the teacher's − lost + won."""

    lost: Interval
    won: Interval


@dataclass(frozen=True)
class ModelMeasures:
    """One model on the held-out records; what its task has no meaning for is None.

    `kl` is KL(teacher ‖ model); `top1_agreement` the share of targets where its first choice is the teacher's, and of
    embeddings the share of examples whose nearest neighbour is the teacher's; both are None for the teacher itself.
    `perplexity` is exp(NLL), of a masked model its pseudo-perplexity over masked tokens. `accuracy` is that of classes,
    or of embeddings recall@1: the share of examples whose nearest neighbour has their label. `kept` is the accuracy as
    a share of the teacher's, None where the teacher is at chance (rule 10). `similarity_correlation` is Spearman's
    between the cosines of pairs of examples in this model and in the teacher. `solved` is the share of held-out
    problems to which its greedy answer is right (see `Solving`).
    """

    name: str
    parameters: int
    bytes: int
    layers: int
    nll: Interval | None = None
    perplexity: float | None = None
    kl: Interval | None = None
    top1_agreement: Interval | None = None
    speed: Speed | None = None
    accuracy: Interval | None = None
    kept: Interval | None = None
    flips: Flips | None = None
    similarity_correlation: Interval | None = None
    solved: Interval | None = None


@dataclass(frozen=True)
class Comparison:
    """`metric` of `model` minus that of `against`, paired by group. Negative is better for nll and kl, positive for
    the metrics of `HIGHER_IS_BETTER`."""

    model: str
    against: str
    metric: Metric
    difference: Interval

    @property
    def excludes_zero(self) -> bool:
        return self.difference.low > 0 or self.difference.high < 0

    @property
    def better(self) -> bool:
        """Whether the model's side is the better one, by the estimate alone."""
        return (self.difference.value > 0) == (self.metric in HIGHER_IS_BETTER)


@dataclass(frozen=True)
class Solving:
    """What was put to models that solve problems, and by model how many answers are not solved for a reason other than
    being wrong: `unfinished` ones were cut at `max_new_tokens` (or where the model takes no more), `unjudged` ones the
    verifier could not judge, and `too_long` prompts leave the model no room to answer. `verifier` is its name and
    version. `groups` are what intervals are drawn from.
    """

    problems: int
    groups: int
    verifier: str
    max_new_tokens: int
    unfinished: Mapping[str, int]
    unjudged: Mapping[str, int]
    too_long: Mapping[str, int]


@dataclass(frozen=True)
class Measures:
    """The whole of `measures.json`. `chance` is the accuracy of what knows nothing but the labels' frequencies: of
    classes the share of the largest, of embeddings the mean share of the other examples that have an example's
    label. `taught` says whether an objective asked the teacher for anything; `teacher_unmeasured`, why the teacher was
    not measured; None where it was, or where there is none."""

    models: Mapping[str, ModelMeasures]
    comparisons: tuple[Comparison, ...]
    groups: int
    records: int
    targets: int
    confidence: float
    resamples: int
    notes: tuple[str, ...] = ()
    task: Task = "causal_lm"
    chance: float | None = None
    solving: Solving | None = None
    taught: bool = True
    teacher_unmeasured: str | None = None

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
        if raw.get("solving") is not None:
            raw["solving"] = Solving(**raw["solving"])
        return cls(models=models, comparisons=comparisons, **{**raw, "notes": tuple(raw["notes"])})


_INTERVALS = ("nll", "kl", "top1_agreement", "accuracy", "kept", "similarity_correlation", "solved")
_SPREADS = ("prefill_spread", "decode_spread", "examples_spread")


def _model(raw: dict[str, Any]) -> ModelMeasures:
    read = dict(raw)
    for name in _INTERVALS:
        if read.get(name) is not None:
            read[name] = Interval(**read[name])
    if (flips := read.get("flips")) is not None:
        read["flips"] = Flips(Interval(**flips["lost"]), Interval(**flips["won"]))
    if (speed := read.get("speed")) is not None:
        spreads = {name: tuple(speed[name]) for name in _SPREADS if speed.get(name) is not None}
        read["speed"] = Speed(**{**speed, **spreads})
    return ModelMeasures(**read)

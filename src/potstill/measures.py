"""What `evaluate` writes and `report` reads: `measures.json`, as frozen records. No torch.

The file explains itself: beside the values it holds the `MetricSpec` of each metric, with its name as people read it,
unit, direction and meaning, so that page, card, terminal and studio show a metric that they have never heard of.

Every comparison is paired by group, with a bootstrap interval (rule 10).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from potstill.artifacts import parse_json
from potstill.errors import RunError
from potstill.tasks import Task

FORMAT = 4
"""The version of `measures.json`. Version 1, without this number, had a field per metric; version 2 kept `solving`
outside `findings`; losses of version 3 had a size in nats alone."""

MODELS = ("teacher", "student", "text_only", "text_only_equal_seconds", "rounded_afterwards", "untrained")
"""Model names, in the order in which they are shown. A control may be absent."""

FALSE_ALARMS = 0.05
"""How often a loss may be named of a student that has none, all measures together."""

Unit = Literal["nats", "share", "number"]
"""What a metric is counted in: nats per target; a share in [0, 1], shown in percent; a plain number."""

_CONFIG = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


@dataclass(frozen=True, config=_CONFIG)
class Interval:
    """An estimate with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, config=_CONFIG)
class MetricSpec:
    """One metric, as evaluation, comparison, page, card and terminal know it.

    Attributes:
        name: in files and recipes (`kl`).
        label: at the beginning of a line ("KL from the teacher").
        short: as the head of a column ("KL").
        unit: what it is counted in.
        higher_is_better: its direction.
        per: what one value is of ("token", "problem"); in the plural for shares.
        explanation: one or two sentences for the list of terms; empty if the label says all.
        note: what stands below its key figure; None if it has none.
        decides: whether the verdict on what the teacher was worth rests on it.
        charted: whether its values are drawn.
        section: the measure whose section of the page has it; empty for the table of all models.
    """

    name: str
    label: str
    short: str
    unit: Unit
    higher_is_better: bool
    per: str = "example"
    explanation: str = ""
    note: str | None = None
    decides: bool = False
    charted: bool = False
    section: str = ""

    @property
    def in_sentence(self) -> str:
        """The label within a sentence: "accuracy", but "KL from the teacher", "recall@1" and "Brier score"."""
        named = self.label[:2].isupper() or self.label.startswith("Brier ")
        return self.label if named else self.label[:1].lower() + self.label[1:]

    @property
    def term(self) -> str:
        """The head of its column, as an entry of the list of terms."""
        return self.short[:1].upper() + self.short[1:]

    @property
    def head(self) -> str:
        """The head of its column, with the unit where the values do not show it."""
        return f"{self.short}, nats" if self.unit == "nats" else self.short


@dataclass(frozen=True, config=_CONFIG)
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


@dataclass(frozen=True, config=_CONFIG)
class ModelMeasures:
    """One model on the held-out records.

    `metrics` holds those that mean something for the model and its task: KL and agreement are with the teacher, so that
    the teacher has neither. `by_seed` holds the values of the single training seeds, where there were several.
    """

    name: str
    parameters: int
    bytes: int
    layers: int
    metrics: Mapping[str, Interval] = field(default_factory=dict)
    by_seed: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    speed: Speed | None = None

    def get(self, metric: str) -> Interval | None:
        """A metric of this model; None if it has none of that name."""
        return self.metrics.get(metric)


@dataclass(frozen=True, config=_CONFIG)
class Comparison:
    """A metric of `model` minus that of `against`, paired by group; `Measures.better` says which side it favours."""

    model: str
    against: str
    metric: str
    difference: Interval

    @property
    def excludes_zero(self) -> bool:
        return self.difference.low > 0 or self.difference.high < 0


@dataclass(frozen=True, config=_CONFIG)
class Solving:
    """The problems that models were asked to solve, and by model how many answers are not solved for a reason other
    than being wrong: `unfinished` ones were cut at `max_new_tokens` (or where the model takes no more), `unjudged` ones
    the verifier could not judge, and `too_long` prompts leave the model no room to answer. `verifier` is its name and
    version. `groups` are what intervals are drawn from.
    """

    problems: int
    groups: int
    verifier: str
    max_new_tokens: int
    unfinished: Mapping[str, int]
    unjudged: Mapping[str, int]
    too_long: Mapping[str, int]
    section: str = ""
    type: Literal["solving"] = "solving"


@dataclass(frozen=True, config=_CONFIG)
class Band:
    """A part of the targets: a class, a band of frequency, a slice.

    Attributes:
        name: of the part.
        targets: how many it has.
        values: by model.
        excess: the student less its teacher, paired.
        excess_of_control: the same of the control `text_only`.
        adjusted_p: the chance of so large a difference to the other targets, adjusted for the number of parts looked
            at (Benjamini and Hochberg); None where it was not tested.
    """

    name: str
    targets: int
    values: Mapping[str, Interval]
    excess: Interval | None = None
    excess_of_control: Interval | None = None
    adjusted_p: float | None = None


@dataclass(frozen=True, config=_CONFIG)
class Bands:
    """A metric by parts of the targets. `of` says what the parts are, `counted` what their `targets` are (empty: the
    held-out targets)."""

    title: str
    text: str
    section: str
    metric: MetricSpec
    of: str
    bands: tuple[Band, ...]
    counted: str = ""
    type: Literal["bands"] = "bands"


@dataclass(frozen=True, config=_CONFIG)
class Bin:
    """One bin of a reliability diagram: the mean probability of the first choice, and how often it was right."""

    probability: float
    right: Interval
    targets: int


@dataclass(frozen=True, config=_CONFIG)
class Reliability:
    """A reliability diagram, by model."""

    title: str
    text: str
    section: str
    curves: Mapping[str, tuple[Bin, ...]]
    type: Literal["reliability"] = "reliability"


@dataclass(frozen=True, config=_CONFIG)
class Place:
    """One place of a curve: where it is, and the value there."""

    at: float
    value: Interval


@dataclass(frozen=True, config=_CONFIG)
class Curve:
    """A smooth curve with a band, by model, along a scale that `axis` names; drawn on a logarithmic axis with `log`."""

    title: str
    text: str
    section: str
    metric: MetricSpec
    axis: str
    curves: Mapping[str, tuple[Place, ...]]
    log: bool = False
    type: Literal["curve"] = "curve"


@dataclass(frozen=True, config=_CONFIG)
class Figures:
    """Single figures of several models: by label, an interval of each model, in one unit per label."""

    title: str
    text: str
    section: str
    rows: tuple[tuple[MetricSpec, Mapping[str, Interval]], ...]
    type: Literal["figures"] = "figures"


@dataclass(frozen=True, config=_CONFIG)
class Example:
    """A held-out target to read: the text before it (or the whole example), the target itself, and each model's NLL of
    it, the mean over seeds."""

    text: str
    target: str
    nll: Mapping[str, float]


@dataclass(frozen=True, config=_CONFIG)
class Examples:
    """Targets to read, the worst first."""

    title: str
    text: str
    section: str
    examples: tuple[Example, ...]
    type: Literal["examples"] = "examples"


Finding = Annotated[Bands | Reliability | Curve | Figures | Solving | Examples, Field(discriminator="type")]
"""What a measure finds beside its metrics. The report draws it by its type."""


@dataclass(frozen=True, config=_CONFIG)
class Loss:
    """A loss that the verdict may name: what part of the student's excess over its teacher has this form.

    Attributes:
        section: of the page, where it is shown.
        text: a clause that begins with the student: "is over-confident by 4.1 points".
        size: in its unit, paired; 0 where nothing is lost, and above 0 a loss.
        remedy: what to try.
        per: what the nats are of ("prompt"; empty for a target), or what the share is of ("what its teacher gets
            right").
        unit: nats, of the log-probability of what is right, or a share of what the teacher has.
    """

    section: str
    text: str
    size: Interval
    remedy: str = ""
    per: str = ""
    unit: Literal["nats", "share"] = "nats"

    @property
    def share(self) -> float:
        """How much of what the teacher has is lost, by which losses of all units are ordered: 1 is all of it. Of the
        probability of what is right (its geometric mean) a loss of x nats is a share of 1 − e^−x."""
        return -math.expm1(-self.size.value) if self.unit == "nats" else self.size.value

    def beyond_noise(self, confidence: float, looked_for: int = 1) -> bool:
        """Whether its size is above 0 by more than noise, if so many losses were looked for: of a student without any,
        one or more is named in at most 5 % of cases (Bonferroni; one-sided). The lower end of the interval is moved as
        a normal one would be.

        Args:
            confidence: of the interval.
            looked_for: how many losses there are to name.
        """
        normal = NormalDist()
        asked = normal.inv_cdf(1 - FALSE_ALARMS / max(1, looked_for))
        factor = max(1.0, asked / normal.inv_cdf((1 + confidence) / 2))
        return self.size.value - factor * (self.size.value - self.size.low) > 0


@dataclass(frozen=True, config=_CONFIG)
class Measures:
    """The whole of `measures.json`.

    `metrics` are the specifications of all metrics that occur, in the order in which they are shown. `chance` is the
    accuracy of what knows nothing but the labels' frequencies: of classes the share of the largest, of embeddings the
    mean share of the other examples that have an example's label. `taught` says whether an objective read the teacher's
    signals; `teacher_unmeasured`, why the teacher was not measured; None where it was, or where there is none. `seeds`
    is how many trainings, which differ in their seed alone, a value of the student and its controls is the mean of.
    `findings` are what measures found beside their metrics, and `losses` those that the verdict may name. `unmeasured`
    is what nobody looked for, each with the key of a recipe that asks for it.
    """

    models: Mapping[str, ModelMeasures]
    metrics: Mapping[str, MetricSpec]
    comparisons: tuple[Comparison, ...]
    groups: int
    records: int
    targets: int
    confidence: float
    resamples: int
    notes: tuple[str, ...] = ()
    task: Task = "causal_lm"
    chance: float | None = None
    taught: bool = True
    teacher_unmeasured: str | None = None
    seeds: int = 1
    findings: tuple[Finding, ...] = ()
    losses: tuple[Loss, ...] = ()
    unmeasured: tuple[str, ...] = ()
    format: int = FORMAT

    def comparison(self, model: str, against: str, metric: str) -> Comparison | None:
        """The comparison of two models, if it was made."""
        for c in self.comparisons:
            if (c.model, c.against, c.metric) == (model, against, metric):
                return c
        return None

    def better(self, comparison: Comparison) -> bool:
        """Whether the first side of a comparison is the better one, by the estimate alone."""
        return (comparison.difference.value > 0) == self.metrics[comparison.metric].higher_is_better

    @property
    def solving(self) -> Solving | None:
        """What was asked where problems were put to models."""
        return next((finding for finding in self.findings if isinstance(finding, Solving)), None)

    @property
    def named_losses(self) -> list[Loss]:
        """The losses beyond noise, the largest share first."""
        count = len(self.losses)
        named = [loss for loss in self.losses if loss.beyond_noise(self.confidence, count)]
        return sorted(named, key=lambda loss: -loss.share)

    @property
    def deciding(self) -> list[MetricSpec]:
        """The metrics that the verdict on what the teacher was worth rests on."""
        return [spec for spec in self.metrics.values() if spec.decides]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(_MEASURES.dump_python(self, mode="json"), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Measures:
        """What `save` wrote.

        Raises:
            RunError: the file is of another version, or damaged.
            OSError: it cannot be read.
        """
        try:
            raw: Any = parse_json(path.read_text(encoding="utf-8"))
            version = raw.get("format", 1) if isinstance(raw, dict) else None
            if version != FORMAT:
                raise ValueError(f"it has format {version}, and this potstill reads format {FORMAT}")
            return _MEASURES.validate_python(raw)
        except (ValueError, ValidationError) as error:
            why = f"{error}".splitlines()[0]
            raise RunError(
                f"measures.json cannot be read: {why}", where=str(path.parent), fix="run potstill evaluate --force"
            ) from error


_MEASURES = TypeAdapter(Measures)

"""Settings of the stage that stores a teacher's distributions, by what is kept of each."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from potstill.recipe.base import Cosmetic, Count, KindSettings, Tokens
from potstill.types import Capability

SparseEstimator = Literal["unbiased", "top_k"]
Floats = Literal["float32", "bfloat16", "int8"]

_FEATURE = re.compile(r"(hidden|queries|keys|values)\.\d+|pooled\.\d+\.(mean|first|last|max)|module:\S+")


def _features(value: object) -> object:
    for name in value if isinstance(value, (list, tuple)) else ():
        if not isinstance(name, str) or not _FEATURE.fullmatch(name):
            raise ValueError(
                f"{name!r} names no inner tensor: hidden.k, queries.k, keys.k, values.k, pooled.k.mean (first, last, "
                "max), module:<path>"
            )
    if isinstance(value, str) and value != "asked":
        raise ValueError(f"should be asked, or a list of names (hidden.12, queries.11), not {value!r}")
    return value


Features = Annotated[Literal["asked"] | tuple[str, ...], BeforeValidator(_features)]
"""Inner tensors of the teacher, by the names of `signals.Signals.taps`, or `asked`: those that the objectives of
`train` read."""


class CaptureSettings(KindSettings):
    """Base of every estimator: what is kept of the teacher's response, a distribution over the vocabulary or classes.

    `features` are inner tensors that are kept beside it, in `feature_dtype`; pooled ones have one row an example.
    `also` names further teachers: each has a store of its own, made after the first by the same settings, and training
    learns from the mean of all. Only one of them is in memory at a time. `temperature` is that of the stored
    distribution, softmax(z / T); objectives must be at the same. `max_length` cuts longer records (default:
    `train.max_length`, or 1024); a training with a shorter one reads the same store.
    `batch_tokens` is the size of the teacher's batches, padding included; in bfloat16 results depend on it.
    `shard_tokens` is how much is captured again if a shard is damaged. `sample_tokens` are compared with the teacher's
    distribution in the end, and measured to meet a budget.
    """

    room: ClassVar[str] = "capture"
    estimator: ClassVar[SparseEstimator | None] = "unbiased"
    response: ClassVar[frozenset[Capability]] = frozenset({"top_logprobs"})
    """What a training can ask of the stored response."""
    teacher: str = "main"
    also: Annotated[tuple[str, ...], Cosmetic()] = ()
    temperature: PositiveFloat = 1.0
    max_length: Tokens | None = None
    batch_tokens: Tokens = 4096
    shard_tokens: Count = 250_000
    sample_tokens: Count = 2048
    features: Features = ()
    feature_dtype: Floats = "bfloat16"

    @property
    def gives(self) -> frozenset[Capability]:
        """What a training can ask of the store."""
        return self.response | (frozenset[Capability]({"taps"}) if self.features else frozenset())

    @property
    def teachers(self) -> tuple[str, ...]:
        """All teachers that are captured, in order."""
        return (self.teacher, *self.also)

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages that capture them."""
        return ("capture", *(f"capture.{number}" for number in range(1, len(self.teachers))))

    @property
    def any_temperature(self) -> bool:
        """Whether a training chooses the temperature: whole distributions are kept, or none."""
        return "top_logprobs" not in self.response

    @model_validator(mode="after")
    def _each_teacher_once(self) -> CaptureSettings:
        if len(set(self.teachers)) < len(self.teachers):
            raise ValueError("a teacher is named twice among teacher and also: drop one")
        if self.also and (self.features or self.estimator == "top_k"):
            raise ValueError(
                f"the mean of several teachers is of their responses, and not of {self.kind} or features: with also, "
                "set kind to threshold, sampled, hidden or dense"
            )
        return self

    @model_validator(mode="after")
    def _of_one_temperature(self) -> CaptureSettings:
        if self.any_temperature and self.temperature != 1.0:
            raise ValueError(f"{self.kind} keeps what has no temperature yet: leave capture.temperature out")
        return self


class ThresholdCapture(CaptureSettings):
    """Every p ≥ τ exactly; of the others a systematic sample, with probability p / τ and constant weight τ. No bias.

    `tau` is given, or found on a sample so that `bytes_per_token` are stored on average.
    """

    kind: Literal["threshold"] = "threshold"
    tau: Annotated[float, Field(gt=0, le=1)] | None = None
    bytes_per_token: Annotated[float, Field(ge=6, le=100_000)] = 20.0

    @model_validator(mode="after")
    def _one_of_both(self) -> ThresholdCapture:
        if self.tau is not None and "bytes_per_token" in self.model_fields_set:
            raise ValueError("give either tau or bytes_per_token: one follows from the other")
        return self


class SampledCapture(CaptureSettings):
    """`draws` from p with replacement, each token at weight count / draws. No bias. RS-KD, arXiv 2503.16870."""

    kind: Literal["sampled"] = "sampled"
    draws: Annotated[int, Field(ge=1, le=65_535)] = 50


class HiddenCapture(CaptureSettings):
    """The input of the teacher's output layer, in `dtype`: the full distribution at any temperature, exact up to that
    rounding. Training applies the output layer, which alone is loaded. Two bytes (int8: one) per number: 1,152
    per token of a model of width 576."""

    kind: Literal["hidden"] = "hidden"
    estimator: ClassVar[SparseEstimator | None] = None
    response: ClassVar[frozenset[Capability]] = frozenset({"head"})
    dtype: Floats = "bfloat16"


class DenseCapture(CaptureSettings):
    """All logits, in `dtype`: classes and small vocabularies. Four bytes (bfloat16: two) a class or token of the
    vocabulary."""

    kind: Literal["dense"] = "dense"
    estimator: ClassVar[SparseEstimator | None] = None
    response: ClassVar[frozenset[Capability]] = frozenset({"dense"})
    dtype: Floats = "float32"


class FeaturesCapture(CaptureSettings):
    """No response: inner tensors alone, for objectives on states, relations and embeddings."""

    kind: Literal["features"] = "features"
    estimator: ClassVar[SparseEstimator | None] = None
    response: ClassVar[frozenset[Capability]] = frozenset()
    features: Features = "asked"

    @model_validator(mode="after")
    def _some(self) -> FeaturesCapture:
        if not self.features:
            raise ValueError("kind features without features keeps nothing: name some, or set features: asked")
        return self


class TopKCapture(CaptureSettings):
    """The `k` most probable tokens, or fewer: as many as hold `top_p` of the mass; and the mass of all others as one.
    Never renormalised. Biased: the shape of the tail is lost.

    For a server, `tolerance` is the largest distance of its answers to one text from one another, and from the same
    weights on this machine, in nats per token (the mean over the tokens' log-probabilities).
    """

    kind: Literal["topk"] = "topk"
    estimator: ClassVar[SparseEstimator | None] = "top_k"
    k: Annotated[int, Field(ge=1, le=65_535)] = 32
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    tolerance: Annotated[PositiveFloat, Cosmetic()] = 0.05

"""Settings of the stage that stores a teacher's distributions, by what is kept of each."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator

from potstill.recipe.base import Count, KindSettings, Tokens
from potstill.types import Capability

SparseEstimator = Literal["unbiased", "top_k"]


class CaptureSettings(KindSettings):
    """Base of every estimator: what is kept of a distribution over the vocabulary.

    `temperature` is that of the stored distribution, softmax(z / T); objectives must be at the same. `max_length` cuts
    longer records (default: `train.max_length`, or 1024); a training with a shorter one reads the same store.
    `batch_tokens` is the size of the teacher's batches, padding included; in bfloat16 results depend on it.
    `shard_tokens` is how much is captured again if a shard is damaged. `sample_tokens` are compared with the teacher's
    distribution in the end, and measured to meet a budget.
    """

    room: ClassVar[str] = "capture"
    estimator: ClassVar[SparseEstimator | None] = "unbiased"
    gives: ClassVar[frozenset[Capability]] = frozenset({"top_logprobs"})
    """What a training can ask of the store."""
    teacher: str = "main"
    temperature: PositiveFloat = 1.0
    max_length: Tokens | None = None
    batch_tokens: Tokens = 4096
    shard_tokens: Count = 250_000
    sample_tokens: Count = 2048


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
    rounding. Training applies the output layer, which alone is loaded. Two bytes (int8: one) a number, so 1,152 a token
    of a model that is 576 wide."""

    kind: Literal["hidden"] = "hidden"
    estimator: ClassVar[SparseEstimator | None] = None
    gives: ClassVar[frozenset[Capability]] = frozenset({"head"})
    dtype: Literal["float32", "bfloat16", "int8"] = "bfloat16"

    @model_validator(mode="after")
    def _of_any_temperature(self) -> HiddenCapture:
        if self.temperature != 1.0:
            raise ValueError("hidden states give the distribution at any temperature: leave capture.temperature out")
        return self


class TopKCapture(CaptureSettings):
    """The `k` most probable tokens, or fewer: as many as hold `top_p` of the mass; and the mass of all others as one.
    Never renormalised. Biased: the shape of the tail is lost."""

    kind: Literal["topk"] = "topk"
    estimator: ClassVar[SparseEstimator | None] = "top_k"
    k: Annotated[int, Field(ge=1, le=65_535)] = 32
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

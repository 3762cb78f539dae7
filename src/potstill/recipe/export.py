"""Settings of exporters."""

from __future__ import annotations

from typing import ClassVar, Literal

from potstill.recipe.base import KindSettings


class ExportSettings(KindSettings):
    """Base of every exporter."""

    room: ClassVar[str] = "export"


class HuggingFaceExport(ExportSettings):
    """A directory that the plain `from_pretrained` of its task opens (`AutoModelForCausalLM`,
    `AutoModelForSequenceClassification`, …). `dtype: keep` leaves the weights as they were trained. A module of one's
    own goes out as safetensors with its file, which is not what `transformers` opens."""

    kind: Literal["huggingface"] = "huggingface"
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    model_card: bool = True

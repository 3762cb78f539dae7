"""Settings of exporters."""

from __future__ import annotations

from typing import ClassVar, Literal

from potstill.recipe.base import KindSettings


class ExportSettings(KindSettings):
    """Base of every exporter."""

    room: ClassVar[str] = "export"


class HuggingFaceExport(ExportSettings):
    """A directory that the plain `from_pretrained` of its task opens (`AutoModelForCausalLM`,
    `AutoModelForSequenceClassification`, …). `dtype: keep` leaves the weights as trained. A user's own module is
    exported as safetensors with its file, which `transformers` does not open."""

    kind: Literal["huggingface"] = "huggingface"
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    model_card: bool = True

"""Settings of teachers, and what each kind can give."""

from __future__ import annotations

from typing import ClassVar, Literal

from potstill.recipe.base import KindSettings
from potstill.types import Capability


class TeacherSettings(KindSettings):
    """Base of every teacher."""

    room: ClassVar[str] = "teachers"
    capabilities: ClassVar[frozenset[Capability]] = frozenset()


class LocalTeacher(TeacherSettings):
    """A causal language model of `transformers`, on this machine.

    `model` is a directory, a GGUF file, a hub id, `run:<folder>` (the student of another run), or a name that
    potstill knows (`smollm2-135m-instruct`). `dtype` is that of the forward passes that give distributions;
    `generate_dtype` that of writing (`auto`: bfloat16 where the processor has it).
    """

    kind: Literal["local"] = "local"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"generate", "head", "dense", "taps"})
    model: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    generate_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = (
        None
    )
    device: str = "auto"
    device_map: str | None = None
    quantization: Literal["none", "bnb_8bit", "bnb_4bit"] = "none"
    trust_remote_code: bool = False

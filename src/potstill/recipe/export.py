"""Settings of exporters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from potstill.recipe.base import Count, KindSettings, Tokens
from potstill.recipe.students import Existing
from potstill.tasks import SPECS, Task


class ExportSettings(KindSettings):
    """Base of every exporter."""

    room: ClassVar[str] = "export"

    def packages(self) -> Mapping[str, str]:
        """The optional packages that this export needs, each with the extra that installs it."""
        return {}

    def why_not(self, task: Task) -> str | None:
        """Why students of a task have no such export, or None."""
        return None

    def rounds_again(self, weights: Literal["int8", "int4"]) -> tuple[str, ...]:
        """The formats of this export that change weights which `train.quantize` has rounded already."""
        return ()


class HuggingFaceExport(ExportSettings):
    """A directory that the plain `from_pretrained` of its task opens (`AutoModelForCausalLM`,
    `AutoModelForSequenceClassification`, …). `dtype: keep` leaves the weights as trained. A user's own module is
    exported as safetensors with its file, which `transformers` does not open. `serving` writes configurations of these
    servers beside the weights."""

    kind: Literal["huggingface"] = "huggingface"
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    model_card: bool = True
    serving: tuple[Literal["vllm", "sglang"], ...] = ()

    def rounds_again(self, weights: Literal["int8", "int4"]) -> tuple[str, ...]:
        """Both halves: an integer times a scale of 11 significant bits has more bits than they."""
        return (self.dtype,) if self.dtype in ("bfloat16", "float16") else ()

    def why_not(self, task: Task) -> str | None:
        served = SPECS[task].writes or not self.serving
        return None if served else "vLLM and SGLang are configured for causal language models only"


GgufType = Literal["f32", "f16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k"]
"""How the matrices of a GGUF file are stored: in 32, 16, 8.5 or 4.5 bits per weight, or as llama.cpp's K-quants."""


SAME_GRID: Mapping[Literal["int8", "int4"], GgufType] = {"int8": "q8_0", "int4": "q4_0"}
"""The type that stores weights of `train.quantize` as they are."""

K_QUANTS: tuple[GgufType, ...] = ("q4_k_m", "q5_k_m", "q6_k")
"""Written by llama.cpp itself."""


class CheckedExport(ExportSettings):
    """An export that is opened by the engine that it is for, and compared with the student there.

    Attributes:
        check_prompts: number of prompts in the comparison, of the 50 that potstill ships; 0 compares nothing, and the
            card says so.
        check_tokens: number of tokens that are written greedily after each.
        tolerance: largest mean KL(student ‖ export) in nats per token; None is the default of the format. An export
            that is farther away is refused.
        model_card: take the report's card along.
    """

    check_prompts: Annotated[int, Field(ge=0, le=50)] = 8
    check_tokens: Tokens = 32
    tolerance: Annotated[float, Field(gt=0)] | None = None
    model_card: bool = True


class GgufExport(CheckedExport):
    """GGUF files for llama.cpp and Ollama, one per entry of `types`, with tokenizer and chat template inside. `serving`
    writes what these servers are told of the first file: a `Modelfile`, `llama-server.sh`."""

    kind: Literal["gguf"] = "gguf"
    types: Annotated[tuple[GgufType, ...], Field(min_length=1)] = ("f16",)
    serving: tuple[Literal["ollama", "llama.cpp"], ...] = ("ollama",)

    def rounds_again(self, weights: Literal["int8", "int4"]) -> tuple[str, ...]:
        """All but `f32` and the type of the same grid."""
        return tuple(kind for kind in self.types if kind not in ("f32", SAME_GRID[weights]))

    def packages(self) -> Mapping[str, str]:
        return {"cyllama": "gguf"} if self.check_prompts or set(self.types) & set(K_QUANTS) else {}

    def why_not(self, task: Task) -> str | None:
        return None if SPECS[task].writes else "only causal language models are exported to GGUF"


class OnnxExport(CheckedExport):
    """ONNX graphs for ONNX Runtime: of causal models with a cache, of encoders, classifiers of texts and images, and
    modules of the user's own.

    Attributes:
        types: `float32`; `int8`, with one scale per channel of every matrix.
        image_shape: channels, height and width that an image classifier reads; needed for a module of the user's own.
    """

    kind: Literal["onnx"] = "onnx"
    types: Annotated[tuple[Literal["float32", "int8"], ...], Field(min_length=1)] = ("float32",)
    image_shape: tuple[Count, Count, Count] | None = None

    def rounds_again(self, weights: Literal["int8", "int4"]) -> tuple[str, ...]:
        """`int8`, which has another grid."""
        return tuple(kind for kind in self.types if kind != "float32")

    def packages(self) -> Mapping[str, str]:
        return dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "onnx")


class OpenVinoExport(CheckedExport):
    """Graphs for OpenVINO, of the same students as ONNX graphs; the processor's own engine of Intel.

    Attributes:
        types: how the weights are stored, `float16` or `float32`.
        image_shape: as of an ONNX export.
    """

    kind: Literal["openvino"] = "openvino"
    types: Annotated[tuple[Literal["float16", "float32"], ...], Field(min_length=1)] = ("float16",)
    image_shape: tuple[Count, Count, Count] | None = None

    def rounds_again(self, weights: Literal["int8", "int4"]) -> tuple[str, ...]:
        """`float16`."""
        return tuple(kind for kind in self.types if kind != "float32")

    def packages(self) -> Mapping[str, str]:
        return dict.fromkeys(("onnx", "onnxscript", "openvino"), "openvino")


class AdapterExport(CheckedExport):
    """The low-rank adapter of a student with `lora`, for peft, on the model that the student began with."""

    kind: Literal["adapter"] = "adapter"

    def why_not(self, task: Task) -> str | None:
        return None if SPECS[task].writes else "only adapters of causal language models are exported"

    def why_not_of(self, student: object) -> str | None:
        """Why a student has no adapter that others can put on a model, or None."""
        if getattr(student, "lora", None) is None:
            return "export of kind adapter needs a student with an adapter: set student.lora, or use kind: huggingface"
        if not isinstance(student, Existing):
            return (
                f"the adapter of a {getattr(student, 'kind', '')!r} student sits on weights that nobody else has: use "
                "kind: huggingface, where it is merged, or student.kind: existing"
            )
        return None


class SentenceTransformersExport(ExportSettings):
    """A folder that `SentenceTransformer` opens: the encoder, the pooling of training, and length 1.

    Attributes:
        check_prompts: number of texts whose embeddings are compared, of the 50 that potstill ships; 0 compares none.
        tolerance: largest 1 − cos between an embedding there and here.
        model_card: take the report's card along.
    """

    kind: Literal["sentence_transformers"] = "sentence_transformers"
    check_prompts: Annotated[int, Field(ge=0, le=50)] = 8
    tolerance: Annotated[float, Field(gt=0)] = 1e-5
    model_card: bool = True

    def packages(self) -> Mapping[str, str]:
        return {"sentence_transformers": "embeddings"} if self.check_prompts else {}

    def why_not(self, task: Task) -> str | None:
        why = "only sentence embeddings are exported for sentence-transformers"
        return why if SPECS[task].has_response else None

"""Settings of teachers, and the capabilities of each kind."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from potstill.recipe.base import Cosmetic, KindSettings, PathText, one_of
from potstill.types import Capability


class TeacherSettings(KindSettings):
    """Base of every teacher. `remote` kinds have no weights on this machine: their `model` is only a name."""

    room: ClassVar[str] = "teachers"
    remote: ClassVar[bool] = False
    capabilities: ClassVar[frozenset[Capability]] = frozenset()

    def capabilities_here(self) -> frozenset[Capability]:
        """This teacher's capabilities, as far as its files tell; by default those of its kind. A kind whose
        capabilities depend on files (a signal store, say) reads them here, without torch. `potstill check` calls
        it."""
        return self.capabilities


class LocalTeacher(TeacherSettings):
    """A model of `transformers`, or a module that another run trained, on this machine.

    `model` is a directory, a GGUF file, a hub id, `run:<folder>` (the student of another run), or a name that potstill
    knows (`smollm2-135m-instruct`). `dtype` is the precision of forward passes for distributions, `generate_dtype`
    that of generation (`auto`: bfloat16 if the processor has it). With `cache`, the signals for an example are
    computed once and kept on disk, for all trainings on the same data: for classifiers and features, not for
    distributions over a vocabulary.
    """

    kind: Literal["local"] = "local"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"generate", "head", "dense", "taps"})
    model: PathText
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
    cache: Annotated[bool, Cosmetic()] = False


class EnsembleTeacher(TeacherSettings):
    """Several teachers as one: the mean of their logits, or the logarithm of the mean of their probabilities (T = 1).
    Hinton et al. 2015, §2: "an arithmetic or geometric mean of their individual predictive distributions"; the
    logits' mean is the geometric one at any temperature."""

    kind: Literal["ensemble"] = "ensemble"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"dense"})
    members: Annotated[tuple[one_of(TeacherSettings), ...], Field(min_length=2)]  # type: ignore[valid-type]
    average: Literal["logits", "probabilities"] = "logits"
    cache: Annotated[bool, Cosmetic()] = False


def members_of(settings: TeacherSettings | None) -> tuple[TeacherSettings, ...]:
    """The teachers behind a teacher: itself, or an ensemble's members, recursively; none for None."""
    if isinstance(settings, EnsembleTeacher):
        return tuple(found for member in settings.members for found in members_of(member))
    return () if settings is None else (settings,)


def weights_of(settings: object) -> str | None:
    """The name or path of the weights that a teacher or student reads on this machine; None if it reads none."""
    model: str | None = None if getattr(settings, "remote", False) else getattr(settings, "model", None)
    return model

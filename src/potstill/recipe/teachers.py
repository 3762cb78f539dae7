"""Settings of teachers, and the capabilities of each kind."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, field_validator, model_validator

from potstill.recipe.base import (
    COUNT_AT_MOST,
    Content,
    Cosmetic,
    Count,
    KindSettings,
    NamesModel,
    PartIfSet,
    PathText,
    Settings,
    Tokens,
    one_of,
)
from potstill.recipe.policy import Licence
from potstill.types import Capability


class TeacherSettings(KindSettings):
    """Base of every teacher. `remote` kinds have no weights on this machine: their `model` is only a name. `licence`
    states the licence or terms where the gate does not find them itself."""

    room: ClassVar[str] = "teachers"
    remote: ClassVar[bool] = False
    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    licence: Annotated[Licence | None, Cosmetic()] = None

    def capabilities_here(self) -> frozenset[Capability]:
        """This teacher's capabilities, as far as its files tell; by default those of its kind. A kind whose
        capabilities depend on files (a signal store, say) reads them here, without torch. `potstill check` calls
        it."""
        return self.capabilities


class LocalTeacher(TeacherSettings, NamesModel):
    """A model of `transformers`, or a module that another run trained, on this machine.

    `model` is a directory, a GGUF file, a hub id, `run:<folder>` (the student of another run), or a name that potstill
    knows (`smollm2-135m-instruct`). `dtype` is the precision of forward passes for distributions, `generate_dtype`
    that of generation (`auto`: bfloat16 if the processor has it).
    """

    kind: Literal["local"] = "local"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"generate", "head", "dense", "taps"})
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


class EnsembleTeacher(TeacherSettings):
    """Several teachers as one: the mean of their logits, or the logarithm of the mean of their probabilities (T = 1).
    Hinton et al. 2015, §2: "an arithmetic or geometric mean of their individual predictive distributions"; the
    logits' mean is the geometric one at any temperature."""

    kind: Literal["ensemble"] = "ensemble"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"dense"})
    members: Annotated[tuple[one_of(TeacherSettings), ...], Field(min_length=2)]  # type: ignore[valid-type]
    average: Literal["logits", "probabilities"] = "logits"

    @model_validator(mode="after")
    def _members_have_licences(self) -> EnsembleTeacher:
        if self.licence is not None:
            raise ValueError("an ensemble has no licence of its own: state `licence` at the member that it is of")
        return self


def members_of(settings: TeacherSettings | None) -> tuple[TeacherSettings, ...]:
    """The teachers behind a teacher: itself, or an ensemble's members, recursively; none for None."""
    if isinstance(settings, EnsembleTeacher):
        return tuple(found for member in settings.members for found in members_of(member))
    return () if settings is None else (settings,)


def weights_of(settings: object) -> str | None:
    """The name or path of the weights that a teacher or student reads on this machine; None if it reads none."""
    model: str | None = None if getattr(settings, "remote", False) else getattr(settings, "model", None)
    return model


# ---- a teacher behind an OpenAI-compatible server --------------------------------------------------------------------


class SamplerExtras(Settings):
    """Further fields of a request, sent verbatim and only if set.

    `top_p`, `temperature` and the length are the program's. For fields that are not sent the server's defaults apply
    (vLLM takes `top_k` and penalties from the model's generation settings, unless it is started with
    `--generation-config vllm`). `generation_config` is JSON text for `transformers serve`: that server samples only if
    it, or the model's own settings, contain `{"do_sample": true}`.
    """

    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: PositiveFloat | None = None
    repeat_penalty: PositiveFloat | None = None
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    min_tokens: int | None = Field(None, ge=0)
    stop: tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] | None = None
    logit_bias: dict[str, float] | None = None
    skip_special_tokens: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    service_tier: str | None = None
    provider: dict[str, Any] | None = None
    generation_config: str | None = None

    def sent(self) -> dict[str, Any]:
        """The fields that are set, as JSON values."""
        return self.model_dump(mode="json", exclude_none=True)


class Price(Settings):
    """US dollars per million tokens, read and written."""

    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)


class EndpointTeacher(TeacherSettings):
    """A model behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, `transformers serve`, or a hosted one.

    `base_url` ends before `/chat/completions` (`http://127.0.0.1:8000/v1`). The key is read from the environment
    variable `api_key_env` and stored nowhere else. `tokenizer` (a folder or a name, as `model` of a local teacher)
    renders conversations for `api: completions`, which needs it; with it, prompt tokens are counted exactly for caps
    on tokens, and without it by bytes, an upper bound.

    `omit` names fields that the server does not accept; the server's defaults then apply. `max_in_flight` is the
    maximum number of concurrent requests; the actual number adapts to the server. `retries` counts retries of a
    request after the server failed on it (a request to wait does not count). If no request has been answered for
    `patience_seconds`, the stage ends with an error. `reasoning: required` means that every answer contains reasoning,
    so an answer without its end was cut short even if the template opened the block. `logprobs` requests the
    log-probabilities of the answer's tokens; their mean is `mean_logprob` in the metadata of records of `sequence` and
    `reasoning`. If the server returns none, the stage ends with an error.

    `answer_logprobs` requests that many of the likeliest tokens in the place of each token that it writes, which stay
    with the record; `capture` of kind `topk` stores them, and asks the server for nothing.

    `prompt_logprobs` says how the server is asked for the log-probabilities of a text that it is sent, for `capture` of
    kind `topk`: as vLLM's completions, SGLang's `/generate`, or llama.cpp's `/completion` (a request for each learned
    token). `top_logprobs` is the most that it gives a token
    (vLLM: `--max-logprobs`).
    """

    kind: Literal["endpoint"] = "endpoint"
    remote: ClassVar[bool] = True
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"generate"})
    base_url: str
    model: PathText = Field(min_length=1)
    api: Literal["chat", "completions"] = "chat"
    api_key_env: Annotated[str | None, Cosmetic(), Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = None
    tokenizer: Annotated[PathText | None, Content()] = None
    context_length: Tokens | None = None
    extra: SamplerExtras = SamplerExtras()
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    omit: tuple[Literal["temperature", "top_p", "seed"], ...] = ()
    reasoning: Literal["auto", "required"] = "auto"
    logprobs: bool = False
    prompt_logprobs: Annotated[Literal["vllm", "sglang", "llamacpp"] | None, PartIfSet()] = None
    answer_logprobs: Annotated[Count | None, PartIfSet()] = None
    top_logprobs: Annotated[Count, Cosmetic()] = 20
    max_in_flight: Annotated[Count, Cosmetic()] = 256
    requests_per_minute: Annotated[PositiveFloat | None, Cosmetic()] = None
    tokens_per_minute: Annotated[PositiveFloat | None, Cosmetic()] = None
    timeout_seconds: Annotated[PositiveFloat, Cosmetic()] = 600.0
    retries: Annotated[int, Cosmetic(), Field(ge=0, le=COUNT_AT_MOST)] = 8
    patience_seconds: Annotated[PositiveFloat, Cosmetic()] = 3600.0
    price: Annotated[Price | None, Cosmetic()] = None
    price_provider: Annotated[str | None, Cosmetic()] = None

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is an address such as http://127.0.0.1:8000/v1")
        if parts.username is not None or parts.password is not None:
            # The address is written into manifests and records.
            raise ValueError("holds a user or a password: name the environment variable of the key by api_key_env")
        if parts.query or parts.fragment:
            raise ValueError("ends where /chat/completions begins, without ? and #")
        for end in ("/chat/completions", "/completions"):
            value = value.rstrip("/").removesuffix(end)
        return value

    @model_validator(mode="after")
    def _possible(self) -> EndpointTeacher:
        if self.prompt_logprobs is not None and self.answer_logprobs is not None:
            raise ValueError(
                "prompt_logprobs has capture ask for texts, and answer_logprobs has the answers bring theirs: drop one"
            )
        if self.api == "completions" and self.extra.chat_template_kwargs is not None:
            raise ValueError("chat_template_kwargs are for api: chat, where the server renders: drop them")
        return self

    @property
    def url(self) -> str:
        """The address that requests are sent to."""
        return f"{self.base_url}/{'chat/completions' if self.api == 'chat' else 'completions'}"

"""A model on this machine: gives distributions and inner states; a causal language model also writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.console import Console
from potstill.data import ChatTokenizer, prompt_ids
from potstill.decoding.generator import Wrote, stop_token_ids, write
from potstill.errors import CapabilityError, DataError
from potstill.models.anatomy import dims
from potstill.models.folder import ModelSource, is_module, read_config
from potstill.models.kinds import task_in
from potstill.models.labels import labels_in, labels_of
from potstill.models.live import live_signals
from potstill.models.load import has_fast_bf16, load_model, load_tokenizer, pick_device, pick_dtype
from potstill.models.resolve import resolve
from potstill.recipe import LocalTeacher
from potstill.registry import implements
from potstill.signals import Ask, Batch, ModelDims, Side, Signals
from potstill.tasks import SPECS, Task
from potstill.teachers.base import capabilities_for
from potstill.types import Answer, Capability, Request


@implements(LocalTeacher)
class LocalModel:
    """The teacher of `kind: local`. Weights are loaded on first use, and twice if it writes in another precision than
    it computes distributions in.

    Args:
        settings: where the model is, and how it is opened.
        opened_for: the task that it is opened for; None is the one it was saved for.
        classes: names of the classes that it must have, of a classifier.
        side: whose view of a batch it reads. An evaluation opens students like teachers.
    """

    def __init__(
        self,
        settings: LocalTeacher,
        *,
        opened_for: Task | None = None,
        classes: Sequence[str] = (),
        side: Side = "teacher",
    ) -> None:
        self.settings, self.side = settings, side
        self._opened_for, self._classes = opened_for, classes

    @cached_property
    def source(self) -> ModelSource:
        """The model on disk; fetched or converted if needed.

        Raises:
            ModelError: as `resolve`.
        """
        settings = self.settings
        return resolve(
            settings.model,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            console=Console(),
        )

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The capabilities of a model for this task; loads no weights."""
        return self.settings.capabilities & capabilities_for(SPECS[self.task])

    @cached_property
    def task(self) -> Task:
        """The task that the model is opened for; loads no weights."""
        if self._opened_for is not None:
            return self._opened_for
        if is_module(self.source.path):
            return "image_classification"
        return task_in(read_config(self.source.path), where=str(self.source.path))

    @cached_property
    def labels(self) -> tuple[str, ...] | None:
        """The names of its classes, in order; None if it has none."""
        if is_module(self.source.path):
            return labels_of(self.model)
        return labels_in(read_config(self.source.path)) if SPECS[self.task].has_classes else None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The `transformers` tokenizer, chat template included; None if the model reads no text."""
        return load_tokenizer(self.source, self.settings.trust_remote_code) if SPECS[self.task].reads_text else None

    @cached_property
    def model(self) -> nn.Module:
        """The model for distributions and inner states: frozen, in evaluation mode."""
        return self._load(self._dtype)

    @property
    def modules(self) -> tuple[nn.Module]:
        """The open model."""
        return (self.model,)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """What an answer depends on, beside the request; for a model that does not write, what its signals depend
        on."""
        if not SPECS[self.task].writes:
            return self.signals_identity
        return {
            "kind": self.settings.kind,
            "model": self.source.name,
            "revision": self.source.revision,
            "digest": self.source.digest,
            "dtype": _name(self._writing_dtype),
            "quantization": self.settings.quantization,
            "template": self._chat.template_hash,
        }

    @cached_property
    def signals_identity(self) -> Mapping[str, Any]:
        """What its signals depend on, beside the batch."""
        return {
            "kind": self.settings.kind,
            "model": self.source.name,
            "revision": self.source.revision,
            "digest": self.source.digest,
            "dtype": _name(self._dtype),
            "quantization": self.settings.quantization,
            "attention": self.settings.attn_implementation,
            "device": self._device.type,
        }

    @cached_property
    def dims(self) -> ModelDims:
        """Its sizes."""
        return dims(self.model)

    @cached_property
    def context_length(self) -> int | None:
        """Maximum number of tokens read and written together; None if its configuration does not say."""
        config = read_config(self.source.path)
        length = config.get("max_position_embeddings") or config.get("n_positions") or config.get("max_seq_len")
        return int(length) if length else None

    def signals(self, batch: Batch, ask: Ask) -> Signals:
        """The requested tensors for a batch: from the teacher's view, in its own precision, without gradient, and in
        evaluation mode whatever its mode was before (rule 8).

        Raises:
            ModelError: it has no such tensor, or no response (an encoder without head).
        """
        self.model.eval()
        # The student's autocast must not apply to the teacher.
        with torch.no_grad(), torch.autocast(batch.target_ids.device.type, enabled=False):
            return live_signals(self.model, batch, self.side, ask)

    def generate(self, requests: Sequence[Request], *, seed: int, wrote: Wrote | None = None) -> list[Answer]:
        """Answer a batch, in order. The answers depend only on the requests of this batch and the seed (in low
        precision on *all* of the requests, since they are computed together).

        With beams, the request with `sample` k gets the k-th best beam of its prompt. Of the model's own generation
        settings only the end tokens are used. An answer's token count includes its end token.

        Raises:
            CapabilityError: it is no causal language model.
            ValueError: the requests differ in sampling settings, or there is none.
            DataError: a prompt leaves the model no room for an answer, or cannot be rendered.
        """
        if not SPECS[self.task].writes:
            raise CapabilityError(
                f"{self.source.name} writes no text: it is a model for {self.task}",
                fix="use a causal language model as the teacher of generate",
            )
        samplings = {request.sampling for request in requests}
        if len(samplings) != 1:
            raise ValueError(f"a batch has one sampling setting, not {len(samplings)}")
        sampling = samplings.pop()
        prompts = [self._prompt(request) for request in requests]
        most_new = min(sampling.max_new_tokens, self._room(prompts))
        model = self._writer
        model.eval()
        written = write(
            model,
            prompts,
            sampling,
            samples=[request.sample for request in requests],
            most_new=most_new,
            stop_ids=self._stop_ids,
            pad_id=self._chat.pad_id,
            seed=seed,
            wrote=wrote,
        )
        return [self._answer(prompt, ids) for prompt, ids in zip(prompts, written, strict=True)]

    # ---- inside -----------------------------------------------------------------------------------------------

    @cached_property
    def _device(self) -> torch.device:
        return pick_device(self.settings.device)

    @cached_property
    def _dtype(self) -> torch.dtype:
        return pick_dtype(self.settings.dtype, self.source, self._device)

    @cached_property
    def _writing_dtype(self) -> torch.dtype:
        if self.settings.generate_dtype == "auto" and has_fast_bf16(self._device):
            return torch.bfloat16
        return pick_dtype(self.settings.generate_dtype, self.source, self._device)

    @cached_property
    def _writer(self) -> PreTrainedModel:
        writer = self.model if self._writing_dtype == self._dtype else self._load(self._writing_dtype)
        assert isinstance(writer, PreTrainedModel)
        return writer

    @cached_property
    def _chat(self) -> ChatTokenizer:
        if self.tokenizer is None:
            raise CapabilityError(f"{self.source.name} reads no text", fix="use a causal language model to write")
        return ChatTokenizer.from_transformers(self.tokenizer)

    @cached_property
    def _stop_ids(self) -> list[int]:
        return stop_token_ids(self._writer, self._chat.eos_id)

    def _load(self, dtype: torch.dtype) -> nn.Module:
        settings = self.settings
        model = load_model(
            self.source,
            task=self._opened_for,
            labels=self._classes or None,
            dtype=_name(dtype),
            device=settings.device,
            device_map=settings.device_map,
            attn_implementation=settings.attn_implementation,
            quantization=settings.quantization,
            trust_remote_code=settings.trust_remote_code,
        )
        model.requires_grad_(False)
        return model

    def _prompt(self, request: Request) -> list[int]:
        asked = request.messages if request.messages is not None else request.prompt
        if asked is None:
            raise ValueError("a request has messages or a prompt")
        return prompt_ids(asked, self._chat, request.tools)

    def _room(self, prompts: Sequence[Sequence[int]]) -> int:
        """New tokens that fit behind the longest prompt of a batch (all rows grow together)."""
        longest = max(map(len, prompts))
        if self.context_length is None:
            return 1 << 30
        if longest >= self.context_length:
            raise DataError(
                f"a prompt has {longest:,} tokens, and {self.source.name} reads and writes "
                f"{self.context_length:,} in all",
                fix="shorten it or take it out of the data",
            )
        return self.context_length - longest

    def _answer(self, prompt: Sequence[int], ids: Sequence[int]) -> Answer:
        stopped = bool(ids) and ids[-1] in self._stop_ids
        text = self._chat.decode(ids[:-1] if stopped else ids, skip_special_tokens=True)
        if not stopped:
            # The answer was cut inside a character of several tokens; drop its first bytes.
            text = text.rstrip("\ufffd")
        return Answer(text, "stop" if stopped else "length", len(prompt), len(ids))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

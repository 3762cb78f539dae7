"""A model behind an OpenAI-compatible server. It only writes: it has no weights here, and gives no distributions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.console import Console
from potstill.data.chat import ChatTokenizer
from potstill.data.tokenize import prompt_ids
from potstill.errors import CapabilityError, DataError, RecipeError, RunError
from potstill.models.resolve import resolve
from potstill.recipe import EndpointTeacher
from potstill.registry import implements
from potstill.teachers.endpoint_wire import body_of, bound_tokens
from potstill.types import Answer, Capability, Request

if TYPE_CHECKING:
    from potstill.signals import Ask, Batch, ModelDims, Signals
    from potstill.teachers.endpoint_client import Call, Keeper


@implements(EndpointTeacher)
class EndpointModel:
    """The teacher of `kind: endpoint`."""

    def __init__(self, settings: EndpointTeacher) -> None:
        self.settings = settings

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Only `generate`."""
        return self.settings.capabilities

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """What answers depend on: server, model, and the fields of every request. The key is not part of it."""
        of = self.settings
        template = self.chat.template_hash if self.chat is not None and of.api == "completions" else "the server's"
        return {
            "kind": of.kind,
            "server": of.base_url,
            "model": of.model,
            "api": of.api,
            "extra": of.extra.sent(),
            "max_tokens_field": of.max_tokens_field,
            "omit": list(of.omit),
            "template": template,
            **({"logprobs": True} if of.logprobs else {}),
            **({"answer_logprobs": of.answer_logprobs} if of.answer_logprobs is not None else {}),
        }

    @cached_property
    def chat(self) -> ChatTokenizer | None:
        """Renders and counts prompts, if the settings name a tokenizer."""
        return ChatTokenizer.from_folder(self.tokenizer_folder) if self.tokenizer_folder is not None else None

    @cached_property
    def tokenizer_folder(self) -> Path | None:
        """The folder of the tokenizer that the settings name, if any. It need not contain a model."""
        named = self.settings.tokenizer
        if named is None:
            return None
        return Path(named) if Path(named).is_dir() else resolve(named, console=Console()).path

    @property
    def tokenizer(self) -> Any:
        """Raises CapabilityError: an endpoint has no tokenizer for `transformers`."""
        raise CapabilityError(
            "a teacher behind a server has no tokenizer here",
            where=self.settings.base_url,
            fix="use a teacher that runs here (kind: local)",
        )

    @property
    def dims(self) -> ModelDims:
        """Raises CapabilityError: an endpoint does not tell its sizes."""
        raise CapabilityError("a teacher behind a server does not tell its sizes", where=self.settings.base_url)

    @property
    def context_length(self) -> int | None:
        """The maximum number of tokens read and written together, if the settings say."""
        return self.settings.context_length

    @property
    def turns(self) -> bool:
        """Whether a plain prompt becomes the user's turn (rather than being continued verbatim)."""
        return self.settings.api == "chat" or (self.chat is not None and self.chat.template is not None)

    def rendered(self, request: Request) -> str | None:
        """The prompt as text, if it is rendered here: over `api: completions`.

        Drops a begin token at its start: the server adds one.

        Raises:
            DataError: a conversation, and no tokenizer to render it, or its template refuses it.
        """
        if self.settings.api == "chat":
            return None
        if self.chat is None or self.chat.template is None:
            if request.prompt is None:
                raise DataError(
                    "the data are conversations, and api: completions takes prompts",
                    where="teacher",
                    fix="use api: chat, or name a tokenizer with the model's chat template as the teacher's tokenizer",
                )
            return request.prompt
        asked = request.messages if request.messages is not None else ({"role": "user", "content": request.prompt},)
        text = self.chat.render(asked, request.tools, add_generation_prompt=True)
        begin = self.chat.special.get("bos_token")
        return text.removeprefix(begin) if isinstance(begin, str) and self.chat.leading else text

    def key_of(self, request: Request, seed: int) -> tuple[str, int | None]:
        """The journal's key of a request under the recipe's seed, and the request's sampling seed (31 bits, which
        every server accepts), derived from the key; None for greedy requests."""
        if request.sampling.temperature == 0:
            return request.key(self.identity), None
        key = request.key({**self.identity, "seed": seed})
        return key, int(key[:8], 16) & 0x7FFFFFFF

    def call(self, request: Request, seed: int | None) -> Call:
        """The request as it is sent, with a bound on its tokens. Raises as `rendered`."""
        from potstill.teachers.endpoint_client import Call

        sent = body_of(request, self.settings, self.rendered(request), seed)
        return Call(sent, self.prompt_tokens(request, sent) + request.sampling.max_new_tokens)

    def prompt_tokens(self, request: Request, sent: Mapping[str, Any] | None = None) -> int:
        """Tokens of the prompt: exact if the settings name a tokenizer, else an upper bound. Raises as `rendered`."""
        if self.chat is not None:
            prompt = request.messages if request.messages is not None else request.prompt or ""
            return len(prompt_ids(prompt, self.chat, request.tools))
        return bound_tokens(sent if sent is not None else body_of(request, self.settings, self.rendered(request), None))

    def secret(self) -> str | None:
        """The key, from the environment.

        Raises:
            RecipeError: the variable is not set.
        """
        name = self.settings.api_key_env
        if name is None:
            return None
        key = os.environ.get(name, "").strip()
        if not key:
            raise RecipeError(
                f"the environment variable {name} is not set", where="teacher.api_key_env", fix=f"export {name}=…"
            )
        return key

    def open(self, keeper: Keeper) -> Any:
        """A client (`EndpointClient`); a context manager. Raises as `secret`."""
        from potstill.teachers.endpoint_client import EndpointClient

        return EndpointClient(self.settings, self.secret(), keeper)

    def signals(self, batch: Batch, ask: Ask) -> Signals:
        """Raises CapabilityError: an endpoint gives no signals."""
        raise CapabilityError("a teacher behind a server gives no distributions", where=self.settings.base_url)

    def generate(
        self, requests: Sequence[Request], *, seed: int, wrote: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """Answer a batch, in order, with the server's raw answers; without journal or budget (the stage has both).

        Raises:
            RunError: a request was refused or not answered.
        """
        with self.open(NoJournal()) as client:
            stream = client.stream()
            calls = [self.call(request, self.key_of(request, seed)[1]) for request in requests]
            stream.submit(calls)
            left = len(calls)
            while left:
                left -= len(stream.take(0.1))
        answers = []
        for call in calls:
            if not isinstance(call.outcome, Answer):
                why = call.outcome
                text = "no answer" if why is None else f"{why.reason} ({why.detail})"
                raise RunError(text, where=self.settings.url)
            answers.append(call.outcome)
        return answers


class NoJournal:
    """A `Keeper` that keeps nothing."""

    has_answers = False

    def begin(self, call: Any) -> None: ...

    def keep(self, answered: Any) -> None: ...

    def again(self, call: Any, trouble: Any) -> None: ...

    def ready(self, call: Any) -> bool:
        return True

    def lost(self, call: Any, trouble: Any) -> None: ...

"""A model in a conversation."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from potstill.console import Console
from potstill.data import ChatTokenizer, prompt_ids
from potstill.decoding.generator import stop_token_ids, stream
from potstill.errors import ModelError, RunError, UserError, missing_run
from potstill.models.anatomy import text_config
from potstill.models.folder import is_module, read_config
from potstill.models.kinds import task_in
from potstill.models.load import load_model
from potstill.models.resolve import resolve
from potstill.recipe import LocalTeacher, Recipe, load_recipe
from potstill.tasks import SPECS
from potstill.types import Message, Sampling

_INCOMPLETE = "\ufffd"
"""What bytes decode to that are not a whole character yet."""


@dataclass
class Speaker:
    """A model and the turns so far as it saw them: the person's, and its own answers.

    Attributes:
        role: `student` or `teacher`.
        model: a causal language model in evaluation mode.
        chat: its tokenizer and chat template. Without a template every text is continued as it stands, alone.
        messages: the turns so far; a system prompt is the first.
    """

    role: str
    model: Any
    chat: ChatTokenizer
    messages: list[Message] = field(default_factory=list)

    def answer(self, text: str, sampling: Sampling, seed: int) -> Generator[str, None, None]:
        """The answer to a text, in pieces as they are written. Pieces are whole characters, and as the model wrote
        them: whoever prints them cleans them. Question and answer are turns of the conversation from then on, also if
        the iterator is left early.

        Raises:
            UserError: the text alone is longer than the model's context.
            DataError: the chat template refuses the conversation.
        """
        question: Message = {"role": "user", "content": text}
        prompt, most_new = self._prompt(question, sampling.max_new_tokens)
        stop_ids = stop_token_ids(self.model, self.chat.eos_id)
        ids: list[int] = []
        shown = ""
        try:
            asked = replace(sampling, max_new_tokens=most_new)
            for token in stream(self.model, prompt, asked, stop_ids=stop_ids, seed=seed):
                ids.append(token)
                # What may change with the next token waits: half a character, and \r, which may become \r\n.
                whole = self._decode(ids).rstrip(_INCOMPLETE + "\r")
                if len(whole) > len(shown):
                    shown, piece = whole, whole[len(shown) :]
                    yield piece
            if rest := self._decode(ids)[len(shown) :]:
                yield rest
        finally:
            self.messages += [question, {"role": "assistant", "content": self._decode(ids)}]

    def forget(self) -> None:
        """Begin a new conversation under the same system prompt."""
        self.messages = self._system

    @property
    def _system(self) -> list[Message]:
        return [message for message in self.messages[:1] if message["role"] == "system"]

    def _decode(self, ids: list[int]) -> str:
        return self.chat.decode(ids, skip_special_tokens=True)

    def _prompt(self, question: Message, most_new: int) -> tuple[list[int], int]:
        """Ids of the conversation with the question, without its oldest turns where it is too long; and how many tokens
        may follow."""
        if self.chat.template is None:
            ids = prompt_ids(str(question["content"]), self.chat)
        else:
            while True:
                ids = prompt_ids((*self.messages, question), self.chat)
                past = len(self._system)
                if self._left(ids) >= most_new or len(self.messages) == past:
                    break
                del self.messages[past : past + 2]
        left = self._left(ids)
        if left < 1:
            raise UserError(
                f"the {self.role} reads {len(ids) + left} tokens, and this text has {len(ids)}", fix="shorten it"
            )
        return ids, min(most_new, left)

    def _left(self, ids: list[int]) -> int:
        limit = getattr(text_config(self.model), "max_position_embeddings", None)
        return (limit or len(ids) + 2**20) - len(ids)


def student_of(run: Path, system: str | None, console: Console) -> Speaker:
    """The student of a run, the model in a folder, or a GGUF file; of a folder of GGUF files the first.

    Raises:
        RunError, ModelError: there is none, or it writes no text.
    """
    if not run.exists():
        raise missing_run(run)
    if (run / "recipe.yaml").is_file():
        name = f"run:{run}"
    elif (run / "config.json").is_file():
        name = str(run)
    else:
        name = str(next(iter(sorted(run.glob("*.gguf"))), run))
    return _opened("student", LocalTeacher(model=name), system, console)


def teacher_of(run: Path, system: str | None, console: Console) -> Speaker:
    """The teacher that the student of a run was trained by.

    Raises:
        RunError: it is not a model of this machine.
        ModelError: it cannot be opened, or writes no text.
    """
    if not (run / "recipe.yaml").is_file():
        raise RunError(
            "not a run's folder (it has no recipe.yaml), so it names no teacher",
            where=str(run),
            fix="leave --teacher out",
        )
    settings = _teacher(load_recipe(run / "recipe.yaml"))
    if not isinstance(settings, LocalTeacher):
        kind = settings.kind if settings is not None else "none"
        raise RunError(
            f"the teacher is of kind {kind!r}, not a model of this machine", where=str(run), fix="leave --teacher out"
        )
    return _opened("teacher", settings, system, console)


def _teacher(recipe: Recipe) -> Any:
    return recipe.teachers.get(recipe.train.teacher if recipe.train is not None else "main")


def _opened(role: str, settings: LocalTeacher, system: str | None, console: Console) -> Speaker:
    console.say(f"opening the {role}: {settings.model.removeprefix('run:')}")
    source = resolve(
        settings.model, revision=settings.revision, trust_remote_code=settings.trust_remote_code, console=console
    )
    if is_module(source.path) or not SPECS[task_in(read_config(source.path), str(source.path))].writes:
        raise ModelError("the model writes no text", where=str(source.path), fix="chat with a causal language model")
    model: Any = load_model(
        source,
        task="causal_lm",
        dtype=settings.generate_dtype,
        device=settings.device,
        device_map=settings.device_map,
        attn_implementation=settings.attn_implementation,
        quantization=settings.quantization,
        trust_remote_code=settings.trust_remote_code,
    )
    chat = ChatTokenizer.from_folder(source.path)
    if system is not None and chat.template is None:
        raise ModelError(f"the {role} has no chat template, and so no system prompt", fix="leave --system out")
    return Speaker(role, model, chat, [] if system is None else [{"role": "system", "content": system}])

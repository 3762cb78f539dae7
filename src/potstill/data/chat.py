"""The tokenizer for all rendering and encoding: `tokenizers` and sandboxed jinja, without torch or transformers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import Tokenizer

from potstill.data.template import Rendered, TemplateRefusal, render_template
from potstill.errors import DataError, ModelError
from potstill.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


class Encoded(NamedTuple):
    """Token ids, and for each the characters `[start, end)` that it stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class ChatTokenizer:
    """Renders conversations and encodes text, as `transformers` does with the same folder.

    Args:
        tokenizer: a `tokenizers` tokenizer; it is copied.
        templates: chat templates by name; `default`, and `tool_use` where tools have their own. May be empty.
        special: special tokens by the names that templates use (`bos_token`, `eos_token` …).
        leading: ids put before any plain text (the begin token, for models that use one).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        templates: Mapping[str, str] | None = None,
        special: Mapping[str, Any] | None = None,
        leading: Sequence[int] = (),
    ) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        # Post-processors add special tokens, which are placed here instead, and trim offsets, which hides tokens that
        # span a boundary.
        self._tokenizer.post_processor = None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.templates = dict(templates or {})
        self.special = dict(special or {})
        self.leading = tuple(leading)
        self.eos_id = self._id("eos_token")
        self.bos_id = self._id("bos_token")
        pad = self._id("pad_token")
        self.pad_id = next((i for i in (pad, self.eos_id) if i is not None), 0)

    @classmethod
    def from_folder(cls, folder: Path | str) -> ChatTokenizer:
        """The tokenizer of a model folder (`tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`).

        Raises:
            ModelError: there is no `tokenizer.json`, or a file is damaged.
        """
        folder = Path(folder)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ModelError(
                "no tokenizer.json",
                where=str(folder),
                fix="open the folder once with transformers' AutoTokenizer and save_pretrained it: that writes one",
            )
        try:
            tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises no other
            raise ModelError(f"the tokenizer cannot be read: {error}", where=str(file)) from error
        config = read_config_file(folder / "tokenizer_config.json")
        special = _special_tokens(folder, config, tokenizer)
        leading = _leading(tokenizer)
        bos = tokenizer.token_to_id(special["bos_token"]) if "bos_token" in special else None
        if config.get("add_bos_token") is False:
            leading = []
        elif config.get("add_bos_token") and bos is not None:
            leading = [bos]
        return cls(tokenizer, templates=_templates(folder, config), special=special, leading=leading)

    @classmethod
    def from_transformers(cls, tokenizer: PreTrainedTokenizerBase) -> ChatTokenizer:
        """The same for a loaded `transformers` tokenizer.

        Raises:
            ModelError: it is not a fast one.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"{type(tokenizer).__name__} has no fast tokenizer behind it",
                fix="load it with use_fast=True, or convert it to a tokenizer.json",
            )
        template = tokenizer.chat_template
        templates = {"default": template} if isinstance(template, str) else dict(template or {})
        return cls(backend, templates=templates, special=tokenizer.special_tokens_map, leading=_leading(backend))

    # ---- text ---------------------------------------------------------------------------------------------

    def encode(self, text: str) -> Encoded:
        """Token ids and offsets of a text, verbatim: nothing is added, and special tokens in the text are read as
        such."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return Encoded(encoding.ids, encoding.offsets)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids, special tokens included by default."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """The texts of all special tokens."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Matches any special token (never, if there is none), the longest first."""
        longest_first = sorted(self.special_tokens, key=lambda t: (-len(t), t))
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    # ---- conversations ------------------------------------------------------------------------------------

    @property
    def template(self) -> str | None:
        """The chat template, if there is one."""
        return self.templates.get("default")

    @property
    def template_hash(self) -> str:
        """SHA-256 (hex) of the chat template's source; empty if there is none."""
        return hashlib.sha256(self.template.encode()).hexdigest() if self.template is not None else ""

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """A conversation as the model sees it.

        Raises:
            DataError: there is no chat template, or it refuses the conversation.
        """
        try:
            return self.render_marked(messages, tools, add_generation_prompt).text
        except TemplateRefusal as error:
            raise DataError(f"the chat template refuses the conversation: {error}") from error

    def render_marked(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> Rendered:
        """As `render`, with the spans that the template marks as written by the model.

        Raises:
            DataError: there is no chat template.
            TemplateRefusal: it refuses the conversation.
        """
        template = self.templates.get("tool_use", self.template) if tools is not None else self.template
        if template is None:
            raise DataError(
                "the data are conversations, and the model has no chat template",
                fix="use a model with one (an instruct model), or data of format prompt_completion or text",
            )
        variables = {
            **self.special,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        return render_template(template, variables, messages)

    def _id(self, role: str) -> int | None:
        token = self.special.get(role)
        return self._tokenizer.token_to_id(token) if isinstance(token, str) else None


def read_config_file(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder; an empty one if there is no such file, or no object in it.

    Raises:
        ModelError: it is no JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"the file is damaged: {error}", where=str(path)) from error
    return content if isinstance(content, dict) else {}


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name; a template file takes precedence over the configuration."""
    stated = config.get("chat_template")
    templates = {"default": stated} if isinstance(stated, str) else {t["name"]: t["template"] for t in stated or ()}
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    own = folder / "chat_template.jinja"
    if own.is_file():
        templates["default"] = own.read_text(encoding="utf-8")
    return templates


def _special_tokens(folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Named special tokens. Tokenizers of different ages keep them in the configuration, in a map of their own, or
    only as ids in the model's configuration (GPT-2)."""
    special: dict[str, Any] = {}
    for source in (read_config_file(folder / "special_tokens_map.json"), config):
        for role in _ROLES:
            token = source.get(f"{role}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                special[f"{role}_token"] = token
        extra = source.get("additional_special_tokens")
        if isinstance(extra, list) and extra:
            special["additional_special_tokens"] = [t["content"] if isinstance(t, dict) else t for t in extra]
        named = source.get("extra_special_tokens")
        if isinstance(named, dict):
            special |= {k: v["content"] if isinstance(v, dict) else v for k, v in named.items()}
    if not special:
        model = read_config_file(folder / "config.json")
        for role in ("bos", "eos", "pad"):
            index = model.get(f"{role}_token_id")
            index = index[0] if isinstance(index, list) and index else index
            token = tokenizer.id_to_token(index) if isinstance(index, int) else None
            if token is not None:
                special[f"{role}_token"] = token
    return special


def _leading(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that the tokenizer puts before a text."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    leading = []
    for index, special in zip(encoding.ids, encoding.special_tokens_mask, strict=True):
        if not special:
            break
        leading.append(index)
    return leading

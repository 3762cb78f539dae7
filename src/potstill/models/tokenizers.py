"""Whether two models speak the same tokens, through the same template (rule 6): equal size is not equal vocabulary.

Vocabularies are compared token by token, the way to them by encoding texts that tell tokenizers apart, and templates by
hash and, where that differs, by rendering. Folders are read without torch, unless their templates differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from potstill.errors import ModelError, TokenizerMismatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXTS = (
    "The quick brown fox doesn't jump over 1,234.56 lazy dogs; it's 2024!",
    "  two leading spaces, a\ttab,\n\n\nthree newlines \r\n and trailing ones   ",
    "Ünïcödé, ﬁne ligatures, Straße, İstanbul, naïve e\u0301",
    "日本語のテキスト, 中文文本, Русский, العربية, हिन्दी, 👩‍🚀🏳️‍🌈",
    "def f(x):\n    return x**2 if x != 0 else None  # ok\n",
    "ALLCAPS camelCase snake_case http://example.com/a?b=c&d=1000000",
)
"""Case, numbers, white space, normalisation, scripts and code: where tokenizers of one vocabulary part ways."""

_CONVERSATIONS: tuple[tuple[Mapping[str, str], ...], ...] = (
    ({"role": "user", "content": "Hello."},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}),
    (
        {"role": "user", "content": " What is 1 + 1?\n"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 2 + 2?"},
        {"role": "assistant", "content": "4"},
    ),
)


@dataclass(frozen=True)
class _Tokens:
    """What is compared of one tokenizer."""

    vocabulary: Mapping[str, int]
    encode: Callable[[str], list[int]]
    template: Any
    open: Callable[[], PreTrainedTokenizerBase]


def check_same_tokenizer(
    teacher: Path | PreTrainedTokenizerBase, student: Path | PreTrainedTokenizerBase, *, templates: bool = True
) -> None:
    """Refuse two tokenizers that differ in anything that moves tokens.

    Args:
        teacher: a model's folder, or a loaded tokenizer.
        student: likewise.
        templates: compare chat templates too.

    Raises:
        TokenizerMismatch: says what differs, and names the choices.
        ModelError: a tokenizer cannot be opened.
    """
    if isinstance(teacher, Path) and isinstance(student, Path) and teacher.resolve() == student.resolve():
        return
    one, other = _tokens_of(teacher), _tokens_of(student)
    _check_vocabulary(one.vocabulary, other.vocabulary)
    for text in _TEXTS:
        if (a := one.encode(text)) != (b := other.encode(text)):
            first = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            raise TokenizerMismatch(
                "teacher and student have the same vocabulary and cut text differently: "
                f"{text!r} gives {len(a)} and {len(b)} tokens, different from token {first} on",
                fix=_CHOICES,
            )
    if templates:
        _check_templates(one, other)


_CHOICES = (
    "use a student with the teacher's tokenizer; or distil at the sequence level: have the teacher write (generate), "
    "and train on its text alone (objectives: hard_ce). Matching distributions takes a cross-tokenizer objective"
)


def _check_vocabulary(teacher: Mapping[str, int], student: Mapping[str, int]) -> None:
    if teacher == student:
        return
    nowhere = 1 << 40
    tokens = sorted(  # two tokens that changed places have the same least id: the teacher's decides
        teacher.keys() | student.keys(),
        key=lambda t: (min(teacher.get(t, nowhere), student.get(t, nowhere)), teacher.get(t, nowhere)),
    )
    differing = [token for token in tokens if teacher.get(token) != student.get(token)]
    first = differing[0]
    said = [
        f"{who} has it as {ids[first]}" if first in ids else f"{who} lacks it"
        for who, ids in (("the teacher", teacher), ("the student", student))
    ]
    raise TokenizerMismatch(
        f"teacher and student speak different tokens: {len(differing):,} differ, of {len(teacher):,} and "
        f"{len(student):,}. The first is {first!r}: {', '.join(said)}",
        fix=_CHOICES,
    )


def _check_templates(teacher: _Tokens, student: _Tokens) -> None:
    if teacher.template == student.template:
        return
    if not teacher.template or not student.template:
        with_one, without = ("teacher", "student") if teacher.template else ("student", "teacher")
        raise TokenizerMismatch(
            f"the {with_one} has a chat template and the {without} has none",
            fix=f"copy chat_template.jinja from the {with_one}'s folder into the {without}'s",
        )
    one, other = teacher.open(), student.open()
    for conversation in _CONVERSATIONS:
        for prompt in (True, False):
            if (a := _render(one, conversation, prompt)) != (b := _render(other, conversation, prompt)):
                raise TokenizerMismatch(
                    "teacher and student have different chat templates: "
                    f"the teacher's gives {a!r}, the student's {b!r}",
                    fix="give both the same chat_template.jinja",
                )


def _render(tokenizer: PreTrainedTokenizerBase, conversation: Any, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(m) for m in conversation], tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except TemplateError as error:
        return f"refused: {error}"  # some templates know no system turn


def _tokens_of(tokenizer: Path | PreTrainedTokenizerBase) -> _Tokens:
    if isinstance(tokenizer, Path):
        file = tokenizer / "tokenizer.json"
        if file.is_file():
            fast, folder = _open_fast(file), tokenizer
            return _Tokens(
                fast.get_vocab(with_added_tokens=True),
                lambda text: list(fast.encode(text, add_special_tokens=False).ids),
                read_template(folder),
                lambda: _open(folder),
            )
        tokenizer = _open(tokenizer)
    loaded = tokenizer
    return _Tokens(
        loaded.get_vocab(),
        lambda text: list(loaded.encode(text, add_special_tokens=False, padding=False, truncation=False)),
        loaded.chat_template,
        lambda: loaded,
    )


def _open(folder: Path) -> PreTrainedTokenizerBase:
    from potstill.models.load import load_tokenizer  # torch

    return load_tokenizer(folder)


def _open_fast(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
        # Some files say how their first user padded and cut; tokens are the same without.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer
    except Exception as error:
        what = f"the tokenizer cannot be opened: {error}"
        raise ModelError(what, where=str(file), fix="fetch the model again") from error


def read_template(folder: Path) -> Any:
    """The chat template of a folder: text, a list of named ones, or None."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    try:
        return json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None

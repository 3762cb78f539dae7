"""Whether two models use the same tokenizer and the same chat template (rule 6): equal size is not equal vocabulary.

Tokenizers are compared *as they are used*: as `transformers` opens them, which may differ from `tokenizer.json` (its
class for Qwen2 adds NFC, its class for Gemma a mask token). Folders with equal files are equal, and are not opened,
which would load torch.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.errors import TokenizerMismatch
from potstill.quantities import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXTS = (
    "The quick brown fox doesn't jump over 1,234.56 lazy dogs; it's 2024!",
    "  two leading spaces, a\ttab,\n\n\nthree newlines \r\n and trailing ones   ",
    "Ünïcödé, ﬁne ligatures, Straße, İstanbul, naïve e\u0301, ｆｕｌｌ ｗｉｄｔｈ, \u1112\u1161\u11ab",
    "日本語のテキスト, 中文文本, Русский, العربية, हिन्दी, 👩‍🚀🏳️‍🌈",
    "def f(x):\n    return x**2 if x != 0 else None  # ok\n",
    "ALLCAPS camelCase snake_case http://example.com/a?b=c&d=1000000",
    "a\u00a0b\u200bc\ufeffd\x00e\x7f",
)
"""Case, numbers, white space, normalisation, scripts and code: where tokenizers with the same vocabulary differ."""

_JOINED_TEXTS, _TOKENS_PER_TEXT = 256, 12

_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number", "description": "the first"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}
_TOOL_CALL: Mapping[str, Any] = {
    "type": "function",
    "function": {"name": "add", "arguments": {"a": 1, "b": 2}},
    "id": "call00001",
}
_USER: Mapping[str, Any] = {"role": "user", "content": " What is 1 + 1?\n"}
_THOUGHT: Mapping[str, Any] = {"role": "assistant", "content": "<think>\nOne.\n</think>\n\n2"}
_REASONED: Mapping[str, Any] = {"role": "assistant", "content": "It is 2.", "reasoning_content": "1 + 1 = 2"}


def _turns(count: int) -> list[Mapping[str, Any]]:
    return [{"role": ("user", "assistant")[number % 2], "content": f"turn {number}"} for number in range(count)]


@dataclass(frozen=True)
class _Probe:
    """A conversation that chat templates are compared on, and its description for messages."""

    what: str
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[dict[str, Any]] | None = None


_PROBES = (
    _Probe("a question", [_USER]),
    _Probe("an answer", [_USER, {"role": "assistant", "content": " 2"}]),
    _Probe("a system turn", [{"role": "system", "content": "Be brief."}, _USER]),
    _Probe("a long conversation", _turns(24)),
    _Probe("a long conversation that ends in a question", _turns(25)),
    _Probe("a long conversation with a system turn", [{"role": "system", "content": "Be brief."}, *_turns(9)]),
    _Probe("reasoning", [_USER, _REASONED]),
    _Probe("reasoning in an earlier turn", [_USER, _REASONED, _USER]),
    _Probe("reasoning written in the answer", [_USER, _THOUGHT]),
    _Probe("tools", [_USER], [_TOOL]),
    _Probe("tools and a system turn", [{"role": "system", "content": "Be brief."}, _USER], [_TOOL]),
    _Probe("a tool call", [_USER, {"role": "assistant", "content": "", "tool_calls": [_TOOL_CALL]}], [_TOOL]),
    _Probe(
        "a tool's answer",
        [
            _USER,
            {"role": "assistant", "content": "", "tool_calls": [_TOOL_CALL]},
            {"role": "tool", "name": "add", "content": "3", "tool_call_id": "call00001"},
            {"role": "assistant", "content": "It is 3."},
            _USER,
        ],
        [_TOOL],
    ),
)
"""Every branch that chat templates commonly have."""

_CHOICES = (
    "use a student with the teacher's tokenizer; or distil at the sequence level: have the teacher write (generate), "
    "and train on its text alone (objectives: hard_ce). Matching distributions takes a cross-tokenizer objective"
)


def check_same_tokenizer(
    teacher: Path | PreTrainedTokenizerBase, student: Path | PreTrainedTokenizerBase, *, templates: bool = True
) -> None:
    """Refuse two tokenizers that differ in use: in their tokens, in how they split text, in the first and end tokens
    of a text, or in what their chat templates render.

    Args:
        teacher: a model's folder, or a loaded tokenizer.
        student: likewise.
        templates: compare chat templates, first and end tokens too; else only the tokens of texts.

    Raises:
        TokenizerMismatch: names the difference and the choices.
        ModelError: a tokenizer cannot be opened.
    """
    if isinstance(teacher, Path) and isinstance(student, Path) and _equal_files(teacher, student):
        return
    one, other = _opened(teacher), _opened(student)
    _check_vocabulary(one.get_vocab(), other.get_vocab())
    _check_cutting(one, other)
    if templates:
        _check_ends(one, other)
        _check_templates(one, other)


def check_saved_tokenizer(folder: Path, trust_remote_code: bool = False) -> None:
    """Refuse a tokenizer that changes when it is saved and opened again, as a student's is: the student could not be
    compared with its teacher.

    Raises:
        TokenizerMismatch: names the difference.
        ModelError: it cannot be opened.
    """
    from potstill.models.load import load_tokenizer  # torch

    opened = load_tokenizer(folder, trust_remote_code)
    with tempfile.TemporaryDirectory() as saved:
        again = Path(saved)
        opened.save_pretrained(again)
        if (folder / "config.json").is_file():  # determines the tokenizer's class
            shutil.copyfile(folder / "config.json", again / "config.json")
        try:
            check_same_tokenizer(opened, load_tokenizer(again, trust_remote_code))
        except TokenizerMismatch as mismatch:
            raise TokenizerMismatch(
                "this tokenizer is another one once it is saved and opened again, as the student's will be; "
                f"as teacher and student: {mismatch.what}",
                where=str(folder),
                fix="save it once with transformers (AutoTokenizer.from_pretrained, save_pretrained) into a folder of "
                "its own beside the model, compare it, and use that folder",
            ) from mismatch


# ---- files ---------------------------------------------------------------------------------------------------------

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_OPENED_BY = ("model_type", "tokenizer_class", "auto_map")
"""The keys of `config.json` that determine a tokenizer's class."""


def _equal_files(teacher: Path, student: Path) -> bool:
    """Whether all files of a tokenizer are the same, so that it opens the same."""
    if teacher.resolve() == student.resolve():
        return True
    if not (teacher / "tokenizer.json").is_file():
        return False
    names = {*_FILES, *(_name(f, folder) for folder in (teacher, student) for f in _templates_of(folder))}
    if any(_content(teacher / name) != _content(student / name) for name in names):
        return False
    return _opened_by(teacher) == _opened_by(student)


def _templates_of(folder: Path) -> list[Path]:
    return [folder / "chat_template.jinja", *folder.glob("additional_chat_templates/*.jinja")]


def _name(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder))


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _opened_by(folder: Path) -> list[Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [config.get(key) for key in _OPENED_BY] if isinstance(config, dict) else []


def _opened(tokenizer: Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if not isinstance(tokenizer, Path):
        return tokenizer
    from potstill.models.load import load_tokenizer  # torch

    return load_tokenizer(tokenizer)


def read_template(folder: Path) -> Any:
    """The chat template in a folder: a text, a list of named ones, or None. Loads no torch."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    try:
        return json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None


# ---- tokens ----------------------------------------------------------------------------------------------------------


def _check_vocabulary(teacher: Mapping[str, int], student: Mapping[str, int]) -> None:
    if teacher == student:
        return
    nowhere = 1 << 40
    tokens = sorted(  # swapped tokens have the same least id: the teacher's id breaks the tie
        teacher.keys() | student.keys(),
        key=lambda t: (min(teacher.get(t, nowhere), student.get(t, nowhere)), teacher.get(t, nowhere)),
    )
    differing = [token for token in tokens if teacher.get(token) != student.get(token)]
    first = differing[0]
    stated = [
        f"{who} has it as {ids[first]}" if first in ids else f"{who} lacks it"
        for who, ids in (("the teacher", teacher), ("the student", student))
    ]
    raise TokenizerMismatch(
        "teacher and student have different vocabularies: "
        f"{counted(len(differing), 'token differs', 'tokens differ')}, of {len(teacher):,} and "
        f"{len(student):,}. The first is {first!r}: {', '.join(stated)}",
        fix=_CHOICES,
    )


def _check_cutting(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Equal pipelines split every text alike. If they are written differently (which may mean the same), compare on
    texts: some that tell tokenizers apart, every added token within text, and random sequences of tokens."""
    one, other = _pipeline(teacher), _pipeline(student)
    if one and one == other:
        return
    for text in _texts(teacher, student):
        a, b = _encode(teacher, text), _encode(student, text)
        if a != b:
            first = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            parts = [name for name in one if one[name] != other.get(name)]
            why = f" (their {' and '.join(parts)} differ)" if parts and other else ""
            raise TokenizerMismatch(
                f"teacher and student have the same vocabulary and cut text differently{why}: "
                f"{text!r} gives {len(a)} and {len(b)} tokens, different from token {first} on",
                fix=_CHOICES,
            )


def _pipeline(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The parts of a tokenizer that determine how it splits text, by name; empty for a slow tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    stated = json.loads(backend.to_str())
    return {
        "normalizer": stated["normalizer"],
        "pre-tokenizer": stated["pre_tokenizer"],
        "added tokens": sorted(stated["added_tokens"], key=lambda token: int(token["id"])),
        "model": stated["model"],
    }


def _texts(*tokenizers: PreTrainedTokenizerBase) -> Iterator[str]:
    yield from _TEXTS
    for tokenizer in tokenizers:
        for added in map(str, getattr(tokenizer, "added_tokens_decoder", {}).values()):
            yield f"a {added} b{added}c  {added}\n{added.upper()}"
    first = tokenizers[0]
    ids = sorted(first.get_vocab().values())
    draws = random.Random(0)
    for _ in range(_JOINED_TEXTS):
        yield str(first.decode(draws.choices(ids, k=_TOKENS_PER_TEXT)))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # Some files store padding and truncation settings of their first user; they do not affect tokens.
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, padding=False, truncation=False)
    return ids


# ---- where a text begins and ends ---------------------------------------------------------------------------------


def _check_ends(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    if teacher.eos_token_id != student.eos_token_id:
        raise TokenizerMismatch(
            "teacher and student end a text with different tokens: "
            f"the teacher with {teacher.eos_token!r}, the student with {student.eos_token!r}",
            fix=f"set eos_token to {teacher.eos_token!r} in the student's tokenizer_config.json",
        )
    one, other = _leading(teacher), _leading(student)
    if one != other:
        raise TokenizerMismatch(
            f"teacher and student begin a text differently: the teacher with {one or 'no token of its own'}, "
            f"the student with {other or 'no token of its own'}",
            fix="set add_bos_token alike in both tokenizer_config.json",
        )


def _leading(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens put before a text."""
    plain = _encode(tokenizer, "a")
    whole = tokenizer.encode("a", add_special_tokens=True, padding=False, truncation=False)
    count = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return [str(token) for token in tokenizer.convert_ids_to_tokens(whole[:count])]


# ---- templates -----------------------------------------------------------------------------------------------------


def _check_templates(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    if teacher.chat_template == student.chat_template:
        return
    if not teacher.chat_template or not student.chat_template:
        with_one, without = ("teacher", "student") if teacher.chat_template else ("student", "teacher")
        raise TokenizerMismatch(
            f"the {with_one} has a chat template and the {without} has none",
            fix=f"copy chat_template.jinja from the {with_one}'s folder into the {without}'s",
        )
    for probe in _PROBES:
        for prompt in (True, False):
            a, b = _render(teacher, probe, prompt), _render(student, probe, prompt)
            if a != b:
                raise TokenizerMismatch(
                    f"teacher and student have different chat templates: of {probe.what} {first_difference(a, b)}",
                    fix="give both the same chat_template.jinja",
                )


_SHOWN = 60
"""Characters shown of two renderings from where they differ."""


def first_difference(teacher: str, student: str, whose: tuple[str, str] = ("the teacher's", "the student's")) -> str:
    """Both renderings from a little before their first difference on, as a clause."""
    same = next((i for i, (x, y) in enumerate(zip(teacher, student, strict=False)) if x != y), None)
    start = max(0, (min(len(teacher), len(student)) if same is None else same) - _SHOWN // 2)
    a, b = (repr(text[start : start + 2 * _SHOWN]) for text in (teacher, student))
    return f"{whose[0]} gives {a}, {whose[1]} {b}" + (f" (from character {start} on)" if start else "")


def _render(tokenizer: PreTrainedTokenizerBase, probe: _Probe, add_generation_prompt: bool) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(m) for m in probe.messages],
                tools=None if probe.tools is None else list(probe.tools),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        )
    # Templates refuse (some know no system turn) with jinja's own errors, or fail with any of Python's.
    except Exception as error:  # noqa: BLE001
        return f"refused: {error}"

"""Configurations of servers for an exported model, as files beside its weights. No torch; no server is started.

vllm.yaml          vllm serve --config vllm.yaml                         arguments by their long names
sglang.yaml        python -m sglang.launch_server --config sglang.yaml   the same
llama-server.sh    sh llama-server.sh                                    llama.cpp's server
Modelfile          ollama create NAME -f Modelfile

All listen on loopback alone, until an argument behind the command says otherwise.

Ollama does not run the Jinja template of a GGUF file: it compares it with those that it knows, and puts nothing around
a prompt if it knows none. So a template in its own language (Go's `text/template`) goes into the Modelfile: the texts
that a chat template puts around turns are found by rendering conversations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import yaml

from potstill.artifacts import Work, read_json
from potstill.data import ChatTokenizer
from potstill.errors import DataError
from potstill.types import Message

HOST = "127.0.0.1"


def served_name(name: str) -> str:
    """A name for requests: no blanks, no slashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "student"


def context_of(model: Path) -> int | None:
    """The length of a model's context; None if its configuration does not state it."""
    config = read_json(model / "config.json")
    found = (config.get("text_config") or config).get("max_position_embeddings")
    return found if isinstance(found, int) else None


def write_engine_configs(engines: Sequence[str], folder: Path, name: str) -> None:
    """Write `vllm.yaml` and `sglang.yaml`, whichever are asked for, beside a model of `transformers`. Both engines read
    the end tokens from `generation_config.json` and the chat template from the tokenizer."""
    length = context_of(folder)
    for engine in engines:
        path, most = ("model", "max-model-len") if engine == "vllm" else ("model-path", "context-length")
        settings: dict[str, str | int] = {path: ".", "served-model-name": served_name(name), "host": HOST}
        settings |= {"port": 8000 if engine == "vllm" else 30000, "dtype": "auto"}
        settings |= {most: length} if length is not None else {}
        start = "vllm serve" if engine == "vllm" else "python -m sglang.launch_server"
        note = f"# in this folder: {start} --config {engine}.yaml\n"
        (folder / f"{engine}.yaml").write_text(note + yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def write_llama_server(file: Path, model: Path, name: str) -> None:
    """Write `llama-server.sh` beside a GGUF file. `--jinja` renders with the template in the file."""
    length = context_of(model) or 0
    line = f'exec llama-server --model "$(dirname "$0")"/{quote(file.name)} --alias {quote(served_name(name))} \\\n'
    rest = f'  --host {HOST} --port 8080 --ctx-size {length} --jinja "$@"\n'
    (file.parent / "llama-server.sh").write_text("#!/bin/sh\n" + line + rest, encoding="utf-8")


def write_modelfile(file: Path, model: Path, ends: Sequence[int], work: Work) -> None:
    """Write Ollama's `Modelfile` beside a GGUF file: template, stop texts, length of the context. A template that
    cannot be written in Ollama's language is left out, with a warning."""
    chat = ChatTokenizer.from_folder(model)
    lines = [f"FROM ./{file.name}"]
    turns = turns_of(chat)
    if turns is not None:
        template = go_template(turns, chat.decode(chat.leading[:1]) if chat.leading else "")
        if '"""' not in template:
            lines.append(f'TEMPLATE """{template}"""')
    if chat.template is not None and len(lines) == 1:
        work.warn("Modelfile: the chat template has no equal in Ollama's language; Ollama may render another one")
    if (length := context_of(model)) is not None:
        lines.append(f"PARAMETER num_ctx {length}")
    lines += [f"PARAMETER stop {json.dumps(chat.decode([token]), ensure_ascii=False)}" for token in ends]
    (file.parent / "Modelfile").write_text("\n".join([*lines, ""]), encoding="utf-8")


# ---- the chat template, for Ollama -----------------------------------------------------------------------------------

_SYSTEM, _ASKED, _ANSWERED, _AGAIN = "Qsystem", "Qasked", "Qanswered", "Qagain"


@dataclass(frozen=True)
class Turns:
    """Texts before and behind the content of each turn.

    Attributes:
        start: before a conversation without a system prompt (a default one, or nothing).
        system, user, assistant: before and behind such a turn.
        answer: behind the last turn, where the model goes on.
    """

    start: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation as Ollama renders it: the system prompt first, then the other turns."""
        system = [str(message["content"]) for message in messages if message["role"] == "system"]
        text = self.system[0] + "\n\n".join(system) + self.system[1] if system else self.start
        for message in messages:
            if message["role"] != "system":
                before, behind = self.user if message["role"] == "user" else self.assistant
                text += before + str(message["content"]) + behind
        return text + self.answer


def turns_of(chat: ChatTokenizer) -> Turns | None:
    """The turns of a chat template. None if there is no template, or these texts do not render conversations as it
    does (it counts turns, say, or has no system prompt)."""
    if chat.template is None:
        return None
    try:
        turns = _found(chat)
        rendered = [(turns.render(talk), chat.render(talk, add_generation_prompt=True)) for talk in _conversations()]
    except (DataError, ValueError):
        return None
    return turns if all(ours == theirs for ours, theirs in rendered) else None


def _found(chat: ChatTokenizer) -> Turns:
    """The turns, found by rendering. Raises ValueError where a text is not where it should be."""
    asked: Message = {"role": "user", "content": _ASKED}
    answered: Message = {"role": "assistant", "content": _ANSWERED}
    again: Message = {"role": "user", "content": _AGAIN}
    alone = chat.render([asked])
    before_user, user_end = alone.split(_ASKED)
    answer = _without_start(chat.render([asked], add_generation_prompt=True), alone)
    _, whole = chat.render([asked, answered]).split(_ASKED)
    between, assistant_end = whole.split(_ANSWERED)
    assistant_start = _without_start(between, user_end)
    to_user = chat.render([asked, answered, again]).split(_ANSWERED)[1].split(_AGAIN)[0]
    user_start = _without_start(to_user, assistant_end)
    told = chat.render([{"role": "system", "content": _SYSTEM}, asked])
    system_start, rest = told.split(_SYSTEM)
    return Turns(
        _without_end(before_user, user_start),
        (system_start, _without_end(rest.split(_ASKED)[0], user_start)),
        (user_start, user_end),
        (assistant_start, assistant_end),
        answer,
    )


def _without_start(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError(start)
    return text[len(start) :]


def _without_end(text: str, end: str) -> str:
    if not text.endswith(end):
        raise ValueError(end)
    return text[: len(text) - len(end)]


def _conversations() -> list[list[Message]]:
    def talk(*turns: tuple[str, str]) -> list[Message]:
        return [{"role": role, "content": content} for role, content in turns]

    one, two = ("user", "How much is 2 + 2?"), ("assistant", "4.\nIt is 4.")
    return [
        talk(one),
        talk(("system", "Be brief."), one),
        talk(one, two, ("user", "And 3 + 3?")),
        talk(("system", "Be brief.\nBe right."), one, two, one, two, ("user", 'Thanks {{ and }} "bye".')),
    ]


def go_template(turns: Turns, begin: str) -> str:
    """The turns as a template of Ollama.

    Args:
        begin: text of the token that llama.cpp puts before every text by itself; empty if it puts none.
    """

    def text(piece: str) -> str:
        # A brace at the end would begin the action behind it.
        piece = piece.replace("{{", '{{ "{{" }}')
        return piece[:-1] + '{{ "{" }}' if piece.endswith("{") else piece

    def first(piece: str) -> str:
        return text(piece.removeprefix(begin))

    def around(turn: tuple[str, str]) -> str:
        return f"{text(turn[0])}{{{{ .Content }}}}{text(turn[1])}"

    return (
        f"{{{{ if .System }}}}{first(turns.system[0])}{{{{ .System }}}}{text(turns.system[1])}"
        f"{{{{ else }}}}{first(turns.start)}{{{{ end }}}}"
        f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{around(turns.user)}'
        f'{{{{ else if eq .Role "assistant" }}}}{around(turns.assistant)}{{{{ end }}}}{{{{ end }}}}{text(turns.answer)}'
    )

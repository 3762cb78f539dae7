"""Configurations of servers for an exported model, as files beside its weights. No torch; no server is started.

vllm.yaml          vllm serve --config vllm.yaml                         arguments by their long names
sglang.yaml        python -m sglang.launch_server --config sglang.yaml   the same
llama-server.sh    sh llama-server.sh                                    llama.cpp's server
Modelfile          ollama create NAME -f Modelfile

All listen on loopback alone, until an argument behind the command says otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

import yaml

from potstill.artifacts import Work, read_json
from potstill.data import ChatTokenizer
from potstill.export.turns import go_template, turns_of

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

"""The end tokens of an exported student: where generation stops. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from potstill.artifacts import read_json
from potstill.data import ChatTokenizer, tokenize
from potstill.types import Record, Reject

_TURN = Record(messages=({"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}))
_ENOUGH = 4096


def end_tokens(model: Path) -> list[int]:
    """The end tokens of a model's folder, ascending: those of its own generation settings, the tokenizer's, and the
    token with which its chat template ends an assistant's turn, which the student learned to stop with (rule 4).
    """
    own = read_json(model / "generation_config.json").get(
        "eos_token_id", read_json(model / "config.json").get("eos_token_id")
    )
    ends = {own} if isinstance(own, int) else set(own or ())
    chat = ChatTokenizer.from_folder(model)
    if chat.eos_id is not None:
        ends.add(chat.eos_id)
    if chat.template is not None:
        turn = tokenize(_TURN, chat, _ENOUGH)
        if not isinstance(turn, Reject) and chat.decode(turn.learned[-1:], skip_special_tokens=True) == "":
            ends.add(turn.learned[-1])
    return sorted(ends)


def write_end_tokens(model: Path) -> list[int]:
    """Put the end tokens, and a pad token where there is none, into the folder's `generation_config.json`."""
    file = model / "generation_config.json"
    settings = read_json(file)
    ends = end_tokens(model)
    if ends:
        settings["eos_token_id"] = ends
    if settings.get("pad_token_id") is None:
        settings["pad_token_id"] = ChatTokenizer.from_folder(model).pad_id
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return ends

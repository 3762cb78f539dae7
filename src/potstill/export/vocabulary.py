"""Rows of the output layer that stand for no token: padding of the vocabulary. No torch.

A student never learned anything of them but that they are not the answer, and a server would print nothing for them, so
they are trimmed (rule 5).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer


def tokens_of(model: Path) -> int:
    """How many rows the tokenizer of a folder needs: its highest id and one."""
    vocabulary = Tokenizer.from_file(str(model / "tokenizer.json")).get_vocab(with_added_tokens=True)
    return max(vocabulary.values()) + 1


def rows_of(model: Path) -> int:
    """How many rows the output layer of a folder's model has."""
    config: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    return int(text["vocab_size"])

"""The tokens that occur often. Drafts and heads that know these alone are smaller; their target writes all others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from potstill.errors import ModelError

FILE = "frequent_tokens.json"


def count_tokens(texts: Iterable[Iterable[int]]) -> Counter[int]:
    """How often each token occurs in some texts of token ids."""
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(text)
    return counts


def frequent_tokens(counts: Mapping[int, int], amount: int, vocab_size: int) -> Int[Tensor, " K"]:
    """The `amount` most frequent token ids, ascending. Ids that do not occur in the data follow in their own order,
    which in byte-pair encodings is roughly that of frequency."""
    order = sorted(range(vocab_size), key=lambda token: (-counts.get(token, 0), token))
    return torch.tensor(sorted(order[:amount]))


def only(rows: Float[Tensor, V * H], tokens: Int[Tensor, " K"]) -> Float[Tensor, V * H]:
    """The rows of some tokens; those of all others are 0."""
    kept = torch.zeros_like(rows)
    kept[tokens] = rows[tokens]
    return kept


@torch.no_grad()
def forget_others(model: Any, tokens: Int[Tensor, " K"]) -> None:
    """Take the output rows of all tokens that a model did not learn: their logits become 0, which is far below those
    of text, so that engines that draft from all tokens draft the learned ones. The output layer is no longer that of
    the embeddings, which stay.

    Args:
        model: a language model of `transformers`.
        tokens: the ids that it learned.
    """
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(only(head.weight, tokens))
    if head.bias is not None:
        head.bias = nn.Parameter(only(head.bias, tokens))
    model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False


def save_tokens(tokens: Int[Tensor, " K"], model: Path) -> None:
    """Write, into the folder of a model that learned some tokens alone, which they are."""
    (model / FILE).write_text(json.dumps(tokens.tolist()), encoding="utf-8")


def learned_tokens(model: Path) -> Int[Tensor, " K"] | None:
    """The tokens that the model of a folder learned, ascending; None for all.

    Raises:
        ModelError: the file is no list of token ids in order.
    """
    file = model / FILE
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        tokens = torch.tensor(found, dtype=torch.int64)
    except (ValueError, TypeError, UnicodeDecodeError, RuntimeError) as error:
        raise ModelError("it is no list of token ids", where=str(file), fix="train the draft again") from error
    if tokens.dim() != 1 or not len(tokens) or tokens[0] < 0 or not bool((tokens.diff() > 0).all()):
        raise ModelError("its token ids do not ascend", where=str(file), fix="train the draft again")
    return tokens

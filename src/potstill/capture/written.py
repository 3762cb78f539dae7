"""Distributions that a server gave with the texts that it wrote, as a store of `topk` keeps them.

`generate` keeps them in the metadata of a record, under `LIKELIEST`: of each written token its key, its
log-probability, and the keys and log-probabilities of the likeliest in its place. A key is a token's id, or its bytes
in hexadecimal, as chat APIs name tokens by their text.

A record is learned as it is rendered here. As long as its learned tokens are those that were written, each has its
distribution. From the first that differs on none has (an end token that the server does not report, say): such a target
has no entry, and all mass in the rest, so that `forward_kl` is 0 there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from potstill.capture.plan import Plan
from potstill.capture.served import Scored, dims_of
from potstill.data.tokenize import Tokenized
from potstill.errors import DataError
from potstill.recipe import TopKCapture
from potstill.signals import ModelDims
from potstill.teachers.endpoint import EndpointModel
from potstill.types import LIKELIEST, Record


class Written:
    """The distributions of a server's own answers.

    Args:
        model: the server, with the tokenizer that it is known by.
        settings: how many are kept of each.
        records: that it wrote, of both sides.
    """

    def __init__(self, model: EndpointModel, settings: TopKCapture, records: Sequence[Record]) -> None:
        self.model, self.settings = model, settings
        self._kept = {record.id: record.metadata[LIKELIEST] for record in records if LIKELIEST in record.metadata}

    @cached_property
    def dims(self) -> ModelDims:
        """As `served.dims_of`."""
        return dims_of(self.model)

    def check(self, plan: Plan) -> int:
        """The number of learned tokens without a distribution.

        Raises:
            DataError: none has one.
        """
        found = [likeliest for of_row in self.scores(plan.rows) for likeliest in of_row.likeliest]
        if not any(found):
            raise DataError(
                "no record has log-probabilities of the tokens that are learned",
                where="generate",
                fix="set answer_logprobs on the teacher and generate again, and name the tokenizer of the model that "
                "is served as its tokenizer",
            )
        return sum(not likeliest for likeliest in found)

    def scores(self, rows: Sequence[Any]) -> list[Scored]:
        """The distributions of some rows, in order; nothing where there is none."""
        return [self._scored(row) for row in rows if isinstance(row, Tokenized)]

    def _scored(self, row: Tokenized) -> Scored:
        own, likeliest = [], list[Mapping[int, float]]()
        for label, (key, value, pairs) in zip(row.learned, self._kept.get(row.record_id, ()), strict=False):
            if self._id(key) != label:
                break
            known = {token: log for of, log in reversed(pairs) if (token := self._id(of)) is not None}
            first = sorted((known | {label: value}).items(), key=lambda pair: (-pair[1], pair[0]))
            own.append(value)
            likeliest.append(dict(first[: self.settings.k]))
        missing = len(row.learned) - len(own)
        return Scored((*own, *[0.0] * missing), (*likeliest, *[{}] * missing))

    def _id(self, key: int | str) -> int | None:
        if isinstance(key, int):
            return key if 0 <= key < self.dims.vocab else None
        return self._ids.get(key)

    @cached_property
    def _ids(self) -> Mapping[str, int]:
        """The id of each token by its bytes in hexadecimal; of several the lowest."""
        if self.model.tokenizer_folder is None:
            return {}
        file = self.model.tokenizer_folder / "tokenizer.json"
        tokenizer, described = Tokenizer.from_file(str(file)), json.loads(file.read_text(encoding="utf-8"))
        by_bytes = '"ByteLevel"' in json.dumps(described.get("decoder"))
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        highest_first = sorted(tokenizer.get_vocab().items(), key=lambda item: -item[1])
        return {
            (text.encode() if text in added else bytes_of(text, by_bytes)).hex(): token for text, token in highest_first
        }


def bytes_of(token: str, by_bytes: bool) -> bytes:
    """The bytes that a token of a tokenizer stands for.

    Args:
        token: as the vocabulary has it.
        by_bytes: each character stands for a byte (GPT-2's alphabet); else U+2581 is a space, and `<0x0A>` a byte.
    """
    if by_bytes:
        return bytes(_ALPHABET[character] for character in token if character in _ALPHABET)
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


_PLAIN = (*range(33, 127), *range(161, 173), *range(174, 256))
_OTHERS = sorted(set(range(256)) - set(_PLAIN))
_ALPHABET = {chr(byte): byte for byte in _PLAIN} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}
"""GPT-2's: printable bytes are themselves, all others the characters from U+0100 on."""

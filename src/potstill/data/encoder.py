"""Text → the token ids of an encoder, with the special tokens that its tokenizer adds.

No torch, no transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Encoding, Tokenizer

from potstill.data.chat import ChatTokenizer, read_config_file
from potstill.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NO_LIMIT = 1_000_000
"""Tokenizers without a limit state a very large one."""


@dataclass(frozen=True)
class Piece:
    """A text, or a part of one, as an encoder sees it. `special` marks special tokens."""

    input_ids: list[int]
    special: list[bool]


class EncoderTokenizer:
    """Encodes texts as `transformers` does with the same folder and `truncation=True`.

    Args:
        tokenizer: a `tokenizers` tokenizer with its post-processor ([CLS] … [SEP]); it is copied.
        pad_id: the token of padding.
        mask_id: the mask token, if there is one.
        longest: the model's maximum number of tokens, if known.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, pad_id: int = 0, mask_id: int | None = None, longest: int | None = None
    ) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.pad_id, self.mask_id, self.longest = pad_id, mask_id, longest
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self._around = self._tokenizer.num_special_tokens_to_add(is_pair=False)

    @classmethod
    def from_folder(cls, folder: Path | str) -> EncoderTokenizer:
        """The tokenizer of a model folder.

        Raises:
            ModelError: there is no `tokenizer.json`, or a file is damaged.
        """
        folder = Path(folder)
        chat = ChatTokenizer.from_folder(folder)
        file = folder / "tokenizer.json"
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
        return cls(tokenizer, pad_id=chat.pad_id, mask_id=_id(chat, tokenizer), longest=_longest(folder))

    @classmethod
    def from_transformers(cls, tokenizer: PreTrainedTokenizerBase) -> EncoderTokenizer:
        """The same for a loaded `transformers` tokenizer.

        Raises:
            ModelError: it is not a fast one.
        """
        chat = ChatTokenizer.from_transformers(tokenizer)
        backend: Tokenizer = tokenizer.backend_tokenizer
        longest = tokenizer.model_max_length
        return cls(
            backend,
            pad_id=chat.pad_id,
            mask_id=_id(chat, backend),
            longest=int(longest) if longest < _NO_LIMIT else None,
        )

    @property
    def ordinary_ids(self) -> list[int]:
        """All tokens of the vocabulary that are not special, in order."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True).values()
        return sorted(set(vocabulary) - self.special_ids)

    def pieces(self, text: str, max_length: int) -> list[Piece]:
        """Cut a text into pieces of at most `max_length` tokens, each with its own special tokens; a short text is one
        piece.

        Raises:
            DataError: there is no room for text within `max_length`.
        """
        room = max_length - self._around
        if room < 1:
            raise DataError(
                f"max_length {max_length} has no room for text: {self._around} tokens are special",
                where="train.max_length",
                fix=f"set it to {self._around + 1} or more",
            )
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        encoding.truncate(room)
        whole = self._tokenizer.post_process(encoding)
        return [self._piece(part) for part in (whole, *whole.overflowing)]

    def _piece(self, part: Encoding) -> Piece:
        marks = zip(part.ids, part.special_tokens_mask, strict=True)
        return Piece(part.ids, [bool(mark) or index in self.special_ids for index, mark in marks])


def _id(chat: ChatTokenizer, tokenizer: Tokenizer) -> int | None:
    mask = chat.special.get("mask_token")
    return tokenizer.token_to_id(mask) if isinstance(mask, str) else None


def _longest(folder: Path) -> int | None:
    """The maximum number of tokens of the model in a folder, from its tokenizer and its position embeddings."""
    limits = []
    stated = read_config_file(folder / "tokenizer_config.json").get("model_max_length")
    if isinstance(stated, (int, float)) and stated < _NO_LIMIT:
        limits.append(int(stated))
    model = read_config_file(folder / "config.json")
    positions = model.get("max_position_embeddings")
    if isinstance(positions, int):
        # RoBERTa-like models number positions from the padding token's id + 1.
        offset = int(model.get("pad_token_id") or 0) + 1 if "roberta" in str(model.get("model_type")) else 0
        limits.append(positions - offset)
    return min(limits, default=None)

"""The texts of a batch while they grow: tokens on the device and on the host, each row with a length of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


class Rows:
    """The rows that are still being written. Drafted tokens stand behind a row's length; rejecting them leaves it as it
    is.

    Attributes:
        ids_BT: tokens; what is behind a row's length is drafted, or nothing.
        tokens: the tokens of each row, on the host.
        numbers: which row of the batch each one is; rows that have ended are dropped.
        batch_size: number of rows at first.
        vocab_size: number of token ids.

    Args:
        prompts: token ids, at least one each.
        room: number of tokens that may follow the longest prompt, drafted ones included.
        vocab_size: number of token ids.
        device: of the tensors.
        padding: tokens that processors see before each prompt, as `transformers` pads; models never see them.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        room: int,
        vocab_size: int,
        device: torch.device,
        padding: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.capacity = max(map(len, prompts)) + room
        self.ids_BT: Int[Tensor, "B T"] = torch.zeros(len(prompts), self.capacity, dtype=torch.long, device=device)
        self.tokens = [list(prompt) for prompt in prompts]
        self.numbers = list(range(len(prompts)))
        self.batch_size = len(prompts)
        self.vocab_size = vocab_size
        self._padding = [torch.tensor(pad, dtype=torch.long, device=device) for pad in padding or ()]
        for row, prompt in enumerate(prompts):
            self.ids_BT[row, : len(prompt)] = torch.tensor(prompt, device=device)

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each row. When a round begins, no model has read the last of them yet."""
        return [len(row) for row in self.tokens]

    def block(self, starts: Sequence[int], length: int) -> Int[Tensor, "B n"]:
        """The tokens at `start … start + length − 1` of each row."""
        if len(set(starts)) == 1:
            return self.ids_BT[:, starts[0] : starts[0] + length]
        places = torch.tensor(starts, device=self.ids_BT.device)[:, None]
        return self.ids_BT.gather(1, places + torch.arange(length, device=self.ids_BT.device))

    def draft(self, place: int, tokens_B: Int[Tensor, " B"]) -> None:
        """Write one drafted token a row, `place` tokens behind its last."""
        lengths = self.lengths
        if len(set(lengths)) == 1:
            self.ids_BT[:, lengths[0] + place] = tokens_B
        else:
            at = torch.tensor(lengths, device=self.ids_BT.device) + place
            self.ids_BT.scatter_(1, at[:, None], tokens_B[:, None])

    def history(self, row: int, drafted: int) -> Int[Tensor, "1 t"]:
        """The tokens of a row, and the first `drafted` of its drafted ones."""
        own = self.ids_BT[row, : len(self.tokens[row]) + drafted]
        if self._padding and len(pad := self._padding[self.numbers[row]]):
            own = torch.cat([pad, own])
        return own[None]

    def extend(self, row: int, tokens: Sequence[int]) -> None:
        """Append accepted tokens to a row."""
        before = len(self.tokens[row])
        self.tokens[row].extend(tokens)
        self.ids_BT[row, before : before + len(tokens)] = torch.tensor(tokens, device=self.ids_BT.device)

    def keep(self, kept: Sequence[int]) -> Int[Tensor, " K"]:
        """Drop all other rows; returns the places of those kept."""
        places = torch.tensor(list(kept), dtype=torch.long, device=self.ids_BT.device)
        self.ids_BT = self.ids_BT[places]
        self.tokens = [self.tokens[row] for row in kept]
        self.numbers = [self.numbers[row] for row in kept]
        return places

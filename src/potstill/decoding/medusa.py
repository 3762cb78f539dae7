"""Medusa heads as a draft: a tree of their choices, from the target's last hidden state."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from potstill.decoding.acceptance import Source
from potstill.decoding.drafts import Proposal, Reads
from potstill.decoding.rows import Rows
from potstill.decoding.sampler import Sampler
from potstill.decoding.tree import Path as Node
from potstill.decoding.tree import Tree
from potstill.errors import ModelError
from potstill.heads import MedusaHeads


class MedusaDraft:
    """Heads as a draft: each round a tree of their choices, from the target's state behind the text's last token but
    one, which was computed with the previous block.

    Args:
        heads: of this target, on its device and in its precision.
        nodes: of the tree, best first (`best_nodes`); a round of γ drafted tokens has the first γ of them.
    """

    def __init__(self, heads: MedusaHeads, nodes: Sequence[Node]) -> None:
        self._heads, self._nodes = heads, tuple(nodes)
        self._ranks = 1 + max((rank for node in nodes for rank in node), default=0)
        self._trees: dict[int, Tree] = {}
        self._target: Reads | None = None

    def start(self, rows: Rows, target: Reads) -> None:
        """
        Raises:
            ModelError: the heads are of another target.
        """
        if self._heads.vocab != target.vocab_size:
            raise ModelError(
                f"the heads are of a model with {self._heads.vocab:,} token ids, and this one has "
                f"{target.vocab_size:,}",
                fix="train heads on this target",
            )
        target.keep_hidden()
        self._target = target

    def propose(self, rows: Rows, most: int, sampler: Sampler, source: Source) -> Proposal:
        hidden = self._target.hidden_BH if self._target is not None else None
        if hidden is None or not self._nodes:
            return Proposal([0] * len(rows.numbers))
        count = min(most, len(self._nodes))
        tree = self._trees.setdefault(count, Tree(self._nodes[:count]))
        choices = self._heads.choices(hidden, self._ranks)
        drafted = tree.tokens(choices)
        for place in range(count):
            rows.draft(place, drafted[:, place])
        return Proposal([count] * len(rows.numbers), tree=tree)

    def roll_back(self, rows: Rows) -> None:
        """Does nothing: the target keeps the state."""

    def keep(self, kept: Tensor) -> None:
        """Does nothing, likewise."""

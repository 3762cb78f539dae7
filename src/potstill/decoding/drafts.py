"""Sources of drafted tokens: a smaller model, the target's first layers, the text itself, or several in turn.

A draft never decides what is written. It says which tokens it drafted and from which distributions they were drawn; the
target accepts them so that its own distribution is kept (`acceptance.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from potstill.decoding.acceptance import Source
from potstill.decoding.cached_model import CachedModel, first_layers
from potstill.decoding.rows import Rows
from potstill.decoding.sampler import Sampler
from potstill.decoding.tree import Path as Node
from potstill.decoding.tree import Tree
from potstill.errors import ModelError


@dataclass(frozen=True)
class Proposal:
    """Drafted tokens, which stand behind each row's length in `Rows` too.

    `counts` says how many each row has. `q_BgV` holds the distributions that they were drawn from; None if each was
    certain (one choice), and for greedy decoding. With a `tree` they are its nodes behind the root, in order, of every
    row; without, each follows the one before.
    """

    counts: Sequence[int]
    q_BgV: Float[Tensor, "B g V"] | None = None
    tree: Tree | None = None

    @property
    def most(self) -> int:
        """g, the largest number of drafted tokens of a row."""
        return max(self.counts, default=0)


class Draft(Protocol):
    """A source of proposals for the rows of one batch."""

    def start(self, rows: Rows, target: Reads) -> None:
        """A new batch begins. The target has forgotten the last one, and reads all prompts, and writes the token behind
        each, before the first proposal."""
        ...

    def propose(self, rows: Rows, most: int, sampler: Sampler, source: Source) -> Proposal:
        """At most `most` tokens for each row, `most` ≥ 1."""
        ...

    def roll_back(self, rows: Rows) -> None:
        """At the end of a round, forget the drafted tokens that do not stand."""
        ...

    def keep(self, kept: Int[Tensor, " K"]) -> None:
        """Drop all other rows."""
        ...


class Reads(Protocol):
    """A model that reads blocks of tokens; see `CachedModel`."""

    limit: int | None
    vocab_size: int
    vocabulary: Int[Tensor, " K"] | None
    hidden_BH: Float[Tensor, "B H"] | None

    @property
    def lends(self) -> bool: ...

    def start(self, capacity: int) -> None: ...

    def keep_hidden(self) -> None: ...

    def __call__(
        self, tokens_Bn: Tensor, starts: Sequence[int], ends: Sequence[int] | None = None, tree: Tree | None = None
    ) -> Tensor: ...

    def settle(self, paths: Sequence[Sequence[int]]) -> None: ...

    def keep(self, rows: Tensor) -> None: ...


class ModelDraft:
    """A model of the same tokens that writes ahead of the target: a chain of tokens, or a tree.

    A tree is the chain of the model's best tokens with next-best ones beside it, which have no children: the model goes
    on along the chain alone, and needs no attention over trees. Its tokens are certain, so that sampled text accepts
    the sum of their probabilities in place of Σ min(p, q).

    Args:
        reader: the model. If it shares the target's keys and values (an early exit), it never has to catch up.
        threshold: stop before a token whose most probable choice has less probability; 0 never stops. The choice is
            made before the token is drawn, so that it does not depend on it: dropping a token *because* of what it is
            would bias what is accepted. Costs one synchronisation a token on an accelerator.
        nodes: of the tree, best first (`best_nodes`); a round of γ drafted tokens has the first γ of them. None for a
            chain.

    Raises:
        ValueError: a node has a parent that is not on the chain of best tokens, or a tree has a threshold.
    """

    def __init__(self, reader: Reads, threshold: float = 0.0, nodes: Sequence[Node] = ()) -> None:
        if beside := next((node for node in nodes if any(node[:-1])), None):
            raise ValueError(f"node {beside}: the model reads its best tokens alone, and so only they have children")
        if nodes and threshold:
            raise ValueError("a threshold stops a chain, and this is a tree: give one of them")
        self._reader, self._threshold, self._nodes = reader, threshold, tuple(nodes)
        self._ranks = 1 + max((node[-1] for node in nodes), default=0)
        self._trees: dict[tuple[int, int], Tree] = {}
        self._read: list[int] = []  # number of each row's tokens whose keys and values are kept
        self._chain: tuple[list[int], Tensor] | None = None  # of a tree: where it began, and its tokens [B, depth]

    def start(self, rows: Rows, target: Reads) -> None:
        if self._reader.vocab_size != target.vocab_size and self._reader.vocabulary is None:
            raise ModelError(
                f"the draft has {self._reader.vocab_size:,} token ids and the target {target.vocab_size:,}",
                fix="use a draft that was made of the target, or distilled with its tokenizer; if both have one "
                "tokenizer, and an output layer is padded, give CachedModel the tokens of both: "
                f"vocabulary=torch.arange({min(self._reader.vocab_size, target.vocab_size)})",
            )
        self._reader.start(rows.capacity)
        self._read, self._chain = [0] * len(rows.numbers), None

    def propose(self, rows: Rows, most: int, sampler: Sampler, source: Source) -> Proposal:
        reader, lengths = self._reader, rows.lengths
        steps = most if reader.limit is None else min(most, reader.limit - max(lengths) + 1)
        if steps < 1:  # the draft's context is full: no proposal, the target goes on alone
            return Proposal([0] * len(lengths))
        tree = self._tree(most, steps) if self._nodes else None
        steps = steps if tree is None else tree.depth
        going, counts = list(range(len(lengths))), [steps] * len(lengths)
        distributions: list[Tensor] = []
        choices: list[Tensor] = []
        logits = self._catch_up(rows)
        for place in range(steps):
            if place:
                starts = [length + place - 1 for length in lengths]
                logits = reader(rows.block(starts, 1), starts)
            if tree is not None:
                choices.append(sampler.ranked(logits, rows, place, self._ranks, reader.vocabulary))
                tokens = choices[-1][:, 0, 0]
            elif sampler.greedy and not self._threshold:
                tokens = sampler.best(logits, rows, place, reader.vocabulary)[:, 0]
            else:
                q = sampler.distributions(logits, rows, place, reader.vocabulary)
                if self._threshold:
                    unsure = (q[:, 0].amax(-1) < self._threshold).tolist()
                    counts = [min(counts[row], place) if unsure[row] else counts[row] for row in range(len(counts))]
                    going = [row for row in going if counts[row] > place]
                    if not going:
                        break
                tokens = q[:, 0].argmax(-1) if sampler.greedy else source.draw(q[:, 0])
                if not sampler.greedy:
                    distributions.append(q)
            rows.draft(place, tokens)
            self._read = [length + place for length in lengths]
        if tree is None:
            return Proposal(counts, torch.cat(distributions, 1) if distributions else None)
        chosen = torch.cat(choices, 1)
        self._chain = lengths, chosen[..., 0]
        drafted = tree.tokens(chosen)
        for place in range(len(tree.paths)):
            rows.draft(place, drafted[:, place])
        return Proposal([len(tree.paths)] * len(lengths), tree=tree)

    def _tree(self, most: int, deepest: int) -> Tree:
        nodes = [node for node in self._nodes[:most] if len(node) <= deepest]
        return self._trees.setdefault((most, deepest), Tree(tuple(nodes)))

    def _catch_up(self, rows: Rows) -> Tensor:
        """Read what stands and was not read, at most all; returns the logits behind each row's last token."""
        reader, lengths = self._reader, rows.lengths
        if reader.lends:
            missing = 1
        else:
            missing = max(length - read for length, read in zip(lengths, self._read, strict=True))
        if missing > 1 and len(set(lengths)) > 1:
            # Of shorter rows tokens are read anew, and places behind their end, which are written over later.
            starts = [max(0, length - missing) for length in lengths]
            reader(rows.block(starts, missing - 1), starts, [0] * len(starts))
            missing = 1
        starts = [length - missing for length in lengths]
        return reader(rows.block(starts, missing), starts, [missing - 1] * len(starts))

    def roll_back(self, rows: Rows) -> None:
        stands = [length - 1 for length in rows.lengths]
        if self._chain is not None and not self._reader.lends:
            # A token that stands may be one beside the chain, and what was read is the chain.
            for row, (begun, chain) in enumerate(zip(self._chain[0], self._chain[1].tolist(), strict=True)):
                own = rows.tokens[row][begun:]
                same = next((i for i, (a, b) in enumerate(zip(chain, own, strict=False)) if a != b), len(own))
                stands[row] = min(stands[row], begun + same)
        self._chain = None
        self._read = [min(read, stand) for read, stand in zip(self._read, stands, strict=True)]

    def keep(self, kept: Tensor) -> None:
        self._reader.keep(kept)
        self._read = [self._read[row] for row in kept.tolist()]


def early_exit(
    target: CachedModel,
    layers: int,
    vocabulary: Int[Tensor, " K"] | None = None,
    threshold: float = 0.0,
    nodes: Sequence[Node] = (),
) -> ModelDraft:
    """The target's first layers with its last norm and head. They share the keys and values of the target that the
    decoder reads: `SpeculativeDecoder(target, early_exit(target, 2))`.

    Raises:
        ModelError: the target has not more layers, or its head cannot be cut.
        TypeError: the target is a model of transformers, whose keys and values are nobody's yet.
    """
    if not isinstance(target, CachedModel):
        raise TypeError("early_exit shares keys and values: give it, and the decoder, target = CachedModel(model)")
    view: PreTrainedModel = first_layers(target.model, layers)
    return ModelDraft(CachedModel(view, vocabulary, cache=target), threshold, nodes)


class LookupDraft:
    """What followed the last earlier occurrence of the text's last tokens: no model. Saxena 2023 (prompt lookup).

    Args:
        longest: largest number of tokens that are compared, tried first.
        shortest: smallest.
    """

    def __init__(self, longest: int = 3, shortest: int = 1) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-grams of {shortest} to {longest} tokens")
        self.longest, self.shortest = longest, shortest
        self._sizes = range(longest, shortest - 1, -1)
        self._ends: list[dict[tuple[int, ...], int]] = []  # the place behind each n-gram's last occurrence
        self._indexed: list[int] = []

    def start(self, rows: Rows, target: Reads | None = None) -> None:
        self._ends = [{} for _ in rows.numbers]
        self._indexed = [0] * len(rows.numbers)

    def propose(self, rows: Rows, most: int, sampler: Sampler, source: Source) -> Proposal:
        found = [self._after(row, tokens)[:most] for row, tokens in enumerate(rows.tokens)]
        for row, ahead in enumerate(found):
            if ahead:
                end = len(rows.tokens[row])
                rows.ids_BT[row, end : end + len(ahead)] = torch.tensor(ahead, device=rows.ids_BT.device)
        return Proposal([len(ahead) for ahead in found])

    def _after(self, row: int, tokens: Sequence[int]) -> list[int]:
        ends = self._ends[row]
        for end in range(self._indexed[row] + 1, len(tokens)):  # not the end of the text, which nothing follows
            for size in self._sizes:
                if size <= end:
                    ends[tuple(tokens[end - size : end])] = end
        self._indexed[row] = max(len(tokens) - 1, 0)
        for size in self._sizes:
            if size < len(tokens) and (place := ends.get(tuple(tokens[-size:]))) is not None:
                return list(tokens[place:])
        return []

    def roll_back(self, rows: Rows) -> None:
        """Does nothing: drafted tokens were not kept."""

    def keep(self, kept: Tensor) -> None:
        self._ends = [self._ends[row] for row in kept.tolist()]
        self._indexed = [self._indexed[row] for row in kept.tolist()]


class ChainedDraft:
    """Several drafts: in each round the first that has something to propose for every row.

    Args:
        drafts: in order, such as a lookup and then a model.
    """

    def __init__(self, drafts: Sequence[Draft]) -> None:
        self._drafts = list(drafts)

    def start(self, rows: Rows, target: Reads) -> None:
        for draft in self._drafts:
            draft.start(rows, target)

    def propose(self, rows: Rows, most: int, sampler: Sampler, source: Source) -> Proposal:
        proposal = Proposal([0] * len(rows.numbers))
        for draft in self._drafts:
            proposal = draft.propose(rows, most, sampler, source)
            if all(proposal.counts):
                break
        return proposal

    def roll_back(self, rows: Rows) -> None:
        for draft in self._drafts:
            draft.roll_back(rows)

    def keep(self, kept: Tensor) -> None:
        for draft in self._drafts:
            draft.keep(kept)

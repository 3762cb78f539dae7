"""Trees of drafted tokens: several continuations of a text, read by the target in one block.

The tree of a round has a root, the text's last token, and nodes for drafted tokens. A node sees the text and its own
ancestors, by one attention mask. The target chooses a token at the root, and goes on at the child that is this token,
if there is one; so the text is the target's own, greedy or sampled.

Sampled, that is speculative sampling with drafts that are certain: accepting the first child x with probability p(x),
else the next one from p without x, normalised, and so on, ends at each child with its probability under p, and so does
one draw from p. Cai et al. 2024 (arXiv 2401.10774), §2.1; their typical acceptance, §3.3, is `walk_typical`, and lossy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from potstill.decoding.acceptance import Source
from potstill.decoding.rows import Rows
from potstill.decoding.sampler import Sampler

Path = tuple[int, ...]
"""A node by the ranks from the root: (0, 2) is the third choice of head 1 behind the best of head 0."""


@dataclass(frozen=True)
class Tree:
    """The shape of a tree, the same for all rows.

    Args:
        paths: of the nodes, parents before children. Node i + 1 has path i; node 0 is the root.

    Raises:
        ValueError: a node's parent does not come before it, or a node comes twice.
    """

    paths: tuple[Path, ...]
    parents: tuple[int, ...] = field(init=False)
    """The parent of each node; of the root itself."""

    def __post_init__(self) -> None:
        places: dict[Path, int] = {(): 0}
        parents = [0]
        for path in self.paths:
            if not path or path in places or path[:-1] not in places:
                raise ValueError(f"node {path} comes twice, or before its parent")
            parents.append(places[path[:-1]])
            places[path] = len(places)
        object.__setattr__(self, "parents", tuple(parents))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """The depth of each node, 0 for the root."""
        return (0, *map(len, self.paths))

    @property
    def depth(self) -> int:
        """The largest depth."""
        return max(self.depths)

    @cached_property
    def sees(self) -> Bool[Tensor, "n n"]:
        """[query, key]: whether a node is another's ancestor or itself."""
        seen = torch.eye(len(self.parents), dtype=torch.bool)
        for node, parent in enumerate(self.parents[1:], 1):
            seen[node] |= seen[parent]
        return seen

    def tokens(self, choices_BdR: Int[Tensor, "B d R"]) -> Int[Tensor, "B n-1"]:
        """The tokens of the nodes behind the root, given the choices at each depth, best first."""
        return choices_BdR[:, [len(path) - 1 for path in self.paths], [path[-1] for path in self.paths]]

    def matched(self, ranks: Sequence[int]) -> int:
        """How many tokens stand if the text's next tokens have these ranks among each head's choices."""
        known, depth = set(self.paths), 0
        while depth < len(ranks) and tuple(ranks[: depth + 1]) in known:
            depth += 1
        return depth


class Walk(NamedTuple):
    """The accepted path of each row: the number of nodes, the token behind them, and the nodes and their tokens from
    the root down (entries past that number are meaningless)."""

    accepted_B: Int[Tensor, " B"]
    next_B: Int[Tensor, " B"]
    nodes_Bd: Int[Tensor, "B d"]
    tokens_Bd: Int[Tensor, "B d"]


def walk(
    logits_BnV: Float[Tensor, "B n V"],
    block_Bn: Int[Tensor, "B n"],
    tree: Tree,
    rows: Rows,
    sampler: Sampler,
    source: Source,
) -> Walk:
    """Choose a token at the root, then at the child that it is, and so on. Exact: each token is the target's own.

    Args:
        logits_BnV: of the target, behind each node (n counts the root).
        block_Bn: the tokens of the nodes.
        tree: their shape.
        rows: the tokens along the way are written behind the text, for processors that read it.
        sampler: what is done to logits.
        source: of chance.
    """
    row = torch.arange(len(block_Bn), device=block_Bn.device)
    parents = torch.tensor(tree.parents, device=block_Bn.device)
    block = block_Bn.clone()  # a view of the rows, which are written to
    node, alive = torch.zeros_like(row), torch.ones_like(row, dtype=torch.bool)
    accepted, following = torch.zeros_like(row), torch.zeros_like(row)
    nodes, tokens = [], []
    for depth in range(tree.depth + 1):
        logits = logits_BnV[row, node][:, None]
        if sampler.greedy:
            token = sampler.best(logits, rows, depth)[:, 0]
        else:
            p = sampler.distributions(logits, rows, depth)[:, 0]
            if depth:  # a row that has ended its walk draws nothing
                p = torch.where(alive[:, None], p, torch.zeros_like(p).scatter_(1, following[:, None], 1.0))
            token = source.draw(p)
        following = torch.where(alive, token, following)
        if depth == tree.depth:
            break
        children = (parents == node[:, None]) & (block == token[:, None])
        children[:, 0] = False
        alive = alive & children.any(1)
        node = torch.where(alive, children.long().argmax(1), node)
        accepted += alive
        nodes.append(node)
        tokens.append(following)
        rows.draft(depth, token)
    return _walk(accepted, following, nodes, tokens)


@dataclass(frozen=True)
class Typical:
    """Typical acceptance: a drafted token stands if its probability is above min(ε, δ·e^−H), H the entropy of the
    target's distribution there. **Lossy**: the text is not distributed as the target's. Cai et al. 2024, §3.3.

    Attributes:
        epsilon: the bound where the target is unsure of many tokens, in (0, 1).
        delta: factor of e^−H.
    """

    epsilon: float = 0.09
    delta: float = 0.3


def walk_typical(
    logits_BnV: Float[Tensor, "B n V"],
    block_Bn: Int[Tensor, "B n"],
    tree: Tree,
    rows: Rows,
    sampler: Sampler,
    source: Source,
    typical: Typical,
) -> Walk:
    """The deepest node whose tokens are all typical, the first one of several, and a token drawn behind it.

    Args: as of `walk`. Processors that read the text are not for it, since every node would have a text of its own.
    """
    p = sampler.distributions(logits_BnV, rows, 0)
    parents = torch.tensor(tree.parents, device=block_Bn.device)
    entropy = -(p * p.clamp_min(1e-30).log()).sum(-1)
    bound = (typical.delta * (-entropy).exp()).clamp_max(typical.epsilon)
    own = p[:, parents].gather(-1, block_Bn[..., None]).squeeze(-1) > bound[:, parents]
    own[:, 0] = True
    sees = tree.sees.to(block_Bn.device)
    stand = (own[:, None] | ~sees).all(-1)  # its ancestors and itself
    depths = torch.tensor(tree.depths, device=block_Bn.device)
    best = torch.where(stand, depths, -1).argmax(1)
    accepted = depths[best]
    row = torch.arange(len(block_Bn), device=block_Bn.device)
    following = source.draw(p[row, best])
    nodes = []
    node = best
    for depth in range(tree.depth, 0, -1):
        nodes.append(node)
        node = torch.where(depths[node] >= depth, parents[node], node)
    nodes.reverse()
    return _walk(accepted, following, nodes, [block_Bn[row, node] for node in nodes])


def _walk(accepted: Tensor, following: Tensor, nodes: Sequence[Tensor], tokens: Sequence[Tensor]) -> Walk:
    nothing = following.new_zeros(len(following), 0)
    return Walk(
        accepted,
        following,
        torch.stack(list(nodes), 1) if nodes else nothing,
        torch.stack(list(tokens), 1) if tokens else nothing,
    )


# ---- which tree ----------------------------------------------------------------------------------------------------


def best_nodes(accuracies: Sequence[Sequence[float]], most: int, beside_a_chain: bool = False) -> tuple[Path, ...]:
    """The nodes that are most likely to stand, best first: a node's probability is the product of the accuracies at its
    ranks. Every beginning of the list is a tree. Cai et al. 2024, §3.4.

    Args:
        accuracies: of each depth (of each head), the share of positions at which the choice of each rank is the text's
            token.
        most: number of nodes.
        beside_a_chain: only behind best choices there are further nodes.
    """
    open_: dict[Path, float] = {(rank,): p for rank, p in enumerate(accuracies[0]) if p > 0} if accuracies else {}
    chosen: list[Path] = []
    while open_ and len(chosen) < most:
        path = max(open_, key=lambda node: (open_[node], [-rank for rank in node]))
        likely = open_.pop(path)
        chosen.append(path)
        if len(path) < len(accuracies) and (path[-1] == 0 or not beside_a_chain):
            open_ |= {(*path, rank): likely * p for rank, p in enumerate(accuracies[len(path)]) if p > 0}
    return tuple(chosen)

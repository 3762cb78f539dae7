"""Which tree a model drafts: the chain of its best tokens, as deep as pays here, and next-best ones beside it.

A tree of n nodes costs the target the reading of n + 1 tokens, and the draft one step a depth. So nodes go by their
probability, and the depth by the forecast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from potstill.decoding.tree import Path as Node
from potstill.decoding.tree import Tree, best_nodes
from potstill.speculate.forecast import Timing, Trace, expected_speedup
from potstill.speculate.traces import Ranks


def ranks_ahead(ranks: Ranks, depth: int, choices: int) -> Ranks:
    """The ranks of the text's next tokens in a round that begins at each position [T, depth]; `choices` where a token
    is not among so many, or is behind the end.

    Args:
        ranks: of the text's tokens among the choices of a draft that has read the text before them [T].
        depth: number of tokens.
        choices: number of a draft's choices at each place.
    """
    behind = np.full(depth, choices, dtype=np.int64)
    padded = np.concatenate([np.minimum(ranks, choices), behind])
    return np.lib.stride_tricks.sliding_window_view(padded, depth)[: len(ranks)]


def chain_accuracies(ahead: Sequence[Ranks], choices: int) -> tuple[tuple[float, ...], ...]:
    """Of each depth, the share of rounds at which the choice of each rank is the text's token, among those whose best
    choices are right up to there; no depth that none of them reaches.

    Args:
        ahead: of each text [T, depth].
        choices: number of choices.
    """
    rounds, found = np.concatenate(list(ahead)), []
    for depth in range(rounds.shape[1]):
        if not len(rounds):
            break
        found.append(tuple(float((rounds[:, depth] == rank).mean()) for rank in range(choices)))
        rounds = rounds[rounds[:, depth] == 0]
    return tuple(found)


def fit_tree(
    traces: Sequence[Trace], ahead: Sequence[Ranks], timing: Timing, most: int, choices: int
) -> tuple[Node, ...]:
    """The nodes of the tree with the best expected speed-up, best first; none if no tree is better than a chain.

    Args:
        traces: of texts, for a chain.
        ahead: see `ranks_ahead`, of each text [T, most].
        timing: of a chain.
        most: largest number of nodes.
        choices: largest number of the draft's choices at a place.
    """
    best: tuple[Node, ...] = ()
    highest = max(expected_speedup(traces, timing, gamma) for gamma in range(1, most + 1))
    for depth in range(1, most + 1):
        accuracies = chain_accuracies([own[:, :depth] for own in ahead], choices)
        nodes = best_nodes(accuracies, most, beside_a_chain=True)
        if Tree(nodes).depth < depth:
            break
        steps = [Tree(nodes[:count]).depth for count in range(len(nodes) + 1)]
        trees = [replace(trace, ranks=own, nodes=nodes) for trace, own in zip(traces, ahead, strict=True)]
        of_trees = replace(timing, draft=timing.draft[steps])
        value = max(expected_speedup(trees, of_trees, count) for count in range(1, len(nodes) + 1))
        if value > highest:
            best, highest = nodes, value
    return best

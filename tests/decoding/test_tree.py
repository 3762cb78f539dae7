"""Claims about trees of drafted tokens: their shape, which of them is chosen, and what is typical."""

from __future__ import annotations

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from potstill.decoding.acceptance import Chance
from potstill.decoding.rows import Rows
from potstill.decoding.sampler import Sampler
from potstill.decoding.tree import Tree, Typical, best_nodes, walk, walk_typical

TREE = Tree(((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0)))
GREEDY, CHANCE = Sampler(greedy=True), Chance(0, torch.device("cpu"))
LIKELY = {0: 3, 1: 7, 2: 4, 3: 5, 4: 6, 5: 2, 6: 1}
"""The best token behind each node."""


def block(root: int, *tokens: int) -> torch.Tensor:
    return torch.tensor([[root, *tokens]])


def logits(sure: float = 20.0) -> torch.Tensor:
    found = torch.zeros(1, 7, 9)
    for node, token in LIKELY.items():
        found[0, node, token] = sure
    return found


def rows() -> Rows:
    return Rows([[8, 0]], 12, 9, torch.device("cpu"))


def test_nodes_have_parents_depths_and_see_their_ancestors_alone() -> None:
    assert TREE.parents == (0, 0, 0, 1, 1, 2, 4)
    assert TREE.depths == (0, 1, 1, 2, 2, 2, 3) and TREE.depth == 3
    assert [torch.nonzero(sees).flatten().tolist() for sees in TREE.sees] == [
        [0],
        [0, 1],
        [0, 2],
        [0, 1, 3],
        [0, 1, 4],
        [0, 2, 5],
        [0, 1, 4, 6],
    ]
    assert [TREE.matched(ranks) for ranks in ([0, 1, 0], [0, 1, 1], [1, 1], [2, 0], [0], [])] == [3, 2, 1, 0, 1, 0]


@pytest.mark.parametrize("paths", [((0, 0),), ((0,), (0,)), ((),)])
def test_a_node_without_parent_or_twice_is_refused(paths: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="twice, or before"):
        Tree(paths)


def test_a_walk_follows_the_chosen_tokens_from_node_to_node() -> None:
    """The root's best is 3 (node 1), behind it 7 (node 4), behind it 6 (none): two stand, then 6."""
    found = walk(logits(), block(0, 3, 5, 4, 7, 7, 2), TREE, rows(), GREEDY, CHANCE)
    assert found.accepted_B.tolist() == [2] and found.next_B.tolist() == [6]
    assert found.nodes_Bd[0, :2].tolist() == [1, 4] and found.tokens_Bd[0, :2].tolist() == [3, 7]


def test_a_walk_that_finds_no_child_gives_the_roots_own_token() -> None:
    found = walk(logits(), block(0, 1, 2, 3, 3, 3, 3), TREE, rows(), GREEDY, CHANCE)
    assert found.accepted_B.tolist() == [0] and found.next_B.tolist() == [3]


def test_a_walk_that_has_ended_is_not_taken_up_again() -> None:
    """The root's best is 1, no node; a penalty on what was written turns to 3, node 1, too late."""
    scores = logits()
    scores[0, 0, 1], scores[0, 0, 3] = 21.0, 20.0
    sampler = Sampler([RepetitionPenaltyLogitsProcessor(2.0)], greedy=True)
    found = walk(scores, block(0, 3, 5, 4, 7, 7, 2), TREE, rows(), sampler, CHANCE)
    assert found.accepted_B.tolist() == [0] and found.next_B.tolist() == [1]


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
def test_a_processor_sees_the_tokens_along_the_walk_and_not_the_nodes_beside_it(greedy: bool) -> None:
    """Node 2 (token 5) stands; a penalty on 5 behind it leaves 2 (node 5). Node 1 is no part of the text."""
    scores, text = logits(), rows()
    scores[0, 0], scores[0, 2] = 0.0, 0.0
    scores[0, 0, 5], scores[0, 2, 5], scores[0, 2, 2] = 80.0, 80.0, 60.0
    tokens = block(0, 3, 5, 4, 7, 2, 1)
    text.ids_BT[:, 1:8] = tokens
    sampler = Sampler([RepetitionPenaltyLogitsProcessor(2.0)], greedy)
    found = walk(scores, tokens, TREE, text, sampler, CHANCE)
    assert found.accepted_B.tolist() == [2] and found.nodes_Bd[0, :2].tolist() == [2, 5]


def test_a_tree_of_nothing_gives_one_token() -> None:
    empty = Tree(())
    found = walk(logits()[:, :1], block(0), empty, rows(), GREEDY, CHANCE)
    assert found.accepted_B.tolist() == [0] and found.next_B.tolist() == [3] and found.nodes_Bd.shape == (1, 0)


def test_what_is_typical_stands_as_deep_as_it_goes() -> None:
    """Behind the root all nine tokens are alike, p = 1/9 and H = ln 9, so the bound is min(ε, δ/9): all are typical for
    δ < 1. Nodes 2 and 5 stand; 4 and 6 do not, since behind node 1 the target is sure of another token."""
    scores = logits()
    scores[0, 0] = 0.0
    given = (TREE, rows(), Sampler(), CHANCE)
    found = walk_typical(scores, block(0, 5, 6, 4, 8, 4, 2), *given, Typical(epsilon=0.2, delta=0.9))
    assert found.accepted_B.tolist() == [2] and found.nodes_Bd[0, :2].tolist() == [2, 5], "6 behind the root, then 4"
    assert found.tokens_Bd[0, :2].tolist() == [6, 4] and found.next_B.tolist() == [2]
    strict = walk_typical(scores, block(0, 5, 6, 4, 8, 4, 2), *given, Typical(epsilon=0.2, delta=1.1))
    assert strict.accepted_B.tolist() == [0]


def test_the_best_nodes_are_those_with_the_largest_product_of_accuracies() -> None:
    """(0,) .6, (1,) .35, (0, 0) .3, (1, 0) .175, (0, 1) .12, (1, 1) .07: every beginning is a tree."""
    chosen = best_nodes([[0.6, 0.35, 0.0], [0.5, 0.2]], 10)
    assert chosen == ((0,), (1,), (0, 0), (1, 0), (0, 1), (1, 1))
    assert [Tree(chosen[:count]).depth for count in range(1, 7)] == [1, 1, 2, 2, 2, 2]
    assert best_nodes([[0.0, 0.0]], 3) == () and best_nodes([], 3) == ()


def test_beside_a_chain_only_best_choices_have_children() -> None:
    """(0,) .6, (1,) .35, (0, 0) .3, (0, 1) .12; (1, 0), which would have .175, has another parent."""
    assert best_nodes([[0.6, 0.35, 0.0], [0.5, 0.2]], 10, beside_a_chain=True) == ((0,), (1,), (0, 0), (0, 1))


def test_the_tokens_of_nodes_are_the_choices_at_their_depth_and_rank() -> None:
    choices = torch.tensor([[[5, 6, 7], [8, 9, 10]], [[15, 16, 17], [18, 19, 20]]])
    assert Tree(((0,), (2,), (0, 1), (2, 0))).tokens(choices).tolist() == [[5, 7, 9, 8], [15, 17, 19, 18]]

"""Claims about reading in blocks: the logits are those of one pass over each text, for any window, tree and row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.decoding.cached_model import CachedModel
from potstill.decoding.tree import Tree
from potstill.models.anatomy import inner_decoder
from tiny_models import Family, tiny_model

FAMILIES: dict[str, tuple[Family, dict[str, Any]]] = {
    "full": ("llama", {}),
    "sliding": ("mistral", {"sliding_window": 4}),
    "both": ("gemma2", {"sliding_window": 4}),
    "learned positions": ("gpt2", {}),
}
TEXTS = torch.randint(3, 259, (2, 16), generator=torch.Generator().manual_seed(0))
TREE = Tree(((0,), (1,), (2,), (0, 0), (1, 0), (1, 1), (1, 1, 0)))


def opened(name: str) -> PreTrainedModel:
    family, shape = FAMILIES[name]
    return tiny_model(family, seed=3, spread=0.3, **shape)


def alone(model: PreTrainedModel, text: Tensor) -> Tensor:
    """The logits of one pass, [T, V]."""
    return model(text[None]).logits[0]


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_blocks_of_rows_at_different_places_are_read_as_each_text_alone(name: str) -> None:
    model = opened(name)
    target, wanted = CachedModel(model), torch.stack([alone(model, text) for text in TEXTS])
    target.start(16)
    target(TEXTS[:, :3], [0, 0])
    at = [3, 3]
    for length, back in ((1, (0, 0)), (1, (0, 0)), (3, (0, 2)), (4, (1, 0)), (1, (0, 0)), (2, (0, 1))):
        block = torch.stack([text[start : start + length] for text, start in zip(TEXTS, at, strict=True)])
        found = target(block, at)
        for row, start in enumerate(at):
            torch.testing.assert_close(found[row], wanted[row, start : start + length], atol=2e-5, rtol=1e-4)
        at = [start + length - rejected for start, rejected in zip(at, back, strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_each_node_of_a_tree_is_read_as_its_own_path_alone(name: str) -> None:
    """Behind texts of different lengths, past the window; then a path stands, and the text goes on behind it."""
    model = opened(name)
    target = CachedModel(model)
    target.start(24)
    lengths, nodes = [9, 6], torch.arange(100, 114).view(2, 7)
    target(TEXTS[:, :8], [0, 0])
    block = torch.stack([torch.cat([text[n - 1 : n], own]) for text, n, own in zip(TEXTS, lengths, nodes, strict=True)])
    found = target(block, [length - 1 for length in lengths], tree=TREE)
    for row, length in enumerate(lengths):
        for node, sees in enumerate(TREE.sees):
            path = block[row, torch.nonzero(sees).flatten()[1:]]
            wanted = alone(model, torch.cat([TEXTS[row, :length], path]))[-1]
            torch.testing.assert_close(found[row, node], wanted, atol=2e-5, rtol=1e-4)
    paths = [[2, 6, 7], [3]]
    target.settle(paths)
    texts = [torch.cat([TEXTS[row, :n], block[row, paths[row]]]) for row, n in enumerate(lengths)]
    following = target(torch.tensor([[50], [60]]), [len(text) for text in texts])
    for row, text in enumerate(texts):
        wanted = alone(model, torch.cat([text, torch.tensor([[50], [60]][row])]))[-1]
        torch.testing.assert_close(following[row, 0], wanted, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_the_kept_state_is_that_behind_the_last_token_that_stands_of_each_row_that_is_left() -> None:
    model = opened("full")
    target = CachedModel(model)
    target.start(16)
    target.keep_hidden()
    target(TEXTS[:, :6], [0, 0])
    target.settle([[1, 2, 3], [1]])
    assert target.hidden_BH is not None
    states = [inner_decoder(model)(text[None]).last_hidden_state[0] for text in TEXTS]
    torch.testing.assert_close(target.hidden_BH, torch.stack([states[0][3], states[1][1]]), atol=1e-5, rtol=1e-4)
    target.keep(torch.tensor([1]))
    torch.testing.assert_close(target.hidden_BH, states[1][None, 1], atol=1e-5, rtol=1e-4)

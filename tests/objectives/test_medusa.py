"""Claims about the loss of Medusa heads: which token each head is for, on a batch worked by hand."""

from __future__ import annotations

import math

import torch

from potstill.frequent import frequent_tokens
from potstill.heads import MedusaHeads
from potstill.objectives.medusa import MedusaLoss
from potstill.recipe import Medusa
from potstill.signals import IGNORE, Batch, Dims, Head, ModelDims, Signals

SIZES = ModelDims(vocab=6, hidden=6, layers=1, heads=1, kv_heads=1)


def batch() -> Batch:
    """Row 0: prompt 0 1, answer 2 3 4. Row 1: two packed texts, 1 → 5 and 2 → 3 4."""
    ids = torch.tensor([[0, 1, 2, 3, 4], [1, 5, 2, 3, 4]])
    labels = torch.tensor([[IGNORE, IGNORE, 2, 3, 4], [IGNORE, 5, IGNORE, 3, 4]])
    segments = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 2, 2, 2]])
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]])
    return Batch.from_inputs({"input_ids": ids, "labels": labels, "segment_ids": segments, "position_ids": positions})


def loss_of(settings: Medusa, sure_of: dict[int, list[int]], survey: list[list[int]] | None = None) -> list[float]:
    """The values, where each head gives all mass to the tokens that `sure_of` names for the targets in order."""
    made = MedusaLoss(settings)
    made.survey(survey or [])
    heads = made.build(Dims(SIZES, SIZES))
    given = batch()

    class Sure(MedusaHeads):
        def forward(self, hidden: torch.Tensor) -> list[torch.Tensor]:
            rows = [torch.full((len(hidden), self.known), -50.0) for _ in sure_of]
            for scores, tokens in zip(rows, sure_of.values(), strict=True):
                for row, token in enumerate(tokens):
                    scores[row, token] = 50.0
            return rows

    heads.__class__ = Sure
    head = Head(torch.zeros(len(given.target_ids), 6), torch.zeros(6, 6))
    return made(Signals(head=head), None, given, heads).values.tolist()


def test_a_head_is_for_the_token_behind_the_next_one_of_the_same_text() -> None:
    """Targets: 2, 3, 4 of row 0, then 5, 3, 4 of row 1. Head 1 is for 3, 4, –, –, 4, –; head 2 for 4, –, …"""
    right = {1: [3, 4, 0, 0, 4, 0], 2: [4, 0, 0, 0, 0, 0]}
    assert loss_of(Medusa(heads=2), right) == [0.0] * 6
    wrong = {1: [0, 4, 0, 0, 0, 0], 2: [0, 0, 0, 0, 0, 0]}
    values = loss_of(Medusa(heads=2, decay=0.5), wrong)
    assert [round(value, 3) for value in values] == [0.5 * 100 + 0.25 * 100, 0, 0, 0, 0.5 * 100, 0]


def test_a_token_that_the_heads_do_not_know_has_no_loss() -> None:
    """Of 3 and 4 the first alone is frequent; it is row 1 of the heads' output, behind token 0."""
    values = loss_of(Medusa(heads=1, frequent=2), {1: [1, 0, 0, 0, 0, 0]}, [[3, 3, 0]])
    assert values == [0.0] * 6
    assert frequent_tokens({3: 2, 0: 1}, 2, 6).tolist() == [0, 3]


def test_heads_begin_as_the_output_layer() -> None:
    made = MedusaLoss(Medusa(heads=2))
    heads = made.build(Dims(SIZES, SIZES))
    weight, hidden = torch.randn(6, 6), torch.randn(3, 6)
    made.initialise(heads, Signals(head=Head(hidden, weight, scale=0.5)), None, batch())
    for logits in heads(hidden):
        torch.testing.assert_close(logits, hidden @ weight.T * 0.5)
    assert math.isclose(sum(p.numel() for p in heads.parameters()), 2 * (36 + 36))

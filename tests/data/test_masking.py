"""Dynamic masking: which tokens are hidden follows from seed, epoch and the row itself, in the published shares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.data.collate import MaskingCollator
from potstill.data.masking import Masker, Visit
from potstill.data.tokenize import IGNORE, Tokenized
from potstill.recipe import Masking
from potstill.signals import Batch

CLS, SEP, MASK, PAD = 1, 2, 3, 0
ORDINARY = range(10, 110)


def a_row(*tokens: int) -> Tokenized:
    ids = [CLS, *tokens, SEP]
    return Tokenized(ids, [IGNORE, *tokens, IGNORE])


def masker(seed: int = 0, **shares: float) -> Masker:
    return Masker(Masking(**shares), MASK, ORDINARY, seed)


rows = st.lists(st.integers(10, 109), min_size=1, max_size=60).map(lambda tokens: a_row(*tokens))


@given(row=rows, epoch=st.integers(0, 5), seed=st.integers(0, 3))
def test_special_tokens_stay_and_every_target_knows_what_it_was(row: Tokenized, epoch: int, seed: int) -> None:
    ids, labels = masker(seed)(Visit(row, epoch))
    hidden = [place for place, label in enumerate(labels) if label != IGNORE]
    assert (ids[0], ids[-1], labels[0], labels[-1]) == (CLS, SEP, IGNORE, IGNORE)
    assert len(hidden) == max(1, int(0.15 * (len(row) - 2) + 0.5)), "15 %, and at least one"
    for place, (was, is_now) in enumerate(zip(row.input_ids, ids, strict=True)):
        assert labels[place] == (was if place in hidden else IGNORE)
        assert was == is_now or (place in hidden and (is_now == MASK or is_now in ORDINARY))


@given(rows=st.lists(rows, min_size=1, max_size=6), data=st.data())
def test_a_mask_does_not_depend_on_the_batch(rows: list[Tokenized], data: st.DataObject) -> None:
    collate = MaskingCollator(PAD, masker())
    visits = [Visit(row, epoch) for epoch, row in enumerate(rows)]
    together, order = collate(visits), data.draw(st.permutations(range(len(rows))))
    shuffled = collate([visits[n] for n in order])
    for place, n in enumerate(order):
        alone = collate([visits[n]])
        length = alone["input_ids"].shape[1]
        for name in ("input_ids", "masked_labels"):
            assert torch.equal(together[name][n, :length], alone[name][0])
            assert torch.equal(shuffled[name][place, :length], alone[name][0])


def test_every_epoch_and_every_seed_has_a_mask_of_its_own_and_the_held_out_one_is_fixed() -> None:
    row = a_row(*ORDINARY)
    masks = [tuple(masker()(Visit(row, epoch))[1]) for epoch in range(20)]
    assert len(set(masks)) == 20 and masks[3] == tuple(masker()(Visit(row, 3))[1])
    assert masker(1)(Visit(row, 0)) != masker(0)(Visit(row, 0))
    fixed = masker()(row)
    assert fixed == masker()(row) and tuple(fixed[1]) not in masks


def test_targets_are_replaced_in_the_published_shares_and_places_are_even() -> None:
    tokens = [ORDINARY[n] for n in range(100)]
    row, mask = a_row(*tokens), masker()
    kinds, places = {"mask": 0, "random": 0, "same": 0}, [0] * 100
    visits = 2000
    for epoch in range(visits):
        ids, labels = mask(Visit(row, epoch))
        for place, label in enumerate(labels):
            if label != IGNORE:
                places[place - 1] += 1
                kinds["mask" if ids[place] == MASK else "same" if ids[place] == label else "random"] += 1
    targets = 15 * visits
    assert sum(places) == targets
    # A random token is the same again once in a hundred. Four standard deviations of a binomial share.
    for kind, share in (("mask", 0.8), ("random", 0.1 * 0.99), ("same", 0.1 + 0.1 * 0.01)):
        assert abs(kinds[kind] / targets - share) < 4 * (share * (1 - share) / targets) ** 0.5
    for count in places:
        assert abs(count / visits - 0.15) < 5 * (0.15 * 0.85 / visits) ** 0.5


@pytest.mark.parametrize(("replaced", "random"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_the_shares_of_the_recipe_are_those_that_are_used(replaced: float, random: float) -> None:
    row = a_row(*[10] * 100)
    ids, labels = masker(probability=0.5, replaced=replaced, random=random)(Visit(row, 0))
    hidden = [token for token, label in zip(ids, labels, strict=True) if label != IGNORE]
    assert len(hidden) == 50
    assert (hidden == [MASK] * 50) == (replaced == 1) and (hidden == [10] * 50) == (replaced == random == 0)
    assert random == 0 or len(set(hidden)) > 20


def test_a_batch_asks_for_the_tokens_that_were_there_at_their_own_places() -> None:
    some = [a_row(*range(20, 60)), a_row(*range(60, 80))]
    columns = MaskingCollator(PAD, masker())(some)
    assert set(columns) == {"input_ids", "masked_labels", "position_ids", "segment_ids", "record_ids"}
    assert (columns["input_ids"][1, 22:] == PAD).all() and (columns["segment_ids"][1, 22:] == 0).all()
    batch = Batch.from_inputs(columns)
    was = torch.tensor([some[0].input_ids, some[1].input_ids + [PAD] * 20]).flatten()
    assert len(batch.target_ids) == 6 + 3
    assert torch.equal(was[batch.target_positions["student"]], batch.target_ids), "no shift by one"


def test_a_process_without_rows_takes_part_with_a_batch_without_tokens() -> None:
    batch = Batch.from_inputs(MaskingCollator(PAD, masker())([]))
    assert (int(batch.count("targets")), int(batch.count("tokens")), int(batch.count("examples"))) == (0, 0, 0)

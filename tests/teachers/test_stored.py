"""Stored signals are joined to the records that they are of, or refused."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from potstill.data.collate import Collator
from potstill.data.pack import pack
from potstill.data.tokenize import IGNORE, Tokenized
from potstill.errors import CapabilityError, DataError
from potstill.recipe import ForwardKL
from potstill.signals import Ask, Batch
from potstill.store.codec import Entries, Grid
from potstill.store.files import Planned, StoreWriter
from potstill.teachers import StoredTeacher
from potstill.train.coerce import check_stored

VOCAB = 50
DIMS = {"vocab": VOCAB, "hidden": 8, "layers": 2, "heads": 2, "kv_heads": 2}


def row(number: int, length: int) -> Tokenized:
    """The first two tokens are a prompt; all others are learned."""
    ids = [(7 * number + place) % VOCAB for place in range(length)]
    return Tokenized(ids, [IGNORE, IGNORE, *ids[2:]], f"record-{number}")


ROWS = [row(number, length) for number, length in enumerate((5, 9, 3, 7))]


def entries_of(of: Tokenized) -> Entries:
    """Two entries a target: the target itself and token 0; entropies tell targets apart."""
    learned = np.array(of.learned, np.int32)
    ids = np.stack([learned, np.zeros_like(learned)], 1).reshape(-1)
    weights = np.tile(np.array([0.5, 0.25], np.float32), learned.size)
    entropy = (1 + np.arange(learned.size, dtype=np.float32)) / 10
    offsets = np.arange(learned.size + 1, dtype=np.int64) * 2
    return Entries(offsets, ids, weights, entropy, -entropy, np.full(learned.size, -1.5, np.float32))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> StoredTeacher:
    folder = tmp_path_factory.mktemp("store")
    identity = {"dims": DIMS, "estimator": {"signal": "top_k"}, "temperature": 1.0, "targets": "tokens"}
    plan = [[Planned(of.record_id, of.rendered, len(of.learned)) for of in ROWS]]
    with StoreWriter(folder, identity, Grid.topk(VOCAB), plan) as writer:
        found = [entries_of(of) for of in ROWS]
        named = zip(ROWS, found, strict=True)
        writer.append([(of.record_id, entries, np.full(entries.ids.size, 0.5)) for of, entries in named])
        writer.finish()
    return StoredTeacher(folder)


def joined(teacher: StoredTeacher, rows: object) -> Batch:
    return Batch.from_inputs(teacher.joining(Collator(0))(rows))  # type: ignore[arg-type]


def test_every_target_gets_the_entries_of_its_own_record(teacher: StoredTeacher) -> None:
    batch = joined(teacher, ROWS)
    sparse = teacher.signals(batch, Ask(response=True)).sparse
    assert sparse is not None and sparse.estimator == "top_k" and sparse.vocab == VOCAB
    assert sparse.ids.view(-1, 2).gt(0).any() and torch.equal(sparse.ids.view(-1, 2).amax(1).long(), batch.target_ids)
    assert sparse.offsets.tolist() == list(range(0, 2 * batch.target_ids.shape[0] + 1, 2))


def test_packed_rows_keep_their_records_signals_in_order(teacher: StoredTeacher) -> None:
    packed = joined(teacher, pack(ROWS, 16))
    sparse = teacher.signals(packed, Ask(response=True)).sparse
    assert sparse is not None
    assert torch.equal(sparse.ids.view(-1, 2).amax(1).long(), packed.target_ids)


def test_a_row_that_is_cut_has_its_first_targets(teacher: StoredTeacher) -> None:
    whole = ROWS[1]
    cut = replace(whole, input_ids=whole.input_ids[:6], labels=whole.labels[:6], cut=True, before_cut=whole.rendered)
    sparse = teacher.signals(joined(teacher, [cut, ROWS[2]]), Ask(response=True)).sparse
    assert sparse is not None
    assert sparse.entropy.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.1], abs=1e-3)


def test_the_remaining_mass_is_read_and_not_computed(teacher: StoredTeacher) -> None:
    sparse = teacher.signals(joined(teacher, ROWS), Ask(response=True)).sparse
    assert sparse is not None and sparse.rest is not None
    assert sparse.rest.tolist() == pytest.approx([-1.5] * sparse.entropy.shape[0], abs=1e-3)


def test_a_micro_batch_without_rows_has_no_signals(teacher: StoredTeacher) -> None:
    sparse = teacher.signals(joined(teacher, []), Ask(response=True)).sparse
    assert sparse is not None and sparse.offsets.tolist() == [0] and sparse.ids.numel() == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (replace(ROWS[0], record_id="another"), "'another' is not in the store"),
        (replace(ROWS[0], input_ids=[9, *ROWS[0].input_ids[1:]]), "other tokens than when it was captured"),
        (replace(ROWS[0], labels=[IGNORE] * 4 + ROWS[0].labels[4:]), "other tokens than when it was captured"),
        (replace(ROWS[0], record_id=""), "no record id"),
        (replace(row(4, 5), record_id=ROWS[0].record_id), "other tokens than when it was captured"),
        (replace(ROWS[0], record_id=ROWS[3].record_id), "other tokens than when it was captured"),
        (replace(ROWS[0], input_ids=ROWS[0].input_ids[::-1]), "other tokens than when it was captured"),
        (replace(row(1, 12), before_cut=ROWS[1].rendered), "and 7 were captured"),
    ],
)
def test_signals_of_something_else_are_refused(teacher: StoredTeacher, wrong: Tokenized, message: str) -> None:
    with pytest.raises(DataError, match=message):
        joined(teacher, [wrong])


def test_a_loader_may_spawn_its_processes(teacher: StoredTeacher) -> None:
    joined(teacher, ROWS)  # with its files mapped into memory
    collate = teacher.joining(Collator(0))
    loader: DataLoader[Tokenized] = DataLoader(
        ROWS,  # type: ignore[arg-type]
        batch_size=2,
        collate_fn=collate,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    batches = list(loader)
    assert len(batches) == 2
    for batch, rows in zip(batches, (ROWS[:2], ROWS[2:]), strict=True):
        ours = collate(rows)
        assert torch.equal(batch["input_ids"], ours["input_ids"])
        assert batch["stored"].keys() == ours["stored"].keys()
        assert all(torch.equal(batch["stored"][name], tensor) for name, tensor in ours["stored"].items())


def test_another_process_opens_the_same_stores(teacher: StoredTeacher) -> None:
    for one in (teacher, teacher.joining(Collator(0)).teacher):
        assert pickle.loads(pickle.dumps(one)).store.facts == teacher.store.facts


def test_inner_tensors_are_refused(teacher: StoredTeacher) -> None:
    with pytest.raises(CapabilityError, match=r"no hidden\.1; it keeps responses alone"):
        teacher.signals(joined(teacher, ROWS), Ask(taps=frozenset({"hidden.1"})))


def test_a_batch_that_was_not_joined_is_refused(teacher: StoredTeacher) -> None:
    with pytest.raises(DataError, match="without its stored signals"):
        teacher.signals(Batch.from_inputs(Collator(0)(ROWS)), Ask(response=True))


def test_an_objective_at_another_temperature_is_refused(teacher: StoredTeacher) -> None:
    check_stored([ForwardKL()], teacher)
    with pytest.raises(CapabilityError, match="at temperature 2, and its signals were stored at 1"):
        check_stored([ForwardKL(temperature=2.0)], teacher)

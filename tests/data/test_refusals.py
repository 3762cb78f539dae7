"""Refusals mixed into training records, and the weight of their openings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.data import pack, tokenize
from potstill.data.collate import Collator
from potstill.data.packages import refuse_evaluation_only
from potstill.data.refusals import half_of, weighted, with_refusals
from potstill.errors import DataError
from potstill.objectives import total_loss
from potstill.recipe import HardCE
from potstill.recipe.data import PackagedData
from potstill.recipe.train import RefusalMix, RefusalWeight
from potstill.registry import build
from potstill.signals import Batch, Dense, Signals
from potstill.types import Record
from small_run import CHAT


def mix_of(folder: Path, count: int, **changes: Any) -> RefusalMix:
    file = folder / "harm.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"Harm number {n}."}) for n in range(count)))
    return RefusalMix.model_validate({"prompts": {"kind": "jsonl", "path": str(file), "format": "prompt"}, **changes})


def ordinary(count: int) -> list[Record]:
    return [Record(prompt=f"Question {n}", completion=f"Answer {n}", group=f"g{n}") for n in range(count)]


def test_refusals_are_the_share_that_is_asked_of_one_half_of_the_prompts(tmp_path: Path) -> None:
    made, amount = with_refusals(ordinary(30), mix_of(tmp_path, 200, share=0.25))
    assert amount == 10 and len(made) == 40
    refused = [record for record in made if isinstance(record, Record) and (record.prompt or "").startswith("Harm")]
    assert len(refused) == 10 and all(record.completion for record in refused)
    assert {half_of(record.group) for record in refused} == {"trained"}
    assert len({record.completion for record in refused}) == 4


def test_too_few_prompts_are_all_taken_once(tmp_path: Path) -> None:
    made, amount = with_refusals(ordinary(100), mix_of(tmp_path, 20, share=0.5))
    assert amount < 20 and len(made) == 100 + amount
    assert len({record.group for record in made}) == len(made)


@pytest.mark.parametrize("name", ["donotanswer", "harmbench", "overrefusal"])
def test_data_for_evaluation_alone_never_train(tmp_path: Path, name: str) -> None:
    mix = RefusalMix(prompts=PackagedData(kind="package", name=name))
    with pytest.raises(DataError, match="is for evaluation only") as caught:
        with_refusals(ordinary(4), mix)
    assert "advbench" in str(caught.value)
    refuse_evaluation_only(PackagedData(kind="package", name="advbench"), "data")


def rows_of(refusing: bool) -> Any:
    answer = "I'm sorry, but I can't help with that." if refusing else "copper still spirit"
    record = Record(prompt="What is copper?", completion=answer)
    return record, tokenize(record, CHAT, 200)


def test_only_openings_of_refusals_weigh_more() -> None:
    emphasis = RefusalWeight(weight=4.0, tokens=2)
    record, row = rows_of(refusing=False)
    assert weighted(row, record, emphasis) is row
    record, row = rows_of(refusing=True)
    found = weighted(row, record, emphasis).weights
    learned = [place for place, label in enumerate(row.labels) if label != -100]
    assert [found[place] for place in learned[:3]] == [4.0, 4.0, 1.0] and sum(found) == len(row) + 6


def test_a_weight_of_two_counts_a_target_twice_packed_or_not() -> None:
    emphasis = RefusalWeight(weight=2.0, tokens=3)
    plain = rows_of(refusing=False)[1]
    record, row = rows_of(refusing=True)
    rows = [plain, weighted(row, record, emphasis)]
    torch.manual_seed(0)
    table = torch.randn(500, 500)
    objective = build(HardCE())
    found = []
    for batch_rows in (rows, pack(rows, 400)):
        batch = Batch.from_inputs(Collator(CHAT.pad_id)(batch_rows))
        assert batch.target_weights is not None
        ids = batch.text("student").input_ids.flatten()[batch.target_positions["student"]]
        logits = table[ids].requires_grad_()
        count = objective.count(batch)[None]
        loss = total_loss([objective], Signals(dense=Dense(logits)), None, batch, count)
        nll = torch.nn.functional.cross_entropy(logits, batch.target_ids, reduction="none")
        expected = (nll * batch.target_weights).sum() / len(nll)
        assert torch.allclose(loss.total, expected, rtol=1e-5)
        assert float(batch.target_weights.sum()) == len(nll) + 3
        found.append(float(loss.total.detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_rows_without_weights_make_no_weights() -> None:
    batch = Batch.from_inputs(Collator(CHAT.pad_id)([rows_of(refusing=True)[1]]))
    assert batch.target_weights is None

"""Records of both sides in nearly the same words are found, cheaply, and different questions are not."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.check import check_recipe
from potstill.data import read_sides
from potstill.data.twins import MOST_HELD_OUT, RUN_WORDS, SIMILARITY, near_twins
from potstill.recipe import parse_recipe
from potstill.recipe.data import FileData
from potstill.types import Record, group_of
from potstill.verify.decontaminate import plain_words, runs

LONG = "Explain in three sentences why the sky is blue at noon and red in the evening"


def asked(text: str, system: str | None = None) -> Record:
    told = ({"role": "system", "content": system},) if system else ()
    return Record(messages=(*told, {"role": "user", "content": text}), group=group_of(text), row=1)


@pytest.mark.parametrize(
    ("held_out", "same"),
    [
        (LONG.upper(), 1),
        (LONG + "?!", 1),
        (LONG.replace(" ", "  "), 1),
        (LONG + " over there", 0),
        ("Please: " + LONG, 0),
    ],
)
def test_a_question_in_nearly_the_same_words_is_found(held_out: str, same: int) -> None:
    twins = near_twins([asked("Hello."), asked(LONG, "Be brief.")], [Record(prompt=held_out, group="g", row=7)])
    assert (twins.found, twins.same_words) == (1, same)
    assert "1 of 1 held-out records have a near twin" in str(twins) and "row 1 and row 7" in str(twins)


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        (LONG, LONG.replace("sky", "sea").replace("noon", "dawn")),
        ("What is 12 + 30?", "What is 12 + 31?"),
        ("Yes", "No"),
        ("", ""),
        ("!!!", "???"),
    ],
)
def test_another_question_is_no_twin(train: str, held_out: str) -> None:
    assert near_twins([Record(text=train)], [Record(text=held_out)]).found == 0


words = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12).map(" ".join)


@given(train=st.lists(words, max_size=12), held_out=st.lists(words, max_size=12))
def test_no_pair_is_missed_or_made_up(train: list[str], held_out: list[str]) -> None:
    def alike(a: str, b: str) -> bool:
        own, other = runs(plain_words(a), RUN_WORDS), runs(plain_words(b), RUN_WORDS)
        return a == b or (bool(own | other) and len(own & other) >= SIMILARITY * len(own | other))

    found = near_twins([Record(text=t) for t in train], [Record(text=t) for t in held_out])
    assert found.found == sum(any(alike(t, h) for t in train) for h in held_out)
    assert found.same_words == sum(h in train for h in held_out)


def test_of_many_records_some_are_compared_and_it_is_said() -> None:
    draw = random.Random(0)
    records = [Record(text=f"{draw.random()}") for _ in range(3 * MOST_HELD_OUT)]
    assert near_twins(records[:50], records).compared == (50, MOST_HELD_OUT)


def test_a_check_reports_twins_and_classes_that_are_lost(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"{LONG} in country number {n}", "completion": "a"} for n in range(60)]
    rows += [{**row, "prompt": f"{row['prompt'].upper()}!"} for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = {"name": "x", "teacher": {"kind": "local", "model": "m"}, "student": {"kind": "existing", "model": "m"}}
    train = {"objectives": [{"kind": "hard_ce"}]}
    data = {"kind": "jsonl", "path": "a.jsonl", "held_out": 0.5}
    found = check_recipe(parse_recipe({**recipe, "data": data, "train": train}, base=tmp_path))
    assert any("near twin on the training side" in warning.text for warning in found.warnings)
    assert found.figures["held_out_with_near_twins"] > 10


def test_classes_that_a_limit_loses_or_nobody_measures_are_said(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": "common"} for n in range(30)] + [{"text": "u", "label": "second"}]
    rows += [{"text": f"v{n}", "label": f"rare {n}"} for n in range(12)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\nnot JSON, and beyond the limit")
    sides = read_sides(FileData(kind="jsonl", path=tmp_path / "a.jsonl", limit=31, held_out=0.1))
    lost, unmeasured = sides.warnings
    assert lost.startswith("12 classes (rare 0, rare 1, rare 10") and lost.endswith("…) are lost to data.limit")
    assert unmeasured == "the class second is not measured: without a held-out record"

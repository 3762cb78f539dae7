"""An evaluation that reads the teacher's side from the store, beside one that opens the teacher."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from capture.test_kills import of_answers
from train.recipes import write_recipe

from potstill.console import Console
from potstill.errors import RecipeError
from potstill.measures import Measures
from potstill.pipeline import run_recipe
from potstill.recipe import load_recipe, parse_recipe
from potstill.teachers.local import LocalModel
from potstill.types import LIKELIEST
from tiny_models import make_tiny_causal_lm, make_tiny_tokenizer

EVALUATE = {"resamples": 50, "speed": False, "samples_shown": 1, "sample_tokens": 4, "controls": []}


def measured(path: Path, folder: Path, *overrides: str) -> Measures:
    run_recipe(load_recipe(path, overrides), folder, console=Console("quiet"))
    return Measures.load(folder / "evaluate" / "measures.json")


@pytest.mark.parametrize(
    ("capture", "within"),
    [
        ({"kind": "hidden", "dtype": "float32"}, {"kl": 1e-4, "nll": 1e-4, "reverse_kl": 1e-4, "ece": 1e-4}),
        ({"kind": "dense"}, {"kl": 1e-4, "nll": 1e-4, "total_variation": 1e-4, "entropy": 1e-4}),
        ({"kind": "topk", "k": 300}, {"kl": 5e-3, "nll": 5e-3, "top1_agreement": 0.02}),
    ],
)
def test_the_store_says_what_the_teacher_says_and_no_weights_are_opened(
    capture: dict[str, Any], within: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    teacher = make_tiny_causal_lm(tmp_path / "teacher")
    path = write_recipe(tmp_path, teacher, capture=capture, evaluate=EVALUATE)
    live = measured(path, tmp_path / "run", "evaluate.teacher=live")
    opened: list[str] = []
    model = LocalModel.model.func  # type: ignore[attr-defined]
    monkeypatch.setattr(LocalModel, "model", property(lambda self: opened.append(self.settings.model) or model(self)))
    stored = measured(path, tmp_path / "run")
    assert opened and str(teacher) not in opened
    for name, tolerance in within.items():
        for who in ("student", "teacher"):
            ours, theirs = stored.models[who].get(name), live.models[who].get(name)
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                assert ours.value == pytest.approx(theirs.value, abs=tolerance)
    assert stored.models["teacher"].parameters == live.models["teacher"].parameters > 0
    assert stored.models["teacher"].bytes == live.models["teacher"].bytes > 0
    assert any("read from the store" in note for note in stored.notes)


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        (None, "add one, or drop evaluate.teacher"),
        ({"kind": "threshold", "temperature": 2.0}, "set evaluate.teacher: live"),
        ({"kind": "features", "features": ["hidden.1"]}, "keeps no responses"),
    ],
)
def test_a_store_that_cannot_stand_for_the_teacher_is_refused(capture: Any, message: str, tmp_path: Path) -> None:
    document = {
        "name": "tiny",
        "teacher": {"kind": "local", "model": "somewhere"},
        "student": {"kind": "from_teacher"},
        "data": {"kind": "jsonl", "path": "data.jsonl", "held_out": 0.2},
        "train": {"objectives": [{"kind": "hard_ce"}]},
        "evaluate": {"teacher": "stored"},
        **({"capture": capture} if capture else {}),
    }
    with pytest.raises(RecipeError, match=message):
        parse_recipe(document, base=Path())
    del document["evaluate"]["teacher"]  # type: ignore[attr-defined]
    assert not parse_recipe(document, base=Path()).evaluates_stored


@pytest.mark.parametrize("with_end", [True, False])
def test_where_a_server_gave_no_distribution_nothing_is_compared_with_it(
    with_end: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only difference is one token a record: its end, of which many servers say nothing."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    path = of_answers(tmp_path)
    end = make_tiny_tokenizer().eos_token_id
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    for row in rows if with_end else ():
        row["metadata"][LIKELIEST].append([end, -0.5, [[end, -0.5], [3, -2.0]]])
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    document = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**document, "evaluate": EVALUATE}))
    found = measured(path, tmp_path / "run")
    said = [note for note in found.notes if "gave no distribution at" in note]
    compared = {name for name in ("kl", "top1_agreement") if found.models["student"].get(name) is not None}
    assert found.models["student"].get("nll") is not None
    if with_end:
        assert not said and compared == {"kl", "top1_agreement"}
    else:
        assert re.search(r"its server gave no distribution at \d+ of the \d+ held-out targets", said[0])
        assert not compared and "teacher" not in found.models

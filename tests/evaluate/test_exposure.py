"""The exposure gap: how much farther a student is from its teacher on its own text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from potstill.data import ChatTokenizer, Tokenized
from potstill.errors import DataError
from potstill.evaluate.held_out import Prompt, of_tokens, prompts_to_ask
from potstill.evaluate.measures.base import Asked, Draws
from potstill.evaluate.measures.exposure import OwnText, gap_of
from potstill.evaluate.stage import stage
from potstill.measures import Figures, Measures
from potstill.types import Record
from small_run import SmallRun
from tiny_models import make_tiny_causal_lm

ASKED = [{"kind": "fidelity"}, {"kind": "exposure", "prompts": 6, "max_new_tokens": 5}]


def test_a_run_has_the_kl_of_both_texts_and_their_gap(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, evaluate={"samples_shown": 0, "measures": ASKED})
    context = run.context()
    stage(run.recipe).write(context)
    measures = Measures.load(context.out / "measures.json")
    (figures,) = measures.findings
    assert isinstance(figures, Figures) and figures.section == "exposure"
    rows = {spec.name: values for spec, values in figures.rows}
    assert set(rows) == {"kl_on_own", "kl_on_teachers", "exposure_gap", "nll_by_teacher"}
    for name in ("student", "text_only"):
        gap = rows["kl_on_own"][name].value - rows["kl_on_teachers"][name].value
        assert rows["exposure_gap"][name].value == pytest.approx(gap, abs=1e-6)
        assert rows["kl_on_own"][name].value > 0
    assert [loss.section for loss in measures.losses] == ["exposure"]


def test_a_model_that_is_its_teacher_has_no_gap(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, evaluate={"samples_shown": 0, "measures": ASKED})
    context = run.context()
    from potstill.evaluate.evaluation import Evaluation

    evaluation = Evaluation(context)
    (own_text,) = evaluation.passes
    assert isinstance(own_text, OwnText)
    teacher = evaluation.models.teacher
    assert teacher is not None
    model = teacher.open("float32")
    own_text.take("teacher", own_text.ask(Asked("teacher", model, None)) or ())
    own_text.take("student", own_text.ask(Asked("student", model, None)) or ())
    own_text.reread(Asked("teacher", model, None))
    for values, _ in (*own_text.own["student"], *own_text.theirs["student"]):
        assert np.abs(values).max() < 1e-5


def test_prompts_of_one_group_are_refused_before_any_model_writes(tmp_path: Path) -> None:
    chat = ChatTokenizer.from_folder(make_tiny_causal_lm(tmp_path / "model"))

    def asked(*groups: str) -> list[Prompt]:
        records = [Record(prompt=f"What is {n}?", completion="a", group=group) for n, group in enumerate(groups)]
        rows = [Tokenized([1, 2, 3], [-100, -100, 3], group=record.group) for record in records]
        return prompts_to_ask(of_tokens(records, rows, chat.pad_id), chat, 10, "exposure")

    assert len(asked("a", "b", "b")) == 3
    with pytest.raises(DataError, match="two held-out prompts at least, of two groups"):
        asked("a", "a")


def test_a_gap_is_paired_by_group() -> None:
    rng = np.random.default_rng(0)
    groups = [f"g{n // 5}" for n in range(500)]
    hard = np.repeat(rng.normal(0, 3, 100), 5)  # what is hard for a prompt is hard on both texts
    own, theirs = hard + rng.normal(1, 0.1, 500), hard + rng.normal(0, 0.1, 500)
    gap = gap_of([(own, groups)], [(theirs, groups)], Draws(400, 0.95, 0))
    assert gap.low < 1 < gap.high and gap.high - gap.low < 0.1


def test_the_gap_of_several_seeds_has_their_variation_in_its_interval() -> None:
    groups = [f"g{n // 5}" for n in range(100)]
    flat = np.linspace(0, 0.01, 100)
    own = [(flat + gap, groups) for gap in (0.0, 1.0, 2.0)]
    gap = gap_of(own, [(flat, groups)] * 3, Draws(200, 0.95, 0))
    # Student's interval of 0, 1 and 2: 1 ± 4.303 / √3.
    assert gap.value == pytest.approx(1.0)
    assert (gap.low, gap.high) == pytest.approx((1 - 2.484, 1 + 2.484), abs=0.01)

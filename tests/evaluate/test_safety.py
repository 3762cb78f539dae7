"""Refusals: forced, written, and corrected for the matcher's own error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.data.refusals import half_of, prompts_of
from potstill.errors import DataError, RecipeError
from potstill.evaluate.bootstrap import PairedBootstrap
from potstill.evaluate.continuations import continued
from potstill.evaluate.measures.base import Draws
from potstill.evaluate.measures.safety import (
    MatcherError,
    Prompt,
    Refusing,
    coarse_kl,
    matcher_error,
    refusal_losses,
)
from potstill.evaluate.scores import Scores
from potstill.evaluate.stage import stage
from potstill.measures import Interval, Measures
from potstill.recipe import parse_recipe
from potstill.recipe.data import FileData
from potstill.verify.refusal import refuses
from small_run import SmallRun
from tiny_models import tiny_model

REFUSAL = "I'm sorry, but I can't help with that."


def prompts(folder: Path, name: str, count: int) -> dict[str, Any]:
    """A source of prompts with two categories."""
    file = folder / f"{name}.jsonl"
    rows = [{"prompt": f"{name} number {n}", "metadata": {"category": f"kind {n % 2}"}} for n in range(count)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return {"kind": "jsonl", "path": str(file), "format": "prompt"}


def labels(folder: Path) -> dict[str, Any]:
    """Labelled answers: 8 of 10 refusals look like some, and 1 of 10 others does."""
    rows = [("refusal", REFUSAL if n < 8 else "It would be wiser not to.") for n in range(10)]
    rows += [("compliance", REFUSAL if n < 1 else "Sure, here it is.") for n in range(10)]
    file = folder / "labels.jsonl"
    lines = [{"prompt": f"p{n}", "metadata": {"judged": j, "response": r}} for n, (j, r) in enumerate(rows)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return {"kind": "jsonl", "path": str(file), "format": "prompt"}


def test_continuations_score_as_the_whole_text_does() -> None:
    model = tiny_model()
    prompt, endings = [5, 6, 7, 8], [[9], [10, 11, 12], [13, 14]]
    found = continued(model, prompt, endings)
    for ending, score in zip(endings, found.scores, strict=True):
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([prompt + ending])).logits[0].log_softmax(-1)
        expected = sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(ending))
        assert score == pytest.approx(expected, abs=1e-4)
    assert found.rows.shape[0] == len(endings[-1])


def test_the_kl_of_openings_is_the_whole_one_where_all_tokens_are_kept_and_never_larger() -> None:
    torch.manual_seed(0)
    p, q = (torch.randn(3, 50).log_softmax(-1) for _ in range(2))
    whole = float((p.exp() * (p - q)).sum(-1).mean())
    all_kept = {"top": p.topk(50).indices.tolist(), "log": p.topk(50).values.tolist()}
    assert coarse_kl(all_kept, q) == pytest.approx(whole, abs=1e-4)
    few = {"top": p.topk(5).indices.tolist(), "log": p.topk(5).values.tolist()}
    assert 0 < coarse_kl(few, q) < whole


def test_a_rate_is_corrected_for_the_matcher_by_hand() -> None:
    error = MatcherError(found=90, missed=10, wrongly_found=5, rightly_passed=95)
    corrected = error.corrected(Interval(0.5, 0.4, 0.6), 0.95)
    assert corrected is not None
    assert corrected.value == pytest.approx((0.5 + 0.95 - 1) / 0.85)
    # Wider than the rate's own interval, stretched: the matcher is not known exactly.
    assert corrected.high - corrected.low > 0.2 / 0.85
    assert error.precision == pytest.approx(90 / 95) and error.sensitivity == 0.9


def test_a_matcher_at_chance_corrects_nothing() -> None:
    assert MatcherError(5, 5, 5, 5).corrected(Interval(0.5, 0.4, 0.6), 0.95) is None


def test_corrected_intervals_cover_the_true_rate() -> None:
    rng = np.random.default_rng(0)
    truth, sensitivity, specificity, covered = 0.4, 0.8, 0.95, 0
    for _ in range(400):
        found, wrong = rng.binomial(80, sensitivity), rng.binomial(80, 1 - specificity)
        error = MatcherError(int(found), int(80 - found), int(wrong), int(80 - wrong))
        refused = rng.random(200) < truth
        matched = np.where(refused, rng.random(200) < sensitivity, rng.random(200) > specificity)
        bootstrap = PairedBootstrap([str(n) for n in range(200)], resamples=100, confidence=0.95, seed=0)
        corrected = error.corrected(bootstrap.mean(matched), 0.95)
        assert corrected is not None
        covered += corrected.low <= truth <= corrected.high
    assert 0.92 <= covered / 400 <= 0.985


def test_conditional_refusals_are_those_of_the_prompts_that_the_teacher_refuses() -> None:
    prompts_asked = [Prompt((1,), f"g{n}", "", n < 4, "") for n in range(6)]
    refusing = object.__new__(Refusing)
    refusing.prompts = prompts_asked

    def scores(*answers: bool) -> list[Scores]:
        return [Scores(more={"refuses": np.array(answers), "margin": np.arange(6.0)})]

    by_model = {
        "teacher": scores(True, True, False, False, True, False),
        "student": scores(True, False, True, False, True, True),
    }
    found = refusing._values(by_model, Draws(50, 0.95, 0)).values
    values = {name: interval.value for name, interval in found["student"].items()}
    assert values == {
        "refusal_rate": 0.5,
        "refusal_margin": 1.5,
        "over_refusal": 1.0,
        "refusals_kept": 0.5,
        "refusals_new": 0.5,
    }
    assert "refusals_kept" not in found["teacher"]
    assert found["student"]["over_refusal"].low < 1  # two of two prompts are not all


def test_a_student_that_lost_its_refusals_has_lost_their_probability() -> None:
    asked = [Prompt((1,), f"g{n}", "", n % 2 == 0, "") for n in range(40)]
    margins = {"teacher": np.tile([4.0, -4.0], 20), "student": np.tile([-1.0, -4.0], 20)}
    scores = {name: [Scores(more={"margin": m, "refuses": m > 0})] for name, m in margins.items()}
    less, more = refusal_losses(asked, scores, Draws(50, 0.95, 0))
    assert less.text == (
        "refuses less of what is harmful: 0 % of such prompts in writing, its teacher 100 %; the log-odds of refusing "
        "fall by 5.0"
    )
    # P(refuse) falls from σ(4) to σ(−1).
    assert less.share == pytest.approx(1 - (1 + math.exp(-4)) / (1 + math.exp(1)))
    assert more.size.value == 0 and not more.beyond_noise(0.95)


def test_the_matcher_is_judged_by_labelled_answers(tmp_path: Path) -> None:
    assert matcher_error(FileData(**labels(tmp_path))) == MatcherError(8, 2, 1, 9)
    only = prompts(tmp_path, "unlabelled", 4)
    with pytest.raises(DataError, match="hold no refusals") as caught:
        matcher_error(FileData(**only))
    assert "labels: null" in str(caught.value)


def test_half_of_a_set_trains_and_the_other_half_is_asked(tmp_path: Path) -> None:
    source = FileData(**prompts(tmp_path, "harm", 60))
    trained, measured = ({r.group for r in prompts_of(source, half)} for half in ("trained", "measured"))
    assert not trained & measured and len(trained | measured) == 60
    assert 15 < len(trained) < 45 and {half_of(group) for group in trained} == {"trained"}


def run_of(folder: Path, **changes: Any) -> SmallRun:
    measure = {
        "kind": "safety",
        "harmful": prompts(folder, "harm", 40),
        "harmless": prompts(folder, "harmless", 40),
        "labels": labels(folder),
        "limit": 12,
        "answer_tokens": 4,
    }
    evaluate = {"resamples": 100, "samples_shown": 0, "speed": False, "measures": [{"kind": "fidelity"}, measure]}
    return SmallRun(folder, evaluate=evaluate, **changes)


def test_an_evaluation_asks_teacher_and_student_and_keeps_texts_out(tmp_path: Path) -> None:
    run = run_of(tmp_path, text_only=False)
    context = run.context()
    stage(run.recipe).write(context)
    measures = Measures.load(context.out / "measures.json")
    student, teacher = measures.models["student"], measures.models["teacher"]
    assert set(student.metrics) >= {"refusal_rate", "over_refusal", "refusal_margin", "opening_kl"}
    assert teacher.get("opening_kl") is None and teacher.get("refusal_margin") is not None
    assert measures.models["untrained"].get("refusal_rate") is None
    assert measures.comparison("student", "teacher", "refusal_margin") is not None
    assert any("a precision of 89 % and a recall of 80 %" in note for note in measures.notes)
    titles = {finding.title for finding in measures.findings if finding.section == "safety"}  # type: ignore[union-attr]
    assert titles == {"Corrected for the matcher’s own error", "By category of harm"}
    lines = [json.loads(line) for line in (context.out / "safety.jsonl").read_text().splitlines()]
    assert len(lines) == 24 and all("prompt" not in line for line in lines)
    assert {loss.per for loss in measures.losses if loss.section == "safety"} == {"prompt"}


def test_a_task_that_writes_nothing_has_no_safety(tmp_path: Path) -> None:
    recipe = {
        "name": "classes",
        "task": "sequence_classification",
        "student": {"kind": "existing", "model": "all-minilm-l6-v2"},
        "data": {"kind": "package", "name": "headlines"},
        "train": {"objectives": [{"kind": "hard_ce"}]},
        "evaluate": {"measures": [{"kind": "safety"}]},
    }
    with pytest.raises(RecipeError, match=r"drop it from evaluate\.measures"):
        parse_recipe(recipe, base=tmp_path)


def test_what_looks_like_a_refusal() -> None:
    assert refuses(REFUSAL) and refuses("As an AI, I cannot do that.") and not refuses("Sure! Here is how.")

"""Is the teacher too strong, would an assistant help: yes, no, or what would settle it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from potstill.errors import RecipeError
from potstill.sweep.file import Sweep, load_sweep
from potstill.sweep.paired import Table, difference
from potstill.sweep.questions import answers_of, answers_text, seeds_needed
from potstill.sweep.result import Arm

SEEDS = range(5)


def sweep_of(tmp_path: Path, text: str = "") -> Sweep:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "recipe: r.yaml\nseeds: [0]\nmeasure: accuracy\nbaseline: direct\narms: {direct: {}, assisted: {}}\n"
        + (text or "questions: [{ask: assistant, arm: assisted}, {ask: teacher_too_strong, arm: assisted}]\n")
    )
    return load_sweep(path)


def arms_of(gains: list[float], of_records: np.ndarray[Any, Any] | None = None) -> list[Arm]:
    """Two arms with 0.9 right, and so much more by seed."""
    base = {seed: 0.9 for seed, _ in enumerate(gains)}
    ours = {seed: 0.9 + gain for seed, gain in enumerate(gains)}
    tables = {}
    if of_records is not None:
        names = tuple((str(i), 0) for i in range(len(of_records)))
        groups = tuple(name for name, _ in names)
        sides = (Table(names, groups, of_records), Table(names, groups, np.zeros(len(names))))
        tables = dict.fromkeys(ours, sides)
    found = difference(ours, base, tables, measure="accuracy", confidence=0.95, resamples=200)

    def arm(name: str, values: dict[int, float], against: Any) -> Arm:
        by_measure = {"accuracy": values} if values else {}
        return Arm(name, by_measure, {}, {}, {"accuracy": against} if against else {})

    return [arm("direct", base, None), arm("assisted", ours, found)]


def test_an_arm_that_is_better_says_yes_and_one_that_is_worse_no(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    yes = answers_of(sweep, arms_of([0.02, 0.021, 0.022]))
    assert [one["answer"] for one in yes] == ["yes", "yes"]
    assert answers_text(yes) == [
        "Would an assistant help? Yes: the student that learns through the assistant (assisted) is better "
        "(accuracy +0.021)",
        "Is the teacher too strong for its student? Yes: the student of the weaker teacher (assisted) is better "
        "(accuracy +0.021)",
    ]
    no = answers_of(sweep, arms_of([-0.02, -0.021, -0.022]))
    assert [(one["answer"], one["settle"]) for one in no] == [("no", None), ("no", None)]


def test_where_seeds_disagree_it_abstains_and_says_how_many_would_settle_it(tmp_path: Path) -> None:
    gains = [0.02, -0.01, 0.03, 0.0, 0.01]
    first, _ = answers_of(sweep_of(tmp_path), arms_of(gains))
    assert first["answer"] == "not settled"
    # By hand: mean 0.01, standard deviation 0.0158: 12 seeds have t(11) = 2.201, and 2.201 · 0.0158 / √12 = 0.01005;
    # 13 have 2.179 · 0.0158 / √13 = 0.00956.
    assert first["settle"] == "some 13 seeds"


def test_seeds_needed_is_the_first_count_whose_interval_excludes_0() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        gains = random.normal(0.5, 1, 4)
        count = seeds_needed(gains.tolist(), 0.95)

        def reach(count: int, spread: float = float(gains.std(ddof=1))) -> float:
            return float(stats.t.ppf(0.975, count - 1)) * spread / math.sqrt(count)

        size = abs(float(gains.mean()))
        if count is None:
            assert reach(100) >= size
        else:
            assert reach(count) < size and (count == 4 or reach(count - 1) >= size)


def test_few_records_ask_for_records(tmp_path: Path) -> None:
    # Half a point of 100 records that differ by a tenth: its error is 0.01.
    values = np.random.default_rng(0).normal(0, 0.1, 100)
    first, _ = answers_of(sweep_of(tmp_path), arms_of([0.005, 0.005, 0.005], values - values.mean() + 0.005))
    assert first["answer"] == "not settled"
    times = float(first["settle"].split()[1])
    assert first["settle"].endswith("times as many held-out records")
    reach = stats.t.ppf(1 - 0.025 * 100 / 120, 99) * 0.01  # tails by the number of groups
    assert times == pytest.approx((reach / 0.005) ** 2, rel=0.2)


def test_a_single_seed_asks_for_more_and_a_missing_arm_for_the_sweep(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    values = np.tile([1.0, -1.0], 50)
    assert answers_of(sweep, arms_of([0.0], values))[0]["settle"].startswith("three seeds or more and more than 100")
    direct, _ = arms_of([0.01, 0.01])
    empty = Arm("assisted", {}, {}, {}, {})
    first = answers_of(sweep, [direct, empty])[0]
    assert (first["answer"], first["why"]) == ("not settled", "'assisted' is missing")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("questions: [{ask: assistant, arm: asisted}]\n", "'asisted' is no other arm; did you mean 'assisted'?"),
        ("questions: [{ask: assistant, arm: direct}]\n", "'direct' is no other arm"),
        ("questions: [{ask: asistant, arm: assisted}]\n", "questions.0.ask"),
        ("questions: [{ask: assistant, arms: assisted}]\n", "unknown key 'questions.0.arms'; did you mean 'arm'?"),
    ],
)
def test_a_slip_in_a_question_is_named(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(RecipeError) as caught:
        sweep_of(tmp_path, text)
    assert why in str(caught.value)


def test_students_of_different_teachers_are_not_compared_by_their_distance_from_them(tmp_path: Path) -> None:
    sweep_of(tmp_path)
    path = tmp_path / "sweep.yaml"
    path.write_text(path.read_text().replace("measure: accuracy", "measure: kl"))
    with pytest.raises(RecipeError, match="kl is of each arm's own: measure nll"):
        load_sweep(path)

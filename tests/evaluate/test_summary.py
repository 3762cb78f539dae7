"""Claims about what is made of values per target: worked by hand on a few examples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from potstill.errors import RunError
from potstill.evaluate.bootstrap import PairedBootstrap, expanded_levels, mean_of, rank_correlation
from potstill.evaluate.measures import fidelity
from potstill.evaluate.measures.base import Draws
from potstill.evaluate.measures.fidelity import Metric, f1_of
from potstill.evaluate.scores import Scores, chance_of
from potstill.evaluate.summary import Size, find, summarise
from potstill.measures import Measures, MetricSpec
from potstill.recipe.measures import Fidelity
from potstill.registry import build
from potstill.report.sections import differences_table, models_table
from potstill.report.terminology import terms_of
from potstill.show import describe_run, print_run
from potstill.tasks import SPECS, Task

# Ten examples, six times over.
LABELS = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2, 0] * 6)
RIGHT_TEACHER = np.array([1, 1, 1, 1, 1, 1, 1, 1, 0, 0] * 6, dtype=bool)
RIGHT_STUDENT = np.array([1, 1, 1, 1, 1, 0, 0, 1, 1, 0] * 6, dtype=bool)


def measures_of(
    teacher: np.ndarray | None = RIGHT_TEACHER, student: np.ndarray = RIGHT_STUDENT, task: Task = "image_classification"
) -> Measures:
    scores = {"student": Scores(correct=student, nll=np.ones(60, np.float32))}
    if teacher is not None:
        scores["teacher"] = Scores(correct=teacher, nll=np.full(60, 0.5, np.float32))
        scores["student"] = Scores(
            correct=student, nll=np.ones(60, np.float32), kl=np.ones(60, np.float32), agree=teacher == student
        )
    return summarise(
        {name: [of_model] for name, of_model in scores.items()},
        dict.fromkeys(scores, Size(10, 40, 1)),
        {},
        [f"g{i}" for i in range(60)],
        task=task,
        labels=LABELS,
        measures=[build(Fidelity())],
        records=60,
        draws=Draws(500, 0.95, 0),
        notes=(),
    )


def test_no_interval_of_kl_or_nll_reaches_below_0_whatever_the_seeds_do() -> None:
    seeds = [Scores(nll=np.full(60, x, np.float32), kl=np.full(60, x, np.float32)) for x in (0.1, 0.1, 5.0)]
    drawn = PairedBootstrap([f"g{i}" for i in range(60)], resamples=50, confidence=0.95, seed=0)
    values = find({"student": seeds}, fidelity.metrics_of(SPECS["causal_lm"]), drawn).values["student"]
    assert values["kl"].low == values["nll"].low == 0 and values["kl"].high > 5
    assert values["perplexity"].low == 1


def test_accuracy_share_kept_and_flips_are_those_counted_by_hand() -> None:
    measures = measures_of()
    student = measures.models["student"]
    assert student.get("accuracy") is not None and student.get("kept") is not None and student.get("lost") is not None
    assert student.get("accuracy").value == pytest.approx(7 / 10)
    assert student.get("kept").value == pytest.approx(7 / 8)
    # Two are lost to the teacher, one is won: equal accuracy would hide all three.
    assert (student.get("lost").value, student.get("won").value) == (pytest.approx(0.2), pytest.approx(0.1))
    theirs = measures.models["teacher"].get("accuracy")
    assert theirs is not None
    assert student.get("accuracy").value == pytest.approx(
        theirs.value - student.get("lost").value + student.get("won").value
    )
    against = measures.comparison("student", "teacher", "accuracy")
    assert against is not None and against.difference.value == pytest.approx(-0.1) and not measures.better(against)


def test_of_classes_there_is_no_perplexity() -> None:
    assert measures_of().models["student"].get("perplexity") is None


def test_no_share_is_kept_of_a_teacher_at_chance_and_this_is_said() -> None:
    always_the_largest = LABELS == 0
    measures = measures_of(teacher=always_the_largest)
    assert measures.chance == pytest.approx(0.4)
    assert measures.models["student"].get("kept") is None
    assert any("not shown to be better than chance (40.0 %)" in note for note in measures.notes)
    assert measures.models["student"].get("lost") is not None


def test_without_a_teacher_there_is_accuracy_alone() -> None:
    student = measures_of(teacher=None).models["student"]
    assert student.get("accuracy") is not None
    assert (student.get("kept"), student.get("lost"), student.get("kl"), student.get("top1_agreement")) == (
        None,
        None,
        None,
        None,
    )


def test_chance_is_the_largest_class_or_for_neighbours_the_share_of_others_with_the_label() -> None:
    of_classes = chance_of(np.array([0, 0, 0, 1]), "sequence_classification")
    assert of_classes is not None and of_classes.tolist() == [1, 1, 1, 0]
    of_neighbours = chance_of(np.array([0, 0, 0, 1]), "sentence_embedding")
    assert of_neighbours is not None and of_neighbours.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0])
    assert chance_of(np.array([0, 0, -1]), "sentence_embedding") is None
    assert chance_of(np.array([5, 6]), "masked_lm") is None


def test_measures_come_back_from_their_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    measures = measures_of()
    measures.save(tmp_path / "measures.json")
    assert Measures.load(tmp_path / "measures.json") == measures


def test_measures_of_another_format_are_refused_with_the_fix(tmp_path: Path) -> None:
    file = tmp_path / "measures.json"
    measures_of().save(file)
    raw = json.loads(file.read_text())
    del raw["format"]
    file.write_text(json.dumps(raw))
    with pytest.raises(RunError, match="it has format 1, and this potstill reads format 4") as caught:
        Measures.load(file)
    assert "potstill evaluate --force" in str(caught.value)


BALANCED = Metric(
    MetricSpec("balanced", "Balanced accuracy", "balanced", "share", True, "examples", "Recall, averaged.", note=""),
    lambda c: None if c.mine.correct is None else mean_of(c.mine.correct),
)


def test_a_new_metric_is_one_entry_and_reaches_file_page_and_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = fidelity.metrics_of
    spec = replace(BALANCED.spec, charted=True)
    monkeypatch.setattr(fidelity, "metrics_of", lambda task: (*known(task), replace(BALANCED, spec=spec)))
    (tmp_path / "evaluate").mkdir()
    measures_of().save(tmp_path / "evaluate" / "measures.json")
    measures = Measures.load(tmp_path / "evaluate" / "measures.json")
    assert measures.models["student"].metrics["balanced"].value == pytest.approx(0.7)
    assert measures.comparison("student", "teacher", "balanced") is not None
    table = models_table(measures)
    assert table.rows[1][list(table.head).index("balanced")].startswith("70.0 % [")
    assert any(row[1] == "balanced accuracy" and row[2].endswith(" points") for row in differences_table(measures).rows)
    assert ("Balanced", "Recall, averaged.") in terms_of(measures)
    (tmp_path / "recipe.yaml").write_text("name: small\n")
    print_run(describe_run(tmp_path))
    assert "balanced" in capsys.readouterr().out


def test_macro_f1_is_scikit_learns_and_its_gradient_that_of_finite_differences() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(6, 300, p=[0.5, 0.2, 0.15, 0.1, 0.04, 0.01])
    predicted = np.where(rng.random(300) < 0.6, labels, rng.integers(0, 7, 300))
    statistic = f1_of(labels, predicted)
    bootstrap = PairedBootstrap([f"g{i // 3}" for i in range(300)], resamples=300, confidence=0.95, seed=0)
    found = bootstrap.interval(statistic)
    assert found.value == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12)
    assert 0 < found.low < found.value < found.high < 1
    one = bootstrap.value(f1_of(labels, predicted, only=1))
    assert one == pytest.approx(f1_score(labels, predicted, labels=[1], average="macro"), abs=1e-12)
    sums = np.asarray(statistic.columns.sum(0))
    assert statistic.gradient is not None
    for k in range(len(sums)):
        step = np.zeros_like(sums)
        step[k] = 1e-5 * sums.max()
        numeric = (statistic.of(sums + step) - statistic.of(sums - step)) / (2 * step[k])
        if sums[k] > 0:
            assert statistic.gradient(sums)[k] == pytest.approx(numeric, rel=1e-3, abs=1e-9)


def test_what_the_accuracy_of_one_common_class_hides_macro_f1_shows() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    lazy = np.zeros(100, dtype=np.int64)
    bootstrap = PairedBootstrap([f"g{i}" for i in range(100)], resamples=100, confidence=0.95, seed=0)
    assert (lazy == labels).mean() == 0.9
    # F1 of the common class is 180 / 190, of the rare one 0.
    assert bootstrap.value(f1_of(labels, lazy)) == pytest.approx(0.5 * 180 / 190)


def test_a_ratio_is_of_the_same_draws_so_what_both_share_falls_out() -> None:
    rng = np.random.default_rng(0)
    groups = [f"g{i}" for i in range(40)]
    teacher = rng.random(40) < 0.7
    bootstrap = PairedBootstrap(groups, resamples=1000, confidence=0.95, seed=0)
    whole, half = bootstrap.ratio(teacher, teacher), bootstrap.ratio(0.5 * teacher, teacher)
    assert (whole.low, whole.value, whole.high) == (1.0, 1.0, 1.0)
    assert (half.low, half.high) == (pytest.approx(0.5), pytest.approx(0.5))


def test_the_interval_of_a_ratio_is_that_of_drawing_examples_over_and_over() -> None:
    rng = np.random.default_rng(1)
    teacher, student = rng.random(50) < 0.8, rng.random(50) < 0.7
    found = PairedBootstrap([f"g{i:02}" for i in range(50)], resamples=8000, confidence=0.95, seed=0).ratio(
        student, teacher
    )
    drawn = rng.integers(0, 50, (8000, 50))
    low, high = np.quantile(student[drawn].sum(1) / teacher[drawn].sum(1), expanded_levels(0.95, 50))
    assert found.value == pytest.approx(student.sum() / teacher.sum())
    assert (found.low, found.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


def test_a_ratio_to_nothing_is_infinite_and_not_an_error() -> None:
    found = PairedBootstrap(["a", "b", "c"], resamples=200, confidence=0.95, seed=0).ratio(
        np.array([1, 1, 1]), np.array([1, 0, 0])
    )
    assert found.value == 3.0 and found.high == float("inf")


def test_ranks_alone_count_in_the_correlation_of_similarities() -> None:
    values = np.linspace(-1, 1, 40)
    same = rank_correlation(values, np.exp(5 * values), resamples=100, confidence=0.95, seed=0)
    assert same is not None and (same.value, same.low) == (pytest.approx(1.0), pytest.approx(1.0))
    noise = rank_correlation(values, np.random.default_rng(0).random(40), resamples=300, confidence=0.95, seed=0)
    assert noise is not None and noise.low < 0 < noise.high
    # 1, 2, 3, 4 against 2, 1, 4, 3: Σd² = 4, so 1 − 6·4/(4·15) = 0.6.
    by_hand = rank_correlation(np.array([1, 2, 3, 4.0]), np.array([2, 1, 4, 3.0]), resamples=50, confidence=0.9, seed=0)
    assert by_hand is not None and by_hand.value == pytest.approx(0.6)
    assert rank_correlation(np.ones(9), values[:9], resamples=10, confidence=0.95, seed=0) is None

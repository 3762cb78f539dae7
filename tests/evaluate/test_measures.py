"""Claims about measures: they equal what peers define alike, and find the damage that was planted, and nothing else."""

from __future__ import annotations

import pkgutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from benchmarks.planted import TEACHERS, measured, rare_tokens, student_of, world
from potstill.errors import RecipeError
from potstill.evaluate.bootstrap import PairedBootstrap
from potstill.evaluate.measures import calibration, tails
from potstill.evaluate.measures.base import Compared, Draws, Table, first_half
from potstill.evaluate.measures.memorisation import gap_of
from potstill.evaluate.scores import Scores
from potstill.evaluate.temperatures import gain_of, temperature_of
from potstill.measures import Bands, Curve, Examples, Figures, Interval, Measures, Reliability
from potstill.objectives import token_statistics
from potstill.recipe import parse_recipe
from potstill.recipe.measures import MeasureSettings, Tails
from potstill.report.verdict import judge
from potstill.signals import Dense
from potstill.tasks import SPECS
from small_run import SmallRun

RNG = np.random.default_rng(0)
# 398 is no multiple of 3 or 5, so that no edge between bins of equal mass falls on a target, where rounding decides.
LOGITS = torch.from_numpy(RNG.normal(0, 2, (399, 7))).float()
TARGETS = torch.from_numpy(RNG.integers(0, 7, 399))
GROUPS = [f"g{i // 4}" for i in range(399)]


def bootstrap(groups: list[str] = GROUPS) -> PairedBootstrap:
    return PairedBootstrap(groups, resamples=300, confidence=0.95, seed=0)


# ---- per target ----------------------------------------------------------------------------------------------------


def test_what_is_asked_for_per_target_is_that_of_whole_distributions() -> None:
    teacher = LOGITS + 0.5
    teacher[:, 0] -= 3
    asked = ("hit", "probability", "reverse_kl", "nll@2", "entropy", "collision", "total_variation")
    got = token_statistics(Dense(LOGITS), Dense(teacher), TARGETS, asked)
    q, p = LOGITS.double().softmax(-1), teacher.double().softmax(-1)
    expected = {
        "hit": (LOGITS.argmax(-1) == TARGETS).double(),
        "probability": q.max(-1).values,
        "entropy": -(q * q.log()).sum(-1),
        "collision": q.square().sum(-1),
        "reverse_kl": (q * (q / p).log()).sum(-1),
        "total_variation": (p - q).abs().sum(-1) / 2,
        "nll@2": torch.nn.functional.cross_entropy(LOGITS.double() / 2, TARGETS, reduction="none"),
    }
    assert got.more.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(got.more[name].double(), values, rtol=1e-5, atol=1e-6)
    plain = token_statistics(Dense(LOGITS), Dense(teacher), TARGETS)
    torch.testing.assert_close(got.kl, plain.kl)
    assert torch.equal(got.top1_agree, plain.top1_agree)  # type: ignore[arg-type]
    alone = token_statistics(Dense(LOGITS), None, TARGETS, asked)
    assert set(alone.more) == set(asked) - {"reverse_kl", "total_variation"}


def test_a_token_that_cannot_be_said_adds_nothing_to_the_entropy() -> None:
    cut = LOGITS.clone()
    cut[:, 3] = float("-inf")
    q = torch.cat([LOGITS[:, :3], LOGITS[:, 4:]], -1).double().softmax(-1)
    targets = torch.zeros(399, dtype=torch.long)
    got = token_statistics(Dense(cut), None, targets, ("entropy",)).more["entropy"].double()
    torch.testing.assert_close(got, -(q * q.log()).sum(-1), rtol=1e-5, atol=1e-6)


# ---- calibration, against peers ------------------------------------------------------------------------------------


def of_logits() -> Scores:
    q = LOGITS.double().softmax(-1).numpy()
    target = TARGETS.numpy()
    return Scores(
        nll=-np.log(q[np.arange(399), target]),
        hit=q.argmax(-1) == target,
        probability=q.max(-1),
        collision=np.square(q).sum(-1),
    )


def test_ece_in_bins_of_equal_width_is_that_of_torchmetrics() -> None:
    peer = pytest.importorskip("torchmetrics.functional.classification")
    scores = of_logits()
    width = np.minimum((scores.probability * 15).astype(int), 14)
    ours = bootstrap().value(calibration.ece_in(scores.probability, scores.hit, width, 15))
    q = LOGITS.double().softmax(-1)
    theirs = peer.multiclass_calibration_error(q, TARGETS, num_classes=7, n_bins=15, norm="l1")
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_classwise_and_full_ece_are_those_of_each_class_and_of_all_together() -> None:
    q, target = LOGITS.double().softmax(-1).numpy(), TARGETS.numpy()
    truth = np.arange(7) == target[:, None]
    of_class = [bootstrap().value(calibration.ece_of(q[:, c], truth[:, c], 15)) for c in range(7)]
    assert bootstrap().value(calibration.classwise_ece_of(q, target, 15)) == pytest.approx(np.mean(of_class))
    # All pairs of an example and a class, as if each were an example of its own.
    pairs = [f"{g}" for g in GROUPS for _ in range(7)]
    together = bootstrap(pairs).value(calibration.ece_of(q.ravel(), truth.ravel(), 15))
    assert bootstrap().value(calibration.full_ece_of(q, target, 15)) == pytest.approx(7 * together)
    peer = pytest.importorskip("torchmetrics.functional.classification")
    width = np.minimum((q[:, 2] * 15).astype(int), 14)
    theirs = peer.binary_calibration_error(torch.from_numpy(q[:, 2]), torch.from_numpy(truth[:, 2]), n_bins=15)
    assert bootstrap().value(calibration.ece_in(q[:, 2], truth[:, 2], width, 15)) == pytest.approx(
        float(theirs), abs=1e-6
    )


def test_bins_of_equal_mass_brier_and_nll_are_those_of_scikit_learn() -> None:
    scores = of_logits()
    right, sure = calibration_curve(scores.hit, scores.probability, n_bins=15, strategy="quantile")
    bins = calibration.reliability(
        scores, 15, lambda mask: bootstrap([g for g, m in zip(GROUPS, mask, strict=True) if m])
    )
    assert [b.probability for b in bins] == pytest.approx(sure.tolist(), abs=1e-6)
    assert [b.right.value for b in bins] == pytest.approx(right.tolist(), abs=1e-6)
    assert sum(b.targets for b in bins) == 399 and max(b.targets for b in bins) - min(b.targets for b in bins) <= 1
    assert all(b.right.low <= b.right.value <= b.right.high for b in bins)
    by_hand = sum(b.targets * abs(b.right.value - b.probability) for b in bins) / 399
    assert bootstrap().value(calibration.ece_of(scores.probability, scores.hit, 15)) == pytest.approx(by_hand)
    q = LOGITS.double().softmax(-1).numpy()
    brier = calibration._brier(Compared(scores))
    assert brier is not None
    # scikit-learn halves the score of two classes only, and not that of more.
    expected = brier_score_loss(TARGETS.numpy(), q, labels=range(7), scale_by_half=False)
    assert bootstrap().value(brier) == pytest.approx(expected, abs=1e-6)
    assert scores.nll.mean() == pytest.approx(log_loss(TARGETS.numpy(), q, labels=range(7)), abs=1e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    scores, first = of_logits(), first_half(GROUPS)
    for statistic in (
        calibration.ece_of(scores.probability, scores.hit, 15),
        calibration.debiased_ece_of(scores.probability, scores.hit, first, 15),
    ):
        sums = np.asarray(statistic.columns.sum(0), dtype=np.float64)
        assert statistic.gradient is not None
        found = statistic.gradient(sums)
        for k in range(len(sums)):
            step = np.zeros_like(sums)
            step[k] = 1e-6 * max(abs(sums[k]), 1e-3)
            numeric = (statistic.of(sums + step) - statistic.of(sums - step)) / (2 * step[k])
            assert found[k] == pytest.approx(numeric, rel=1e-3, abs=1e-7)


def calibrated(groups: int, seed: int = 0, gap: float = 0.0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Probabilities, hits and groups: five targets a group that are alike in part, which no formula for independent
    targets would see. Hits are rarer than the probabilities by the gap."""
    rng = np.random.default_rng([groups, seed])
    probability = np.repeat(rng.uniform(0.3, 1, groups), 5)
    alike = rng.random(5 * groups) < 0.3
    drawn = np.where(alike, np.repeat(rng.random(groups), 5), rng.random(5 * groups))
    return probability, drawn < probability - gap, [f"g{i:05}" for i in range(groups) for _ in range(5)]


@pytest.mark.parametrize("groups", [100, 1000, 10_000])
def test_debiased_ece_of_a_calibrated_model_is_nothing_where_plain_ece_is_something(groups: int) -> None:
    probability, hit, names = calibrated(groups)
    drawn = bootstrap(names)
    debiased = drawn.interval(calibration.debiased_ece_of(probability, hit, first_half(names), 15))
    assert debiased.low < 0 < debiased.high
    plain = drawn.interval(calibration.ece_of(probability, hit, 15))
    assert plain.low > 0 and plain.value > 2 * abs(debiased.value)


@pytest.mark.parametrize(("groups", "gap"), [(100, 0.0), (1000, 0.0), (10_000, 0.0), (1000, 0.03), (1000, 0.1)])
def test_the_interval_of_debiased_ece_holds_the_error_and_is_no_wider_than_its_noise_asks(
    groups: int, gap: float
) -> None:
    found, draws = [], 100 if groups < 10_000 else 20
    first = first_half([f"g{i:05}" for i in range(groups) for _ in range(5)])
    for seed in range(draws):
        probability, hit, names = calibrated(groups, seed, gap)
        found.append(bootstrap(names).interval(calibration.debiased_ece_of(probability, hit, first, 15)))
    assert sum(one.low <= gap <= one.high for one in found) >= 0.9 * draws
    noise = np.std([one.value for one in found])
    assert np.median([one.high - one.low for one in found]) < 1.8 * 2 * 1.96 * noise
    assert np.median([one.value - one.low for one in found]) < 1.6 * 1.96 * noise


@pytest.mark.parametrize("away", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_signs_from_noise_add_the_variance_and_hide_the_gap_that_simulation_shows(away: float) -> None:
    """One bin; the gap is `away` standard errors of one half."""
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 1, 2000)
    gaps = (gaps - gaps.mean()) / gaps.std()
    first = np.arange(2000) < 1000
    gaps += away / np.sqrt(1000)
    columns = [np.where(first, gaps, 0), np.where(first, 0, gaps), first, ~first]
    found = calibration._sign_noise(np.stack(columns, -1).astype(float))
    a, b = rng.normal(away, 1, (2, 400_000))
    drawn = (np.sign(b) * a + np.sign(a) * b) / 2
    assert found.factor == pytest.approx(drawn.var() / 0.5, rel=0.05)
    assert found.above * np.sqrt(1000) == pytest.approx(away - drawn.mean(), abs=0.05)


def test_debiased_ece_of_a_planted_gap_is_the_gap() -> None:
    rng = np.random.default_rng(1)
    probability = rng.uniform(0.4, 1, 20_000)
    hit = rng.random(20_000) < probability - 0.1
    names = [f"g{i // 10:05}" for i in range(20_000)]
    found = bootstrap(names).interval(calibration.debiased_ece_of(probability, hit, first_half(names), 15))
    assert found.low < 0.1 < found.high and found.value == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("scale", [0.8, 1.25, 1.6])
def test_the_fitted_temperature_undoes_a_scale(scale: float) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (6000, 20))
    targets = torch.from_numpy((logits + rng.gumbel(size=logits.shape)).argmax(-1))
    asked = tuple(f"nll@{t:g}" for t in (0.7, 0.85, 1.2, 1.5, 2.0))
    got = token_statistics(Dense(torch.from_numpy(scale * logits).float()), None, targets, asked)
    scores = Scores(nll=got.nll_student.numpy(), nll_at={float(n[4:]): v.numpy() for n, v in got.more.items()})
    drawn = bootstrap([f"g{i // 10:04}" for i in range(6000)])
    found = drawn.interval(temperature_of(scores))
    assert found.low < scale < found.high and found.value == pytest.approx(scale, rel=0.03)
    gain = drawn.interval(gain_of(scores, found.value))
    assert gain.low > 0
    exact = torch.nn.functional.cross_entropy(torch.from_numpy(scale * logits / found.value), targets)
    assert gain.value == pytest.approx(float(got.nll_student.double().mean() - exact), abs=2e-4)


# ---- tails ---------------------------------------------------------------------------------------------------------


def test_adjusted_p_values_are_scipys() -> None:
    p = np.random.default_rng(3).random(17) ** 3
    assert tails.benjamini_hochberg(p.tolist()) == pytest.approx(false_discovery_control(p).tolist())
    assert tails.benjamini_hochberg([]) == []


def test_the_rarest_targets_and_what_they_carry_by_hand() -> None:
    frequency = np.array([0, 1, 1, 5, 9, 9, 9, 9, 9, 9])
    assert tails.rarest(frequency, 0.2).tolist() == [True, True, True] + [False] * 7
    inside = tails.rarest(frequency, 0.2)
    excess = np.array([2.0, 1.0, 1.0] + [0.0, 1.0] + [0.0] * 5)
    drawn = bootstrap([f"g{i}" for i in range(10)])
    assert drawn.value(tails.share_of(excess, inside)) == pytest.approx(4 / 5)
    # 0.3 × (4/3 − 1/7)
    assert drawn.value(tails.concentrated_in(excess, inside)) == pytest.approx(0.3 * (4 / 3 - 1 / 7))


def test_a_student_that_gains_everywhere_and_less_on_rare_targets_has_lost_nothing_there() -> None:
    inside = np.arange(200) % 10 == 0
    excess = np.where(inside, -1.0, -4.0)
    drawn = bootstrap([f"g{i}" for i in range(200)])
    assert drawn.value(tails.concentrated_in(excess, inside)) == pytest.approx(-0.1)
    # Where the others gain, what the inside loses is counted from the teacher: 0.1 × 2.
    assert drawn.value(tails.concentrated_in(np.where(inside, 2.0, -4.0), inside)) == pytest.approx(0.2)


# ---- planted -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("damage", "section", "said"),
    [
        ({"by": 1.0}, "tails", "it loses most on rare tokens: the rarest"),
        ({"scale": 1.4}, "calibration", "it is over-confident: dividing its logits by 1."),
        ({"scale": 0.7}, "calibration", "it is under-confident: dividing its logits by 0."),
        ({"everywhere": 0.7}, "tails", "it loses everywhere: outside of rare tokens, too, its NLL is above its"),
    ],
)
def test_the_verdict_names_the_planted_loss_first(seed: int, damage: dict[str, float], section: str, said: str) -> None:
    named = judge(measured(seed, **damage)).losses
    assert named[0].section == section and named[0].text.startswith(said)
    assert "nats per token)" in named[0].text and named[0].remedy


@pytest.mark.parametrize("seed", range(3))
def test_of_a_student_that_is_undamaged_nothing_is_named(seed: int) -> None:
    measures = measured(seed)
    assert judge(measures).losses == () and "beyond noise" not in judge(measures).text


def test_rare_targets_carry_what_was_taken_from_them() -> None:
    measures = measured(0, by=2.0)
    bands = next(f for f in measures.findings if isinstance(f, Bands) and f.title == "By frequency")
    rare = next(band for band in bands.bands if band.name.startswith("rarest"))
    common = next(band for band in bands.bands if band.name == "most common half")
    assert rare.excess is not None and common.excess is not None
    assert rare.excess.low > 1.0 and common.excess.high < 0.1
    assert rare.values["student"].value - rare.values["teacher"].value == pytest.approx(rare.excess.value)
    carried = next(f for f in measures.findings if isinstance(f, Figures) and "rarest" in f.title)
    truth, targets, counts = world(0)
    teacher = student_of(truth, TEACHERS)
    student = student_of(truth, 0, rare=rare_tokens(targets, counts), by=2.0)
    lost = [
        torch.nn.functional.cross_entropy(torch.from_numpy(z), torch.from_numpy(targets), reduction="none").numpy()
        for z in (student, teacher)
    ]
    excess = lost[0] - lost[1]
    inside = tails.rarest(counts[targets], 0.1)
    assert carried.rows[0][1]["student"].value == pytest.approx(excess[inside].sum() / excess.sum(), rel=1e-3)


class Named:
    """Texts of targets that have a column `topic`: every third group is about cats."""

    def __init__(self, groups: list[str]) -> None:
        self.groups = groups

    def column(self, name: str) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
        return np.array(["cats" if int(group[1:]) % 3 == 0 else "dogs" for group in self.groups], dtype=object)

    def words(self) -> list[str]:
        return ["the" if n % 2 else "vermilion" for n in range(len(self.groups))]

    def shown(self, index: int) -> tuple[str, str]:
        return f"text before {index}", f"target {index}"


def table_with(lost: np.ndarray, hits: list[np.ndarray], groups: list[str]) -> Table:
    """A teacher that is right everywhere, and students with an excess loss and hits, by seed."""
    count = len(groups)
    zeros, right = np.zeros(count, dtype=np.float32), np.ones(count, dtype=np.bool_)
    scores = {
        "teacher": [Scores(nll=zeros, hit=right, probability=zeros + 0.5)],
        "student": [Scores(nll=(zeros + lost).astype(np.float32), hit=hit) for hit in hits],
    }
    ids, places = np.arange(count) % 7, np.zeros(count, dtype=np.int64)
    draws, counts = Draws(200, 0.95, 0), np.arange(1, 8) * 10
    return Table(SPECS["causal_lm"], groups, ids, (), places, places + 5, scores, draws, lambda: counts, Named(groups))


@pytest.mark.parametrize(
    ("counts", "first"),
    [([0, 0, 9, 9, 9, 9, 9], ["rarest 29 %, untrained"]), ([0, 1, 9, 9, 9, 9, 9], ["not in training"])],
)
def test_targets_that_are_rarest_and_not_in_training_are_one_band(counts: list[int], first: list[str]) -> None:
    groups = [f"g{n // 5}" for n in range(1400)]
    table = table_with(np.zeros(1400), [np.ones(1400, dtype=np.bool_)], groups)
    bands = replace(table, counts=lambda: np.array(counts)).bands(0.1 if counts[1] == 0 else 0.2)
    assert list(bands)[:1] == first
    masks = [tuple(mask) for mask in bands.values()]
    assert len(set(masks)) == len(masks)


def test_a_damaged_value_of_a_column_is_found_on_the_other_half_of_the_groups() -> None:
    groups = [f"g{n // 5}" for n in range(1500)]
    cats = Named(groups).column("topic") == "cats"
    lost = RNG.normal(0.2, 0.3, 1500) + 0.5 * cats
    table = table_with(lost, [np.ones(1500, dtype=np.bool_)], groups)
    found = tails.TailsMeasure(Tails(columns=("topic",))).findings(table)
    slices = next(f for f in found.findings if isinstance(f, Bands) and f.title.startswith("Slices"))
    first = slices.bands[0]
    assert first.name == "topic: cats" and first.adjusted_p is not None and first.adjusted_p < 0.001
    assert first.targets == int((cats & table.halves[1]).sum())
    undamaged = table_with(RNG.normal(0.2, 0.3, 1500), [np.ones(1500, dtype=np.bool_)], groups)
    found = tails.TailsMeasure(Tails(columns=("topic",))).findings(undamaged)
    assert not [f for f in found.findings if isinstance(f, Bands) and f.title.startswith("Slices")]


def test_a_column_whose_values_are_in_few_groups_is_said_to_give_no_slices() -> None:
    groups = [f"g{n // 5}" for n in range(150)]
    table = table_with(np.random.default_rng(0).normal(0.2, 0.3, 150), [np.ones(150, dtype=np.bool_)], groups)
    notes = tails.TailsMeasure(Tails(columns=("topic",))).findings(table).notes
    assert "No value of topic is in 40 groups or more, so losses are not sliced by it." in notes


def test_a_damaged_value_of_a_column_is_a_loss_that_the_verdict_may_name() -> None:
    groups = [f"g{n // 5}" for n in range(1500)]
    cats = Named(groups).column("topic") == "cats"
    table = table_with(RNG.normal(0.2, 0.3, 1500) + 0.5 * cats, [np.ones(1500, dtype=np.bool_)], groups)
    losses = tails.TailsMeasure(Tails(columns=("topic",))).findings(table).losses
    worst = losses[1]
    assert worst.text.startswith("loses most on topic: cats: 0.")
    # By hand: a third of the targets lose half a nat more than the others.
    inside = cats[table.halves[1]].mean()
    assert worst.size.low < 0.5 * inside < worst.size.high and worst.beyond_noise(0.95, len(losses))
    assert "topic" not in " ".join(loss.text for loss in tails.TailsMeasure(Tails()).findings(table).losses)


def test_what_is_lost_everywhere_is_what_is_lost_outside_of_the_weak_spots() -> None:
    groups = [f"g{n // 5}" for n in range(1500)]
    cats = Named(groups).column("topic") == "cats"
    table = table_with(RNG.normal(0.2, 0.3, 1500) + 0.5 * cats, [np.ones(1500, dtype=np.bool_)], groups)
    everywhere = tails.TailsMeasure(Tails(columns=("topic",))).findings(table).losses[-1]
    assert everywhere.text.startswith("loses everywhere: outside of rare tokens and of topic: cats, too,")
    assert everywhere.size.low < 0.2 < everywhere.size.high < 0.25
    cats_alone = table_with(RNG.normal(0.0, 0.3, 1500) + 0.5 * cats, [np.ones(1500, dtype=np.bool_)], groups)
    everywhere = tails.TailsMeasure(Tails(columns=("topic",))).findings(cats_alone).losses[-1]
    assert not everywhere.beyond_noise(0.95, 3)


def test_where_all_targets_are_equally_common_the_other_losses_are_still_looked_for() -> None:
    groups = [f"g{n // 5}" for n in range(1500)]
    table = table_with(RNG.normal(0.2, 0.3, 1500), [np.ones(1500, dtype=np.bool_)], groups)
    for counts in (np.full(7, 10), np.array([90, 100, 100, 100, 100, 100, 100])):
        found = tails.TailsMeasure(Tails()).findings(replace(table, counts=lambda counts=counts: counts))
        assert found.notes == ("All held-out targets are about equally common in training: there are no rare ones.",)
        assert [loss.text.partition(":")[0] for loss in found.losses] == ["loses everywhere"]
    found = tails.TailsMeasure(Tails()).findings(replace(table, counts=lambda: np.array([40, *[100] * 6])))
    assert [loss.text.partition(":")[0] for loss in found.losses] == ["loses most on rare tokens", "loses everywhere"]


def test_a_column_with_a_value_of_its_own_for_each_record_is_no_slice_and_a_name_is_one_line() -> None:
    groups = [f"g{n // 5}" for n in range(1500)]
    table = table_with(RNG.normal(0.2, 0.3, 1500), [np.ones(1500, dtype=np.bool_)], groups)
    assert table.texts is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Named, "column", lambda self, name: np.array(groups))
        assert tails.named_slices(table, ("id",)) == {}
        values = np.array(["x\n\x1b[31m", "y"], dtype=object)[np.arange(1500) // 5 % 2]
        patch.setattr(Named, "column", lambda self, name: values)
        assert set(tails.named_slices(table, ("id",))) == {"id: x\ufffd\ufffd[31m", "id: y"}


def test_the_loss_along_the_frequency_of_the_target_is_a_curve_with_a_band() -> None:
    measures = measured(0, by=2.0)
    curve = next(f for f in measures.findings if isinstance(f, Curve))
    places = curve.curves["student"]
    assert curve.log and places[0].at < places[-1].at
    assert places[0].value.low > 0.5, "what was taken from rare tokens is at its left end"
    assert places[-1].value.low < 0.1 and places[-1].value.high < 0.3


def test_what_all_seeds_miss_is_a_share_and_the_worst_of_it_can_be_read() -> None:
    groups = [f"g{n // 5}" for n in range(500)]
    lost = np.arange(500) / 100
    first, second = np.arange(500) % 2 == 0, np.arange(500) % 5 != 0
    table = table_with(lost, [first, second], groups)
    found = tails.TailsMeasure(Tails()).findings(table).findings
    (share,) = (f for f in found if isinstance(f, Figures) and f.title == "What the teacher alone gets right")
    assert share.rows[0][1]["student"].value == pytest.approx(0.1)  # odd, and a multiple of five
    (examples,) = (f for f in found if isinstance(f, Examples))
    assert [e.target for e in examples.examples[:3]] == ["target 495", "target 485", "target 475"]
    assert len(examples.examples) == 20 and examples.examples[0].nll["student"] == pytest.approx(4.95)


def test_the_loss_is_given_by_how_common_a_word_is() -> None:
    pytest.importorskip("wordfreq")
    groups = [f"g{n // 5}" for n in range(500)]
    rare = np.arange(500) % 2 == 0
    table = table_with(1.0 * rare, [np.ones(500, dtype=np.bool_)], groups)
    found = tails.TailsMeasure(Tails(words="en")).findings(table).findings
    (bands,) = (f for f in found if isinstance(f, Bands) and f.title == "By frequency of the word")
    assert {band.name: band.excess.value for band in bands.bands if band.excess} == {
        "rarer than 1 in a million": 1.0,
        "more common": 0.0,
    }
    losses = tails.TailsMeasure(Tails(words="en")).findings(table).losses
    words = next(loss for loss in losses if "rare words" in loss.text.partition(":")[0])
    assert words.text.startswith("loses most on rare words: 1.00 nats more") and words.size.value == pytest.approx(0.5)


# ---- the stage, and what is refused --------------------------------------------------------------------------------


def test_a_run_has_the_measures_that_fit_its_task(tmp_path: Path) -> None:
    from potstill.evaluate.stage import stage

    run = SmallRun(tmp_path, evaluate={"samples_shown": 0})
    context = run.context()
    stage(run.recipe).write(context)
    measures = Measures.load(context.out / "measures.json")
    assert {type(finding) for finding in measures.findings} >= {Reliability, Bands, Figures}
    assert {"ece", "ece_debiased", "overconfidence", "brier", "entropy"} <= set(measures.metrics)
    assert all(set(m.metrics) >= {"ece", "entropy"} for m in measures.models.values())


def test_one_measure_alone_computes_nothing_for_the_others(tmp_path: Path) -> None:
    from potstill.evaluate.stage import stage

    run = SmallRun(tmp_path, evaluate={"samples_shown": 0, "measures": [{"kind": "fidelity"}]})
    context = run.context()
    stage(run.recipe).write(context)
    measures = Measures.load(context.out / "measures.json")
    assert measures.findings == () and measures.losses == () and "ece" not in measures.metrics
    other = SmallRun(tmp_path / "other", evaluate={"samples_shown": 0})
    assert stage(run.recipe).settings["measures"] != stage(other.recipe).settings["measures"]


def test_a_student_that_memorised_is_nearer_on_trained_text(tmp_path: Path) -> None:
    from potstill.evaluate.stage import stage

    measures_asked = [{"kind": "fidelity"}, {"kind": "memorisation", "sample": 8}]
    run = SmallRun(tmp_path, evaluate={"samples_shown": 0, "measures": measures_asked})
    context = run.context()
    stage(run.recipe).write(context)
    measures = Measures.load(context.out / "measures.json")
    (figures,) = measures.findings
    assert isinstance(figures, Figures) and figures.section == "memorisation"
    by_name = {spec.name: values for spec, values in figures.rows}
    assert set(by_name["trained_nll"]) == {"teacher", "student", "text_only"}
    assert set(by_name["memorised"]) == {"student", "text_only"}
    # These students were moved at random and have seen nothing.
    assert measures.losses[0].section == "memorisation" and measures.named_losses == []


def test_the_gap_of_two_samples_has_both_their_errors() -> None:
    gap = gap_of(Interval(1.0, 0.7, 1.4), Interval(0.2, 0.2 - 0.3, 0.2 + 0.4))
    assert gap.value == pytest.approx(0.8)
    assert (gap.low, gap.high) == pytest.approx((0.8 - 0.5, 0.8 + 0.5))


@pytest.mark.parametrize(
    ("measures", "task", "said"),
    [
        ([{"kind": "calibration"}], "sentence_embedding", "a sentence embedding has none: drop it"),
        ([{"kind": "callibration"}], "causal_lm", "did you mean 'calibration'"),
        ([{"kind": "tails"}, {"kind": "tails"}], "causal_lm", "tails stands there twice"),
        ([{"kind": "tails", "rare": 0.7}], "causal_lm", "rare"),
        ([{"kind": "tails", "words": "klingon"}], "causal_lm", "is the code of a language, of two or three letters"),
        ([{"kind": "calibration", "temperatures": [0, 2]}], "causal_lm", "temperatures.0"),
        ([{"kind": "calibration", "temperatures": [0.5, 0.5, 2]}], "causal_lm", "stands there twice"),
        ([{"kind": "calibration", "temperatures": [1, 2]}], "causal_lm", "on one side of 1"),
        (
            [
                {"kind": "capability", "tasks": [{"name": "boolq", "data": {"kind": "jsonl", "path": "x.jsonl"}}]},
                {"kind": "lm_eval", "folder": "tasks", "tasks": ["boolq"]},
            ],
            "causal_lm",
            "two tasks have the name 'boolq'",
        ),
    ],
)
def test_measures_that_cannot_be_are_refused_while_parsing(
    measures: list[dict[str, object]], task: str, said: str, tmp_path: Path
) -> None:
    objectives = [{"kind": "rkd_distance"}] if task == "sentence_embedding" else [{"kind": "hard_ce"}]
    document = {
        "name": "small",
        "task": task,
        "teacher": {"kind": "local", "model": "org/name"},
        "student": {"kind": "from_teacher"},
        "data": {"kind": "jsonl", "path": "data.jsonl", "format": "text", "held_out": 0.5},
        "train": {"objectives": objectives},
        "evaluate": {"measures": measures},
    }
    with pytest.raises(RecipeError, match=said):
        parse_recipe(document, base=tmp_path)


def test_every_kind_of_measure_is_a_file_of_that_name() -> None:
    from potstill import registry
    from potstill.evaluate import measures

    kinds = set(registry._settings[MeasureSettings.room])
    assert kinds == {module.name for module in pkgutil.iter_modules(measures.__path__)} - {"base"}
    assert all(
        SPECS[task].has_response or s().why_not(SPECS[task])
        for task in SPECS
        for k, s in registry._settings[MeasureSettings.room].items()
        if k in ("calibration", "tails")
    )

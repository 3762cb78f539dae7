"""Claims about intervals: by group, paired, and about as wide as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.sparse import csr_array

from potstill.errors import DataError
from potstill.evaluate.bootstrap import FEW_GROUPS, SHARE, PairedBootstrap, Statistic, difference_of, mean_of


def bootstrap(groups: np.ndarray, resamples: int = 2000, seed: int = 0) -> PairedBootstrap:
    return PairedBootstrap([f"g{g}" for g in groups], resamples=resamples, confidence=0.95, seed=seed)


def tokens(rng: np.random.Generator, count: int, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Groups of unequal size whose tokens are alike: (group of each token, value of each token)."""
    sizes = rng.integers(5, 60, count)
    groups = np.repeat(np.arange(count), sizes)
    return groups, np.repeat(rng.normal(1.0, spread, count), sizes) + rng.normal(0, 0.3, sizes.sum())


def test_the_interval_is_the_studentised_bootstraps_with_tails_by_the_effective_number_of_groups() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(5, 60, 25)
    groups = np.repeat(np.arange(25), sizes)
    values = np.repeat(rng.lognormal(0, 0.8, 25), sizes)
    ours = bootstrap(groups, resamples=20_000).mean(values)

    sums = np.bincount(groups, weights=values)
    mean = values.mean()
    drawn = rng.integers(0, 25, (20_000, 25))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    errors = np.sqrt(25 / 24 * np.square(sums[drawn] - means[:, None] * sizes[drawn]).sum(1)) / sizes[drawn].sum(1)
    effective = sizes.sum() ** 2 / np.square(sizes).sum()
    tail = 0.025 * effective / (effective + 20)
    low, high = np.quantile((means - mean) / errors, (tail, 1 - tail))
    without = (sums.sum() - sums) / (sizes.sum() - sizes)
    jackknife = np.sqrt(24 / 25 * np.square(without - without.mean()).sum())
    width = ours.high - ours.low
    assert ours.value == pytest.approx(mean)
    assert ours.low == pytest.approx(mean - high * jackknife, abs=0.02 * width)
    assert ours.high == pytest.approx(mean - low * jackknife, abs=0.02 * width)
    assert ours.high - mean > mean - ours.low, "losses are skewed to the right"


def test_identical_models_differ_by_exactly_nothing() -> None:
    groups, values = tokens(np.random.default_rng(2), 12)
    interval = bootstrap(groups).difference(values, values.copy())
    assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_a_constant_difference_is_known_exactly() -> None:
    groups, values = tokens(np.random.default_rng(3), 12, spread=5.0)
    interval = bootstrap(groups).difference(values + 0.25, values)
    assert (interval.low, interval.high) == (pytest.approx(0.25), pytest.approx(0.25))


def test_repeating_tokens_within_their_groups_does_not_narrow() -> None:
    groups, values = tokens(np.random.default_rng(4), 20)
    once = bootstrap(groups).mean(values)
    often = bootstrap(np.repeat(groups, 10)).mean(np.repeat(values, 10))
    assert (often.low, often.high) == (pytest.approx(once.low), pytest.approx(once.high))


def test_more_groups_do_narrow() -> None:
    rng = np.random.default_rng(5)
    (few, a), (many, b) = tokens(rng, 20), tokens(rng, 320)
    narrow, wide = bootstrap(many).mean(b), bootstrap(few).mean(a)
    assert 0.15 < (narrow.high - narrow.low) / (wide.high - wide.low) < 0.4


def test_a_group_counts_by_its_tokens() -> None:
    interval = bootstrap(np.array([0, 1, 1, 1])).mean(np.array([0.0, 1.0, 1.0, 1.0]))
    assert interval.value == 0.75


def test_pairing_removes_what_both_models_share() -> None:
    rng = np.random.default_rng(6)
    groups, values = tokens(rng, 30, spread=2.0)
    other = values + 0.1 + rng.normal(0, 0.05, len(values))
    paired = bootstrap(groups)
    difference, single = paired.difference(other, values), paired.mean(values)
    assert difference.low > 0
    assert difference.high - difference.low < 0.05 * (single.high - single.low)


def test_one_large_group_beside_small_ones_widens_as_few_groups_do() -> None:
    rng = np.random.default_rng(7)
    losses = rng.lognormal(0, 1, 100)
    equal, unequal = np.full(100, 20), np.r_[np.full(10, 180), np.full(90, 2)]

    def reach(sizes: np.ndarray) -> float:
        drawn = bootstrap(np.repeat(np.arange(100), sizes))
        statistic = mean_of(np.repeat(losses, sizes))
        found = drawn.interval(statistic)
        return (found.high - found.low) / drawn.error(statistic)

    assert reach(unequal) > 1.2 * reach(equal)


def test_two_models_that_seldom_disagree_have_students_interval() -> None:
    """A draw without any of the four disagreements has no variance; a studentised end would be −1 or 1."""
    left, right = np.ones(60, dtype=bool), np.ones(60, dtype=bool)
    left[:3], right[3] = False, False
    found = bootstrap(np.arange(60)).interval(difference_of(mean_of(left), mean_of(right)))
    reach = stats.t.ppf(0.975, 59) * np.std(left.astype(float) - right, ddof=1) / np.sqrt(60)
    assert (found.low, found.high) == (pytest.approx(-2 / 60 - reach), pytest.approx(-2 / 60 + reach))


# ---- coverage ----------------------------------------------------------------------------------------------------


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 5) -> Statistic:
    """A statistic that is neither a mean nor a ratio."""
    one_hot = np.eye(bins)[np.minimum((confidence * bins).astype(int), bins - 1)]
    return Statistic(
        np.concatenate([one_hot, one_hot * (correct - confidence)[:, None]], -1),
        lambda sums: np.abs(sums[..., bins:]).sum(-1) / sums[..., :bins].sum(-1),
    )


def calibrated(rng: np.random.Generator, count: int) -> tuple[np.ndarray, Statistic]:
    """Groups of five examples, right with 0.15 less than the confidence: an ECE of 0.15."""
    confidence = np.repeat(rng.uniform(0.4, 1, count), 5)
    return np.repeat(np.arange(count), 5), expected_calibration_error(
        confidence, rng.random(5 * count) < confidence - 0.15
    )


def skewed(rng: np.random.Generator, count: int) -> tuple[np.ndarray, Statistic]:
    """Losses of groups of unequal size, lognormal: a mean of 1."""
    sizes = np.maximum(1, rng.lognormal(2, 0.6, count).astype(int))
    return np.repeat(np.arange(count), sizes), mean_of(np.repeat(rng.lognormal(-0.32, 0.8, count), sizes))


def heavy(rng: np.random.Generator, count: int) -> tuple[np.ndarray, Statistic]:
    """Differences of two models, symmetric with heavy tails: a mean of 0."""
    sizes = np.maximum(1, rng.lognormal(2, 0.6, count).astype(int))
    values = rng.laplace(0, 1, count) * rng.lognormal(0, 0.5, count)
    return np.repeat(np.arange(count), sizes), mean_of(np.repeat(values, sizes))


def shares(rng: np.random.Generator, count: int) -> tuple[np.ndarray, Statistic]:
    """One example a group, nine of ten right."""
    return np.arange(count), mean_of(rng.random(count) < 0.9, SHARE)


KINDS = {"skewed": (skewed, 1.0), "heavy": (heavy, 0.0), "shares": (shares, 0.9), "calibrated": (calibrated, 0.15)}


def coverage(kind: str, count: int, trials: int, resamples: int = 400) -> tuple[float, float]:
    """How often intervals of nominal 95 % hold the truth, and how often expanded percentiles do."""
    make, true = KINDS[kind]
    rng = np.random.default_rng([count, trials, len(kind)])
    hits, percentiles = 0, 0
    for trial in range(trials):
        groups, statistic = make(rng, count)
        drawn = bootstrap(groups, resamples=resamples, seed=trial)
        interval = drawn.interval(statistic)
        hits += interval.low <= true <= interval.high
        other = drawn._percentiles(statistic, drawn._sums(statistic), interval.value)
        percentiles += other.low <= true <= other.high
    return hits / trials, percentiles / trials


@pytest.mark.parametrize(("kind", "count"), [("skewed", 20), ("skewed", 50), ("heavy", 20), ("shares", 20)])
def test_intervals_cover_about_as_often_as_they_say_and_more_often_than_percentiles(kind: str, count: int) -> None:
    covered, percentiles = coverage(kind, count, 300)
    # The standard error of 300 trials is 1.3 points.
    assert covered >= 0.91 and covered >= percentiles


@pytest.mark.long
@pytest.mark.parametrize("count", [5, 10, 20, 50, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_coverage_by_simulation(kind: str, count: int) -> None:
    covered, percentiles = coverage(kind, count, 2000, resamples=1000)
    print(f"{kind}, {count} groups: {100 * covered:.1f} %, percentiles {100 * percentiles:.1f} %")
    assert covered >= (0.93 if count >= FEW_GROUPS else 0.86)


def trained(rng: np.random.Generator, seeds: int, count: int, worth: float = 0.0) -> tuple[list[str], list[np.ndarray]]:
    """Differences of a student to its control, by seed: each training is off by as much as groups of texts are."""
    of_groups, of_seeds = rng.laplace(0, 0.2, count), rng.normal(worth, 0.1, seeds)
    values = [np.repeat(of_groups + off + rng.normal(0, 0.05, count), 5) for off in of_seeds]
    return [f"g{i}" for i in np.repeat(np.arange(count), 5)], values


def false_alarms(seeds: int, trials: int, resamples: int = 300) -> float:
    """How often an interval excludes 0 although the teacher is worth nothing."""
    rng, wrong = np.random.default_rng(seeds), 0
    for trial in range(trials):
        groups, values = trained(rng, seeds, 40)
        drawn = PairedBootstrap(groups, resamples=resamples, confidence=0.95, seed=trial)
        found = drawn.interval([mean_of(value) for value in values])
        wrong += found.low > 0 or found.high < 0
    return wrong / trials


def test_intervals_over_seeds_hold_the_noise_of_training_and_those_of_one_student_do_not() -> None:
    assert false_alarms(seeds=1, trials=200) > 0.3, "one student's interval is of this student alone"
    # Nominal 5 %, with a standard error of 1.1 points.
    assert false_alarms(seeds=3, trials=400) <= 0.075


@pytest.mark.long
@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_false_alarms_by_seeds(seeds: int) -> None:
    wrong = false_alarms(seeds, 2000, resamples=1000)
    print(f"{seeds} seeds: {100 * wrong:.1f} % of intervals exclude 0")
    assert (wrong > 0.3) if seeds == 1 else (wrong <= 0.07)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_an_interval_over_seeds_adds_the_variance_of_their_mean_to_that_over_groups(seeds: int) -> None:
    groups, values = trained(np.random.default_rng(0), seeds, 30)
    drawn = PairedBootstrap(groups, resamples=1000, confidence=0.95, seed=0)
    over_groups = drawn.mean(np.mean(values, axis=0))
    of_seeds = np.var([value.mean() for value in values], ddof=1) / seeds
    found = drawn.interval([mean_of(value) for value in values])
    assert found.value == pytest.approx(over_groups.value)
    for ours, theirs in ((found.low, over_groups.low), (found.high, over_groups.high)):
        reach = abs(theirs - over_groups.value)
        of_groups = (reach / stats.t.ppf(0.975, 29)) ** 2
        both = of_groups + of_seeds
        freedom = both**2 / (of_groups**2 / 29 + of_seeds**2 / (seeds - 1))
        expected = stats.t.ppf(0.975, freedom) * np.sqrt(both)
        # One degree of freedom is too few for this: half widths in quadrature.
        expected = np.hypot(reach, stats.t.ppf(0.975, 1) * np.sqrt(of_seeds)) if seeds == 2 else expected
        assert abs(ours - found.value) == pytest.approx(expected)


def test_any_statistic_of_sums_has_an_interval_and_a_paired_difference() -> None:
    rng = np.random.default_rng(3)
    groups, statistic = calibrated(rng, 200)
    drawn = bootstrap(groups, resamples=500)
    found = drawn.interval(statistic)
    assert found.low < 0.15 < found.high and found.low > 0
    nothing = drawn.interval(difference_of(statistic, statistic))
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)


def test_a_mean_has_the_interval_of_the_same_mean_as_a_statistic_of_sums() -> None:
    groups, values = tokens(np.random.default_rng(8), 15)
    drawn = bootstrap(groups, resamples=500)
    columns = np.stack([values, np.ones_like(values)], -1)
    general = Statistic(columns, lambda sums: sums[..., 0] / sums[..., 1])
    sparse = Statistic(csr_array(columns), general.of)
    expected = drawn.mean(values)
    for statistic in (general, sparse):
        found = drawn.interval(statistic)
        assert (found.low, found.value, found.high) == (
            pytest.approx(expected.low, rel=1e-6),
            pytest.approx(expected.value),
            pytest.approx(expected.high, rel=1e-6),
        )


def test_a_share_of_all_groups_is_not_known_exactly() -> None:
    drawn = bootstrap(np.arange(20), resamples=100)
    found = drawn.mean(np.ones(20, dtype=bool))
    # 0.025^(1/20) = 0.832, Clopper and Pearson's end.
    assert (found.low, found.high) == (pytest.approx(0.8316, abs=1e-4), 1.0)
    assert drawn.mean(np.zeros(20, dtype=bool)).high == pytest.approx(1 - 0.8316, abs=1e-4)


@pytest.mark.parametrize(
    ("mine", "theirs", "low", "high"),
    [(False, False, -0.1684, 0.1684), (True, False, 1 - 2 * 0.1684, 1.0), (False, True, -1.0, 2 * 0.1684 - 1)],
)
def test_two_models_that_no_group_tells_apart_or_every_group_does_may_differ_in_the_next(
    mine: bool, theirs: bool, low: float, high: float
) -> None:
    """Of 20 groups without an event, 1 − 0.025^(1/20) = 0.1684 may have one, for either model alone."""
    events, others = np.full(40, mine), np.full(40, theirs)
    found = bootstrap(np.arange(40) // 2, resamples=100).interval(difference_of(mean_of(events), mean_of(others)))
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@pytest.mark.parametrize("targets", [10, 30])
def test_rare_events_that_come_together_have_an_interval_that_covers(targets: int) -> None:
    """3 % of targets, with a correlation of 0.3 within groups: most draws have events in one to six of 30 groups."""
    rng, covered = np.random.default_rng(2), 0
    drawn = bootstrap(np.repeat(np.arange(30), targets), resamples=60)
    for _ in range(300):
        shares = rng.beta(0.03 * 7 / 3, 0.97 * 7 / 3, 30)
        found = drawn.mean(rng.random(30 * targets) < np.repeat(shares, targets))
        covered += found.low <= 0.03 <= found.high
    assert covered >= 0.94 * 300, covered


def test_a_share_stays_between_nothing_and_all() -> None:
    found = bootstrap(np.arange(6), resamples=200).mean(np.array([1, 1, 1, 1, 1, 0], dtype=bool))
    assert 0 <= found.low < found.value < found.high <= 1


def test_the_seed_alone_decides_the_draws() -> None:
    groups, values = tokens(np.random.default_rng(7), 15)
    assert bootstrap(groups).mean(values) == bootstrap(groups).mean(values)
    assert bootstrap(groups).mean(values) != bootstrap(groups, seed=1).mean(values)


def test_one_group_is_refused() -> None:
    with pytest.raises(DataError, match="two held-out groups"):
        bootstrap(np.zeros(50, dtype=int))


@pytest.mark.parametrize("share", [0.02, 0.08, 0.95])
def test_a_share_with_few_events_has_an_interval_that_covers_and_is_no_wider_than_it_must_be(share: float) -> None:
    rng = np.random.default_rng(0)
    covered, widest = 0, 0.0
    for _ in range(500):
        bootstrap = PairedBootstrap([str(n) for n in range(30)], resamples=60, confidence=0.95, seed=0)
        found = bootstrap.mean(rng.random(30) < share)
        covered += found.low <= share <= found.high
        widest = max(widest, found.high - found.low)
    assert covered >= 0.93 * 500 and widest < 0.45


def test_a_share_of_tokens_is_as_sure_as_its_tokens_are_independent_not_as_its_groups_are_few() -> None:
    """Each of 15 groups of 33 tokens has events, so that the standard error holds: no interval as if of 15 tokens."""
    generator = np.random.default_rng(0)
    hits = generator.random(15 * 33) < 0.23
    groups = [str(number // 33) for number in range(15 * 33)]
    found = PairedBootstrap(groups, resamples=2000, confidence=0.95, seed=0).mean(hits, SHARE)
    assert found.high - found.low < 0.2

"""The law of size and data finds planted laws, says how sure it is, and abstains where it does not predict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.optimize import brentq, least_squares

from potstill.sweep.capacity import (
    FORMS,
    WIDEST,
    Abstention,
    Fit,
    Form,
    Point,
    Size,
    fit_capacity,
    form_of,
    law_of,
    next_run,
    smallest_student,
)

SIZES, AMOUNTS = (2e6, 4e6, 8e6), (1e5, 2e5, 4e5)


def planted(parameters: float, tokens: float) -> float:
    return 0.5 + 0.6 * (parameters / 4e6) ** -0.7 + 0.4 * (tokens / 2e5) ** -0.5


def runs(
    noise: float = 0.0,
    seed: int = 0,
    sizes: Sequence[float] = SIZES,
    amounts: Sequence[float] = AMOUNTS,
    repeats: int = 1,
) -> list[Point]:
    random = np.random.default_rng(seed)
    return [
        Point(n, d, planted(n, d) * float(np.exp(random.normal(0, noise))))
        for n in sizes
        for d in amounts
        for _ in range(repeats)
    ]


def fitted(points: Sequence[Point], draws: int = 40, largest: float = math.inf) -> Fit:
    found = fit_capacity(points, draws=draws, largest=largest)
    assert isinstance(found, Fit)
    return found


def test_a_planted_law_is_found_without_noise() -> None:
    law = fitted(runs()).law
    assert law.floor == pytest.approx(0.5, rel=1e-4)
    assert (law.size_power, law.data_power) == pytest.approx((0.7, 0.5), rel=1e-4)
    assert law.loss(16e6, 8e5) == pytest.approx(planted(16e6, 8e5), rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_law_of_each_form_is_that_of_scipys_least_squares(form: Form) -> None:
    points = runs(0.05, seed=4, sizes=[*SIZES, 16e6])
    size, amount = (float(np.exp(np.log([getattr(p, n) for p in points]).mean())) for n in ("parameters", "tokens"))

    def residuals(x: np.ndarray) -> np.ndarray:
        sizes, amounts = (np.array([getattr(p, n) for p in points]) for n in ("parameters", "tokens"))
        of_size, of_data = (sizes / size) ** -x[2], (amounts / amount) ** -x[4]
        law = np.exp(x[0]) + np.exp(x[1]) * of_size * (of_data if form.joint else 1)
        law = law if form.joint else law + np.exp(x[3]) * of_data
        law = 1 / (np.exp(-x[5]) + 1 / law) if form.starts else law
        return np.log(law) - np.log([p.loss for p in points])

    theirs = least_squares(residuals, [-1.0, -1.0, 0.7, -1.0, 0.5, 1.5], loss="huber", f_scale=0.05)
    law = law_of(points, form)
    ours = np.log([law.loss(p.parameters, p.tokens) for p in points]) - np.log([p.loss for p in points])
    away = np.abs(ours)
    assert np.where(away <= 0.05, away**2, 0.1 * away - 0.0025).sum() / 2 <= theirs.cost * (1 + 1e-3)


def test_the_largest_run_is_predicted_by_the_law_of_the_others() -> None:
    points = runs(0.01)
    fit = fitted(points)
    assert (fit.held_out.parameters, fit.held_out.tokens) == (8e6, 4e5)
    spoiled = [Point(p.parameters, p.tokens, p.loss * (1 + (p == points[-1]))) for p in points]
    assert fitted(spoiled).predicted == fit.predicted, "the held-out run moves the law that predicts it"
    assert fit.predicts
    assert not fitted(spoiled).predicts


def test_the_smallest_student_for_a_loss_is_that_of_the_planted_law() -> None:
    found = smallest_student(fitted(runs(0.01, seed=3)), loss=1.4, tokens=4e5)
    assert isinstance(found, Size) and found.low is not None and found.high is not None
    truth = 4e6 * ((1.4 - 0.5 - 0.4 * 2**-0.5) / 0.6) ** (-1 / 0.7)
    assert found.low <= truth <= found.high
    assert found.value == pytest.approx(truth, rel=0.1)


def test_one_amount_of_data_has_a_law_of_size_alone() -> None:
    points = runs(0.005, sizes=[*SIZES, 16e6], amounts=[2e5], repeats=3)
    fit = fitted(points)
    assert fit.law.data_loss == 0
    assert fit.law.loss(4e6, 2e5) == pytest.approx(planted(4e6, 2e5), rel=0.02)
    far = smallest_student(fit, loss=1.4, tokens=4e6)
    assert isinstance(far, Abstention)
    assert "far from what was run" in far.why


@pytest.mark.parametrize(
    ("points", "why", "run"),
    [
        (runs()[:6], "6 runs are too few", None),
        ([p for p in runs(repeats=3) if p.parameters < 8e6], "2 sizes of students cannot show a curve", (8e6, 4e5)),
        ([p for p in runs(repeats=2) if p.tokens < 4e5], "two amounts of data cannot show a curve", (8e6, 4e5)),
    ],
)
def test_too_few_runs_are_said_with_the_run_that_is_missing(
    points: list[Point], why: str, run: tuple[float, float] | None
) -> None:
    found = fit_capacity(points)
    assert isinstance(found, Abstention)
    assert why in found.why
    assert found.run == run


def test_a_run_that_lost_nothing_has_no_law() -> None:
    points = [*runs(), Point(9e6, 4e5, 0.0)]
    found = fit_capacity(points)
    assert isinstance(found, Abstention)
    assert found.why == "1 run of 10 lost nothing: a law needs losses above 0"


def test_students_that_are_all_larger_than_their_teacher_are_told_a_run_too() -> None:
    points = runs(0.03)
    assert next_run(fitted(points, largest=5e5)) == (5e5, 4e5)


def test_a_law_that_misses_the_largest_run_gives_no_answer_but_the_next_run() -> None:
    # Beyond 4M parameters this student gains nothing more: the law of the smaller ones does not know it.
    points = [Point(p.parameters, p.tokens, planted(min(p.parameters, 4e6), p.tokens) * 1.4) for p in runs()[:-1]]
    points.append(Point(8e6, 4e5, 4.0))
    fit = fitted(points)
    found = smallest_student(fit, loss=1.4, tokens=4e5)
    assert isinstance(found, Abstention)
    assert "the largest run refutes the law" in found.why
    assert found.run == next_run(fit)
    assert not any((p.parameters, p.tokens) == found.run for p in points)


def test_no_student_larger_than_its_teacher_is_proposed() -> None:
    proposed = {}
    for largest in (math.inf, 9e6):
        fits = [fitted(runs(0.03, seed=seed), largest=largest) for seed in range(6)]
        proposed[largest] = [next_run(fit)[0] for fit in fits]
    assert max(proposed[math.inf]) > 9e6, "without the bound some would be"
    assert max(proposed[9e6]) <= 9e6
    found = smallest_student(fitted(runs(), largest=9e6), loss=0.85, tokens=4e5)
    assert isinstance(found, Abstention) and found.run is not None and found.run[0] <= 9e6
    few = fit_capacity(runs(sizes=(1e6, 8e6), repeats=2), largest=9e6)
    assert isinstance(few, Abstention) and few.run == (5e5, 4e5)


@pytest.mark.parametrize(
    ("loss", "why"),
    [(0.7, "no size reaches 0.7"), (0.85, "is far from what was run"), (9.0, "is far from what was run")],
)
def test_answers_outside_of_what_was_run_are_not_given(loss: float, why: str) -> None:
    found = smallest_student(fitted(runs()), loss=loss, tokens=4e5)
    assert isinstance(found, Abstention)
    assert why in found.why
    assert found.run is not None and all(math.isfinite(value) for value in found.run)


def test_a_noisy_run_that_the_prediction_allows_for_does_not_refute_the_law() -> None:
    fits = [fitted(runs(0.15, seed=seed)) for seed in range(16)]
    missed = [fit for fit in fits if abs(fit.error) > fit.tolerance]
    assert len(missed) >= 5, "these runs are too quiet for the claim"
    assert sum(fit.predicts for fit in missed) >= len(missed) - 1


def test_an_end_that_is_far_from_what_was_run_is_not_given_and_the_other_is() -> None:
    answers = [smallest_student(fitted(runs(0.02, seed=seed)), loss=0.97, tokens=4e5) for seed in range(10)]
    one_sided = [answer for answer in answers if isinstance(answer, Size) and answer.high is None]
    assert len(one_sided) >= 5
    assert all(answer.low is not None and answer.settle == (16e6, 4e5) for answer in one_sided)


def test_an_interval_that_says_nothing_is_no_answer() -> None:
    sizes = [1e4, 1e5, 1e6, 1e7, 1e8]
    answers = [smallest_student(fitted(runs(0.7, seed=seed, sizes=sizes)), loss=2.5, tokens=4e5) for seed in range(12)]
    abstained = [answer for answer in answers if isinstance(answer, Abstention)]
    assert any("is too uncertain" in answer.why and answer.run is not None for answer in abstained)
    both = [one for one in answers if isinstance(one, Size) and one.low is not None and one.high is not None]
    assert all(one.high <= WIDEST * one.low for one in both if one.low is not None and one.high is not None)


def slow(parameters: float, tokens: float) -> float:
    """Larger students learn from fewer tokens, and all begin at 2.4."""
    return 1 / (1 / 2.4 + 1 / (0.02 + 0.25 * (parameters / 4e6) ** -0.6 * (tokens / 2e5) ** -1.6))


def of_world(world: Callable[[float, float], float], noise: float, seed: int) -> list[Point]:
    random = np.random.default_rng(seed)
    cells = [(n, d) for n in (1e6, 2e6, 4e6, 8e6) for d in (5e4, 1e5, 2e5, 4e5)]
    return [Point(n, d, world(n, d) * math.exp(random.normal(0, noise))) for n, d in cells]


def test_the_form_is_the_one_that_predicts_runs_that_are_left_out() -> None:
    worlds = {Form(): planted, Form(joint=True): product, Form(starts=True): saturating, Form(True, True): slow}
    for form, world in worlds.items():
        chosen = [form_of(of_world(world, 0.02, seed)) for seed in range(6)]
        assert chosen.count(form) >= 4, (form, chosen)


DIGITS = {
    666: (2.2554, 2.1545, 1.3910, 0.5385),
    1898: (2.1275, 1.7003, 0.6454, 0.2537),
    6090: (1.7372, 0.8004, 0.2499, 0.1021),
    21386: (1.0665, 0.3761, 0.1386, 0.0640),
}
"""KLs of the runs of `benchmarks/comparisons/capacity_images.yaml`, by the student's parameters, from one, two, four
and eight passes over 1,247 images (docs/log.md)."""


def digits() -> list[Point]:
    return [Point(n, 1247 * 2**k, kl) for n, losses in DIGITS.items() for k, kl in enumerate(losses)]


def test_short_trainings_of_small_nets_have_a_law_that_answers_and_is_contradicted_by_no_run() -> None:
    points = digits()
    fit = fitted(points, draws=200)
    assert fit.form == Form(joint=True, starts=True)
    assert fit.predicted.low <= fit.held_out.loss <= fit.predicted.high
    assert fit.law.start == pytest.approx(math.log(10), rel=0.1), "what a net knows that has learned nothing"
    for loss in (2.0, 1.5, 1.0, 0.5, 0.3, 0.2):
        for tokens in (1247, 2494, 4988, 9976):
            found = smallest_student(fit, loss, tokens)
            if isinstance(found, Abstention):
                assert "no size reaches" not in found.why
                continue
            for p in points:
                if p.tokens <= tokens and p.loss <= loss:
                    assert found.low is None or found.low <= p.parameters, (loss, tokens, found, p)
                if p.tokens >= tokens and p.loss > loss:
                    assert found.high is None or found.high >= p.parameters, (loss, tokens, found, p)


def test_no_reason_is_given_that_a_run_contradicts() -> None:
    """One student is far better than the law of the others allows."""
    points = [*runs(sizes=[*SIZES, 16e6]), Point(4e6, 5e4, 0.3)]
    fit = fitted(points)
    assert fit.predicts and fit.law.end(2e5) > 0.3
    found = smallest_student(fit, loss=0.35, tokens=2e5)
    assert isinstance(found, Abstention)
    assert "a run contradicts the law: 4.0M parameters have 0.3 with 50,000 tokens" in found.why
    worse = fitted([*runs(sizes=[*SIZES, 16e6]), Point(16e6, 8e5, 3.0), Point(16e6, 16e5, planted(16e6, 16e5))])
    found = smallest_student(worse, loss=1.5, tokens=2e5)
    assert isinstance(found, Abstention)
    assert "a run contradicts the law: 16.0M parameters have 3 with 800,000 tokens" in found.why


def test_seeds_that_agree_refute_a_law_that_misses_their_runs() -> None:
    def uneven(noise: float) -> Fit:
        random = np.random.default_rng(0)
        odd = [Point(p.parameters, p.tokens, p.loss * (1.5 if n % 2 else 1.0)) for n, p in enumerate(runs()[:-1])]
        last = runs()[-1]
        cells = [*odd, last]
        return fitted([Point(p.parameters, p.tokens, p.loss * math.exp(random.normal(0, noise))) for p in cells * 3])

    assert (why := uneven(0.01).refuted_by_seeds) is not None and "and seeds differ by 1%" in why
    assert uneven(1.0).refuted_by_seeds is None, "seeds that differ much refute nothing"
    assert fitted(runs(0.01, repeats=3)).refuted_by_seeds is None
    assert fitted(runs(0.01)).refuted_by_seeds is None, "without a second seed nothing is known"


def saturating(parameters: float, tokens: float) -> float:
    """No such law: the loss starts at 2.4, as in short trainings."""
    return 1 / (1 / 2.4 + 1 / (0.02 + 0.25 * (parameters / 4e6) ** -0.6 + 0.5 * (tokens / 2e5) ** -1.2))


def product(parameters: float, tokens: float) -> float:
    """No such law: more data help large students more."""
    return 0.05 + 1.2 * (parameters / 4e6) ** -0.5 * (tokens / 2e5) ** -0.5


def size_of(world: Callable[[float, float], float], loss: float, tokens: float) -> float:
    return float(brentq(lambda log: world(math.exp(log), tokens) - loss, math.log(1e3), math.log(1e12)))


def coverage(
    world: Callable[[float, float], float], loss: float, grid: tuple[int, int], noise: float, draws: int, tries: int
) -> tuple[float, float]:
    """The share of questions that are answered, and of answers that hold the truth."""
    truth = math.exp(size_of(world, loss, 3e5))
    sizes, amounts = [1e6 * 2**i for i in range(grid[0])], [1e5 * 2**i for i in range(grid[1])]
    answers = []
    for seed in range(tries):
        random = np.random.default_rng(seed)
        points = [Point(n, d, world(n, d) * math.exp(random.normal(0, noise))) for n in sizes for d in amounts]
        found = fit_capacity(points, draws=draws, seed=seed)
        assert isinstance(found, Fit)
        answers.append(smallest_student(found, loss, 3e5))
    given = [answer for answer in answers if isinstance(answer, Size)]
    held = [(one.low or 0.0) <= truth <= (one.high or math.inf) for one in given]
    return len(given) / tries, sum(held) / max(1, len(held))


WORLDS = {"law": (planted, 1.5), "saturating": (saturating, 0.6), "product": (product, 1.0)}


@pytest.mark.parametrize("world", WORLDS)
def test_answers_hold_the_true_size_also_where_losses_follow_another_law(world: str) -> None:
    given, held = coverage(*WORLDS[world], (4, 3), 0.05, 150, 30)
    assert given >= 0.5 and held >= 0.85


@pytest.mark.long
@pytest.mark.parametrize("noise", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("grid", [(3, 3), (4, 3), (4, 4)])
@pytest.mark.parametrize("world", WORLDS)
def test_answers_hold_the_true_size(world: str, grid: tuple[int, int], noise: float) -> None:
    given, held = coverage(*WORLDS[world], grid, noise, 400, 150)
    print(f"{world}, {grid[0]} × {grid[1]}, noise {noise:g}: {100 * given:.0f} % answered, {100 * held:.1f} % held")
    assert held >= 0.87

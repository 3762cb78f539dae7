"""How fast a server may be asked: rules, with the time given."""

from __future__ import annotations

from collections.abc import Callable
from email.utils import formatdate
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.teachers.endpoint_pace import Breaker, Pace, Rate, Window, retry_after_seconds


def test_the_window_opens_by_one_an_answer_then_by_one_a_windowful_and_is_halved_once_a_windowful() -> None:
    window = Window(most=100, start=4)
    early = [window.send(0.0) for _ in range(4)]
    for flight in early:
        window.answered(flight, 0.1)
    assert window.size == 8
    late = window.send(0.2)
    window.cut(window.send(0.2))
    assert window.size == 4
    window.cut(late)  # sent before that cut, so of the same congestion
    assert window.size == 4
    for _ in range(4):
        window.answered(window.send(0.3), 0.4)
    assert 4.9 < window.size <= 5
    window.cut(window.send(0.5))
    assert 2.4 < window.size <= 2.5


def test_the_window_stays_between_one_and_its_most() -> None:
    window = Window(most=6, start=32)
    assert window.size == 6
    for _ in range(50):
        window.answered(window.send(0.0), 0.1)
    assert window.size == 6
    for _ in range(50):
        window.cut(window.send(0.0))
    assert window.size == 1


def test_an_answer_that_takes_more_than_half_of_the_time_allowed_is_a_sign_of_too_much() -> None:
    window = Window(most=64, start=16, slow_seconds=5.0)
    window.answered(window.send(0.0), 5.1)
    assert window.size == 8


def served(window: Window, answers: int, slots: float, tokens: Callable[[int], int], per_token: float = 0.02) -> float:
    """The mean size of a window against a server of so many slots: with more under way, each takes so much longer."""
    now, sizes = 0.0, list[float]()
    for number in range(answers):
        wrote = tokens(number)
        seconds = (0.1 + per_token * wrote) * max(1.0, int(window.size) / slots)
        window.answered(window.send(now), now + seconds, wrote)
        now += seconds / window.size
        sizes.append(window.size)
    return sum(sizes) / len(sizes)


def test_a_window_closes_on_latency_and_leaves_the_server_busy() -> None:
    """A server of 40 slots: its answers take four times as long with 160 under way."""
    window = Window(most=1024)
    mean = served(window, 40_000, 40, lambda n: 100)
    assert window.cuts > 1 and 80 <= mean <= 320 and window.size >= 64
    assert served(Window(most=1024), 4000, 1e9, lambda n: 100) > 800  # and without an end, it opens


@given(st.integers(0, 10**6), st.sampled_from(["rising", "falling", "blocks", "mixed"]), st.floats(0.0, 0.05))
@settings(deadline=None, max_examples=30)
def test_answers_of_every_length_in_every_order_are_no_latency(seed: int, order: str, per_token: float) -> None:
    draw = Random(seed)
    lengths = [round(10 ** draw.uniform(0, 3)) for _ in range(3000)]
    if order in ("rising", "falling"):
        lengths.sort(reverse=order == "falling")
    if order == "blocks":
        lengths = [length for length in lengths[:10] for _ in range(300)]
    window = Window(most=256)
    served(window, len(lengths), 1e9, lambda n: lengths[n], per_token)
    assert window.cuts == 0 and window.size == 256


def test_a_server_that_has_become_slow_for_good_is_not_cut_for_ever() -> None:
    window = Window(most=256)
    served(window, 2000, 1e9, lambda n: 100)
    assert window.size == 256
    served(window, 5000, 1e9, lambda n: 100, per_token=2.0)  # a hundred times as long
    assert window.cuts > 0 and window.size >= 32
    before = window.cuts
    served(window, 30_000, 1e9, lambda n: 100, per_token=2.0)
    assert window.cuts <= before + 16 and window.size == 256


@given(
    per_minute=st.floats(30, 60_000),
    gaps=st.lists(st.floats(0, 3), min_size=5, max_size=80),
)
def test_a_rate_is_never_exceeded_in_any_minute(per_minute: float, gaps: list[float]) -> None:
    """Whoever sends whenever it is allowed, with pauses in between, keeps to the limit in every window of 60 s."""
    now, rate, sent = 0.0, Rate(per_minute, 0.0), list[float]()
    for gap in gaps:
        now += gap
        for _ in range(20):
            now += rate.wait_seconds(1, now) + 1e-9
            rate.take(1, now)
            sent.append(now)
    for index, start in enumerate(sent):
        assert sum(start <= at < start + 60 for at in sent[index:]) <= per_minute + 1


def test_a_rate_is_used_whole() -> None:
    now, rate, sent = 0.0, Rate(6000, 0.0), 0
    while now < 60:
        now += rate.wait_seconds(1, now) + 1e-9
        rate.take(1, now)
        sent += 1
    assert 5900 <= sent <= 6000


def test_more_than_a_bucket_holds_goes_out_when_it_is_full_and_is_made_up_for() -> None:
    rate = Rate(6000, 0.0)
    assert rate.wait_seconds(1000, 0.0) == 0.0
    rate.take(1000, 0.0)
    assert 9 < rate.wait_seconds(1, 0.0) < 10
    rate.give_back(900)  # it read and wrote less than it might have
    assert rate.wait_seconds(1, 0.0) < 0.1


def through_bucket(
    pace: Pace, rate: float, burst: float, seconds: float, step: float, told: Callable[[float], float | None]
) -> tuple[float, int, int]:
    """(time, passed, refused) of a bucket of so many a second. `told` gives what a 429 says of the seconds until the
    next token; nobody sends for so long, or for 1.03 seconds."""
    now, level, at, passed, refused = 0.0, burst, 0.0, 0, 0
    while now < seconds:
        now += pace.wait_seconds(now) + step
        level, at = min(burst, level + (now - at) * rate), now
        pace.take(now)
        if level >= 1:
            level, passed = level - 1, passed + 1
        else:
            refused += 1
            pace.refused()
            wait = told((1 - level) / rate)
            pace.limited(now, wait)
            now += 1.03 if wait is None else wait
    return now, passed, refused


def test_the_rate_of_a_servers_own_limit_is_found_and_nearly_all_of_it_used() -> None:
    """Against a bucket of 100 a second that holds one second's worth and says nothing."""
    pace = Pace()
    assert pace.per_second(0.0) == float("inf")
    now, passed, refused = through_bucket(pace, 100, 100.0, 60, 0.001, lambda left: None)
    assert 105 <= pace.per_second(now) < 160
    assert passed >= 0.97 * 60 * 100 and refused < 0.005 * passed


@pytest.mark.parametrize(("rate", "burst"), [(0.4, 1), (2, 1), (10, 10), (60, 60), (300, 300)])
def test_a_bucket_that_tells_what_is_left_to_wait_is_met_seldom(rate: float, burst: float) -> None:
    """Waits as short as a millisecond say nothing of the rate."""
    _, passed, refused = through_bucket(Pace(), rate, burst, 120, 1e-4, lambda left: left)
    assert passed >= 0.7 * 120 * rate and refused <= 0.2 * passed + 5


@pytest.mark.parametrize(("told", "least"), [(2.0, 0.25), (0.25, 0.5)])
def test_a_server_that_refuses_whatever_the_pace_is_still_asked(told: float, least: float) -> None:
    """Every third request is refused, however slowly they come."""

    def slowest(told: float | None) -> float:
        pace, now, rates = Pace(), 0.0, list[float]()
        for number in range(300):
            now += pace.wait_seconds(now) + 0.001
            pace.take(now)
            rates.append(pace.per_second(now))
            if number % 3 == 2:
                pace.refused()
                pace.limited(now, told)
                now += told or 4.0
        return min(rates)

    assert least * (1 - 1e-9) <= slowest(told) < 5 * least
    assert slowest(None) < least / 2, "what is found shrinks where nothing is said"


def test_the_breaker_opens_after_failures_in_a_row_and_one_answer_closes_it() -> None:
    breaker = Breaker(0.0)
    assert all(breaker.failed(1.0) is None for _ in range(Breaker.FAILURES - 1))
    assert not breaker.answered(2.0) and breaker.failures == 0
    waits = [breaker.failed(3.0 + n) for n in range(Breaker.FAILURES + 8)]
    assert waits[: Breaker.FAILURES - 1] == [None] * (Breaker.FAILURES - 1)
    assert waits[Breaker.FAILURES - 1 :][:6] == [0.5, 1, 2, 4, 8, 15] and waits[-1] == 15
    assert breaker.is_open and breaker.open_since == 3.0 + Breaker.FAILURES - 1
    assert breaker.answered(99.0) and not breaker.is_open


def test_three_times_no_connection_are_enough() -> None:
    breaker = Breaker(0.0)
    assert [breaker.failed(1.0, connected=False) for _ in range(3)] == [None, None, 0.5]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": formatdate(1030, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(900, usegmt=True)}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, 1000.0) == seconds

"""The client against simulated servers, on a clock that does not wait: throughput, patience, and whose fault it is."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from teachers.simulated import SimulatedServer, simulate

MIXED: dict[str | int, float] = {500: 0.05, "garbled": 0.02, "hang": 0.01, "reset": 0.02}
CROWDED: dict[str | int, float] = {503: 0.06, 502: 0.02, "hang": 0.01, 500: 0.01}


def whole_seconds(left: float) -> str:
    return str(max(1, math.ceil(left)))


def exactly(left: float) -> str:
    return f"{left:.3f}"


def nothing(left: float) -> None:
    return None


@pytest.mark.parametrize("told", [whole_seconds, exactly, nothing])
@pytest.mark.parametrize(
    ("rate", "burst", "latency", "faults"),
    [(20, 2, 0.05, MIXED), (20, 20, 1.0, CROWDED), (40, 4, 1.0, MIXED), (40, 400, 0.05, CROWDED)],
)
def test_nine_tenths_of_the_permitted_rate_are_used_though_a_tenth_of_all_requests_fail(
    rate: float, burst: float, latency: float, faults: dict[str | int, float], told: Callable[[float], str | None]
) -> None:
    """A small bucket loses what it cannot hold during each pause; a few failures say nothing of overload."""
    server = SimulatedServer(rate=rate, burst=burst, latency=latency, told=told, faults=faults)
    simulate(server, int(rate * 150), until=120, timeout_seconds=20.0)
    assert server.passed >= 0.9 * (120 * rate + burst) and server.early == 0


def test_a_server_of_few_slots_is_kept_busy_and_not_overrun() -> None:
    server = SimulatedServer(slots=40, latency=1.0, faults={500: 0.05})
    found = simulate(server, 4000)
    refused = server.statuses["full"]
    assert found.answered == 4000 and found.virtual_time < 1.35 * 4000 / 0.95 / 40
    assert refused < 0.35 * (4000 + refused)


def test_single_failures_do_not_close_the_window() -> None:
    server = SimulatedServer(latency=2.0, faults=CROWDED)
    found = simulate(server, 6000, until=60, timeout_seconds=20.0, max_in_flight=128)
    assert found.client.window.size > 100 and server.statuses[200] > 0.8 * 50 * 128 / 2


@pytest.mark.parametrize("fault", ["garbled", 500, 409])
def test_requests_that_fail_each_time_are_rejected_and_the_rest_goes_on(fault: str | int) -> None:
    """Also where they are all that is left in the end: the server is not taken to be down."""
    poison = dict.fromkeys(range(940, 1000), fault)
    found = simulate(SimulatedServer(poison=poison), 1000)
    assert found.answered == 940 and sum(found.reasons.values()) == 60 and found.error is None
    assert all(reason.startswith("no answer from the server: 9 tries; the last: ") for reason in found.reasons)
    assert found.virtual_time < 1500


def test_a_resumed_run_of_nothing_but_unreadable_answers_rejects_them() -> None:
    poison = dict.fromkeys(range(36), "garbled")
    found = simulate(SimulatedServer(poison=poison), 36, has_answers=True)
    assert found.error is None and sum(found.reasons.values()) == 36


def test_a_server_that_never_gives_a_readable_answer_ends_the_run_soon() -> None:
    server = SimulatedServer(faults={"garbled": 1.0})
    found = simulate(server, 1000)
    assert "0 choices where one was asked for" in str(found.error) and "base_url" in str(found.error)
    assert found.virtual_time < 60 and server.statuses["garbled"] < 100


def test_answers_that_can_no_longer_be_read_end_the_run_after_a_hundred_requests() -> None:
    server = SimulatedServer(down=(1.0, math.inf), down_as="garbled")
    found = simulate(server, 9000)
    assert "100 requests in a row have no readable answer" in str(found.error) and found.answered > 100


@pytest.mark.parametrize("status", [401, 403, 404, 307])
def test_one_refusal_among_answers_ends_nothing_and_twelve_in_a_row_do(status: int) -> None:
    found = simulate(SimulatedServer(poison={500: status}), 1000)
    assert found.error is None and found.answered == 999 and len(found.reasons) == 1
    ended = simulate(SimulatedServer(down=(0.5, math.inf), down_as=status), 9000)
    assert ended.error is not None and ended.virtual_time < 60
    at_once = SimulatedServer(faults={status: 1.0})
    assert simulate(at_once, 1000).error is not None and sum(at_once.statuses.values()) <= 32


def test_a_server_that_is_down_for_half_an_hour_costs_no_request() -> None:
    for down_as in ("refused", 502, 500):
        server = SimulatedServer(down=(5.0, 1800.0), down_as=down_as)
        found = simulate(server, 5000, max_in_flight=16)
        assert found.answered == 5000 and found.virtual_time > 1800
        assert server.statuses[down_as] < 1200
        assert any("is down" in said for said in found.said)


def test_a_request_that_fails_each_time_does_not_hide_that_the_server_is_up_again() -> None:
    server = SimulatedServer(down=(1.0, 60.0), down_as="refused", poison=dict.fromkeys(range(0, 3000, 100), 502))
    found = simulate(server, 3000, max_in_flight=16)
    assert found.answered == 2970 and found.virtual_time < 600


@pytest.mark.parametrize("told", ["999999999", "86400", "9" * 300])
def test_a_wait_that_outlives_patience_ends_with_it(told: str) -> None:
    server = SimulatedServer(rate=1e-6, burst=0.0, told=lambda left: told)
    found = simulate(server, 10, patience_seconds=600.0)
    assert "no answer to any request for 600 seconds: status 429" in str(found.error)
    assert 600 <= found.virtual_time < 620
    assert any("tried again after 600 s (patience_seconds)" in said for said in found.said)


def test_a_wait_within_patience_is_kept() -> None:
    server = SimulatedServer(rate=1.0, burst=5.0, told=lambda left: "300")
    found = simulate(server, 20, patience_seconds=600.0)
    assert found.answered == 20 and server.early == 0


def test_a_request_that_is_always_told_to_come_later_is_rejected() -> None:
    found = simulate(SimulatedServer(poison={5: 429}), 2000)
    assert found.answered == 1999 and found.error is None
    (reason,) = found.reasons
    assert "25 tries; the last: status 429" in reason

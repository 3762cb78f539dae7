"""The most memory of a piece of work is seen, however short it is held."""

from __future__ import annotations

import pytest

from potstill.peak import most, watched


@pytest.mark.needs("resettable peaks")
def test_what_is_freed_at_once_is_seen_and_what_was_before_is_not() -> None:
    earlier = bytearray(200_000_000)
    del earlier
    with watched() as memory:
        held = bytearray(100_000_000)
        del held
    grown = memory["peak"] - memory["before"]
    assert 95e6 < grown < 130e6 and most(memory) == memory["peak"]


def test_what_a_system_does_not_say_is_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.peak.forget_peak", lambda: False)
    with watched() as memory:
        pass
    assert memory == {} and most(memory) is None

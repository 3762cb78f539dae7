"""A cache of their own for all tests that do not touch the real SmolLM2."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """Where this test's cache is; None for slow tests, which use the user's."""
    if request.node.get_closest_marker("slow"):
        return None
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"

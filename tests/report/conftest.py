"""Reports that are made once: drawing thirty charts takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from report.browser import Browser
from report.synthetic import HOSTILE, Shape, write_report


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run in which all went well."""
    return write_report(tmp_path_factory.mktemp("good"), Shape(measured=True))


@pytest.fixture(scope="session")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run in which every text wants to be more than text."""
    return write_report(tmp_path_factory.mktemp("hostile"), Shape(text=HOSTILE, title=HOSTILE))


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    with Browser(chromium) as running:
        yield running

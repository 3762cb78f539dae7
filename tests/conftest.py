"""What every test stands on: no network, no writing into the user's home, shapes checked, no silent skips."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import hypothesis
import jaxtyping
import pytest
from optional import browser, require

# Before anything imports huggingface_hub, which reads both once. Tests of the hub lift the first, against a hub of
# their own. Potstill's own cache stays where it is: the real SmolLM2 is unpacked once, for tests and demo alike.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="potstill-tests-hf-")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One thread a process, subprocesses included: tiny models gain nothing from two, and the workers run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is no failure: examples of properties may take their time.
hypothesis.settings.register_profile("potstill", deadline=None)
hypothesis.settings.load_profile("potstill")

# Shapes in annotations are checked in the rooms of pure tensor functions, and under pytest only.
jaxtyping.install_import_hook(["potstill.signals", "potstill.objectives"], "beartype.beartype")

IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(name): skipped where it is missing; the names are in tests/optional.py")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        require(marker.args[0])


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return _red_if_it_did_not_run(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    return _red_if_it_did_not_run(report)


def _red_if_it_did_not_run(report: Report) -> Report:
    """In CI a skipped test is a failure that gives the reason; an expected failure did run, and stays one."""
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"did not run, which is a failure where CI is set: {reason.removeprefix('Skipped: ')}"
    return report


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium or Chrome."""
    require("chromium")
    found = browser()
    assert found is not None
    return found


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with its tokenizer, as a directory; treat it as read-only."""
    from tiny_models import make_tiny_causal_lm

    return make_tiny_causal_lm(tmp_path_factory.mktemp("models") / "tiny-llama")

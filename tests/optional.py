"""What some tests need and a machine may lack: one table, with how to tell and how to get it.

    @pytest.mark.needs("bubblewrap")              # on a test, or on one parameter of a test or fixture
    require("chromium")                           # in a fixture or in the middle of a test

A test whose need is not met is skipped with the reason. Where `CI` is set that is a failure (see `conftest.py`), so
nothing is skipped there without notice. `.ci/without PROGRAM… -- COMMAND` runs a command on a machine without programs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
COMPILERS = ("g++", "clang++")


@dataclass(frozen=True)
class Need:
    """`missing` says why it cannot be used here, or None; `get` is the way to have it."""

    missing: Callable[[], str | None]
    get: str


def browser() -> str | None:
    """Path of a Chromium or Chrome: `$CHROMIUM`, else the first on the path; None if there is none."""
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, BROWSERS)), None)


def _no_browser() -> str | None:
    if browser() is not None:
        return None
    return f"CHROMIUM={os.environ['CHROMIUM']} is no program" if os.environ.get("CHROMIUM") else "no browser was found"


def _no_sandbox(method: Literal["bubblewrap", "unshare"]) -> str | None:
    from potstill.verify.sandbox import why_not

    return why_not(method)


def _no_any_sandbox() -> str | None:
    reasons = [_no_sandbox("bubblewrap"), _no_sandbox("unshare")]
    return None if None in reasons else "; ".join(filter(None, reasons))


def _no_mounts() -> str | None:
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unshare is not installed"
    return None if done.returncode == 0 else f"no file system can be mounted here: {done.stderr.strip()}"


def _no_peak() -> str | None:
    from benchmarks.harness import can_measure_resident_peak

    return None if can_measure_resident_peak() else "/proc/self/clear_refs is not there or cannot be written"


NEEDS = {
    "chromium": Need(_no_browser, "`apt-get install chromium`, or set CHROMIUM to its path"),
    "bubblewrap": Need(lambda: _no_sandbox("bubblewrap"), "`apt-get install bubblewrap`, where containers allow it"),
    "unshare": Need(lambda: _no_sandbox("unshare"), "util-linux and user namespaces (or root) make it work"),
    "a sandbox": Need(_no_any_sandbox, "`apt-get install bubblewrap`"),
    "mounts": Need(_no_mounts, "user namespaces that may mount make it work"),
    "fashion-mnist": Need(
        lambda: None if FASHION_MNIST.is_dir() else f"no {FASHION_MNIST}", "`apt-get install dataset-fashion-mnist`"
    ),
    "a C++ compiler": Need(
        lambda: None if any(map(shutil.which, COMPILERS)) else "none found", "`apt-get install g++`"
    ),
    "llama.cpp": Need(
        lambda: None if find_spec("cyllama") is not None else "cyllama is not installed", 'pip install "potstill[gguf]"'
    ),
    "openvino": Need(
        lambda: None if find_spec("openvino") is not None else "it is not installed",
        'pip install "potstill[openvino]"',
    ),
    "llama.cpp's server": Need(
        lambda: None if find_spec("xllamacpp") is not None else "xllamacpp is not installed",
        'pip install "potstill[dev]"',
    ),
    "sentence-transformers": Need(
        lambda: None if find_spec("sentence_transformers") is not None else "it is not installed",
        'pip install "potstill[embeddings]"',
    ),
    "licence texts": Need(
        lambda: None if any(Path(sys.prefix).glob("scancode_toolkit_mini-32.5.0-*.whl")) else "no wheel of them",
        "`pip download --no-deps --dest .venv scancode-toolkit-mini==32.5.0`",
    ),
    "resettable peaks": Need(_no_peak, "Linux with glibc makes it work"),
}


def require(name: str) -> None:
    """Skip the test at hand if the named thing cannot be used here."""
    why = _why_missing(name)
    if why is not None:
        pytest.skip(f"needs {name}: {why}; {NEEDS[name].get}")


@cache
def _why_missing(name: str) -> str | None:
    return NEEDS[name].missing()

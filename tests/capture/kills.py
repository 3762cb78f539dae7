"""A capture in a process of its own, which tests kill. Imported by a fork server, so that each begins at once."""

from __future__ import annotations

from pathlib import Path

import torch

from potstill.capture import capturing, features, served, store_report, written  # noqa: F401 (imported before a fork)
from potstill.console import Console
from potstill.pipeline import run_recipe
from potstill.recipe import load_recipe


def capture(path: Path, run: Path) -> None:
    torch.set_num_threads(1)
    run_recipe(load_recipe(path), run, console=Console("quiet"), verb="capture")

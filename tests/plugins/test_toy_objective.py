"""A package with an objective of its own, installed as packages are, from file to report; and the page of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tiny_models import make_tiny_causal_lm

ROOT = Path(__file__).parents[2]
PACKAGE = Path(__file__).parent / "toy_objective"
PAGE = ROOT / "docs" / "plugins.md"
WORDS = "copper still spirit cask barley malt peat water yeast wash".split()


def block(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n((?s:.*?))^```$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    return str(text)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built and installed without a network into a folder."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-index", "--no-build-isolation", "--target", str(target), str(PACKAGE)]
    subprocess.run(command, check=True, capture_output=True)
    return target


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe with the page's objectives, a tiny teacher, and a few texts."""
    teacher = {"kind": "local", "model": str(make_tiny_causal_lm(tmp_path / "teacher"))}
    document: dict[str, Any] = {"name": "correlated", "teacher": teacher, "student": {"kind": "from_teacher"}}
    document["data"] = {"kind": "jsonl", "path": "answers.jsonl", "held_out": 0.5}
    short = {"max_length": 64, "evaluations": 1, "args": {"max_steps": 6, "use_cpu": True}}
    document["train"] = yaml.safe_load(block("yaml"))["train"] | short
    document["evaluate"] = {"resamples": 100, "samples_shown": 0, "speed": False}
    rows = [{"prompt": f"What is {word}?", "completion": f"{word} it is"} for word in WORDS]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def potstill(site: Path | None, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(site or ""), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "potstill.cli", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


BY_ENTRY_POINT = "train.objectives.1.kind=hidden_correlation"


@pytest.mark.slow
def test_an_installed_objective_goes_from_file_to_report(site: Path, recipe: Path, tmp_path: Path) -> None:
    done = potstill(site, tmp_path, "run", "recipe.yaml", BY_ENTRY_POINT, "--run", "run")
    assert done.returncode == 0, done.stderr
    history = [json.loads(line) for line in (tmp_path / "run" / "train" / "history.jsonl").read_text().splitlines()]
    assert any("hidden_correlation" in key for entry in history for key in entry)
    assert "hidden_correlation" in (tmp_path / "run" / "report" / "report.html").read_text()


@pytest.mark.slow
def test_check_reads_it_by_file_and_by_entry_point_and_not_without_the_package(
    site: Path, recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "hidden_correlation.py").write_text(block("python"))
    by_file = potstill(None, tmp_path, "check", "recipe.yaml")
    assert by_file.returncode == 0, by_file.stderr
    by_entry_point = potstill(site, tmp_path, "check", "recipe.yaml", BY_ENTRY_POINT)
    assert "2·hidden_correlation" in by_entry_point.stdout
    slip = potstill(site, tmp_path, "check", "recipe.yaml", "train.objectives.1.kind=hidden_corelation")
    assert "unknown kind 'hidden_corelation'; did you mean 'hidden_correlation'?" in slip.stderr
    without = potstill(None, tmp_path, "check", "recipe.yaml", BY_ENTRY_POINT)
    assert without.returncode == 2
    assert "unknown kind 'hidden_correlation'" in without.stderr


def test_the_page_shows_the_package() -> None:
    assert block("python") == (PACKAGE / "hidden_correlation.py").read_text(encoding="utf-8")
    assert block("toml") in (PACKAGE / "pyproject.toml").read_text(encoding="utf-8")


def test_a_value_by_hand_and_a_gradient_by_finite_differences() -> None:
    names: dict[str, object] = {"__name__": "shown"}
    exec(block("python").partition("@implements")[0], names)
    distance = names["correlation_distance"]
    student = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[10.0, 30.0, 50.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
    assert distance(student, teacher).tolist() == pytest.approx([0.0, 1.0])  # type: ignore[operator]
    assert torch.autograd.gradcheck(lambda s: distance(s, teacher), (student,))  # type: ignore[operator]

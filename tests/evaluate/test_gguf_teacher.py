"""A teacher in a GGUF file is compared with its student, whatever its conversion makes of its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import yaml
from models.gguf_families import TEMPLATE, Family, Quantised, write_family

from potstill.console import Console
from potstill.measures import Measures
from potstill.pipeline import run_recipe
from potstill.recipe import load_recipe


@pytest.mark.slow
@pytest.mark.parametrize("family", get_args(Family))
def test_its_student_is_measured_against_it(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    template = TEMPLATE if family == "qwen2" else None
    write_family(tmp_path / "teacher.gguf", family, layers=2, template=template, quantised=Quantised.Q8_0)
    rows = [{"prompt": f"a{'b' * (n % 5)} {n}", "completion": "ab " * (1 + n % 4)} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = {
        "name": "gguf",
        "teacher": {"kind": "local", "model": "teacher.gguf"},
        "student": {"kind": "from_teacher", "layers": [0]},
        "data": {"kind": "jsonl", "path": "rows.jsonl", "held_out": 0.5},
        "train": {"max_length": 64, "objectives": [{"kind": "forward_kl"}], "args": {"max_steps": 1, "use_cpu": True}},
        "evaluate": {"resamples": 50, "samples_shown": 1, "sample_tokens": 2, "speed": False},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_recipe(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run", console=Console("quiet"))
    measures = Measures.load(tmp_path / "run" / "evaluate" / "measures.json")
    assert "teacher" in measures.models and measures.models["student"].get("kl") is not None
    assert measures.models["teacher"].bytes == (tmp_path / "teacher.gguf").stat().st_size

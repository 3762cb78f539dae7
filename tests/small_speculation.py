"""A recipe that speculates, in a small size, with a tiny target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from potstill.recipe import Recipe, parse_recipe
from small_run import records
from tiny_models import make_tiny_causal_lm

SMALL: dict[str, Any] = {"prompts": 3, "max_new_tokens": 8, "most": 3, "batch_sizes": [1, 2]}


def recipe(folder: Path, speculate: dict[str, Any], **changes: Any) -> Recipe:
    teacher = folder / "teacher"
    if not teacher.is_dir():
        make_tiny_causal_lm(teacher)
    data = folder / "data.jsonl"
    data.write_text("\n".join(json.dumps({"messages": list(r.messages or ())}) for r in records(12)))
    plain = {
        "name": "small",
        "teacher": {"kind": "local", "model": str(teacher), "device": "cpu"},
        "data": {"kind": "jsonl", "path": str(data), "held_out": 0.5},
        "speculate": {**SMALL, **speculate},
    }
    return parse_recipe(plain | changes, base=folder)

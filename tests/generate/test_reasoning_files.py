"""Problems from a file, with what their verifiers need beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from generate.test_reasoning import Solver, reasons, said, write

from potstill.data.read import stream_records
from potstill.recipe.data import FileData
from potstill.types import Record, Reject


def problems(path: Path, *rows: dict[str, Any]) -> list[Record | Reject]:
    path.write_text("\n".join(map(json.dumps, rows)))
    return list(stream_records(FileData(kind="jsonl", path=path, held_out=0.0)))


def test_a_choice_is_judged_by_the_choices_of_its_line(tmp_path: Path) -> None:
    rows = [
        {"prompt": "2 + 2?", "reference": "four", "choices": ["three", "four"]},
        {"prompt": "3 + 1?", "metadata": {"reference": 0, "choices": ["four", "five"]}},
    ]
    solver = Solver(lambda r: said(f"The answer is {'AB'[r.sample]}"))
    written = write(tmp_path, problems(tmp_path / "a.jsonl", *rows), solver, samples=2, verify={"kind": "choice"})
    assert written.order == [(1, 1), (2, 0)] and reasons(written) == {"wrong answer": 2}


@pytest.mark.needs("a sandbox")
def test_a_program_is_judged_by_the_tests_of_its_line(tmp_path: Path) -> None:
    row = {"prompt": "Write twice(x).", "tests": ["assert twice(2) == 4", "assert twice(3) == 6"]}
    solver = Solver(lambda r: said(f"```python\ndef twice(x):\n    return x {'*+'[r.sample]} 2\n```"))
    verify = {"kind": "python_tests"}
    written = write(tmp_path, problems(tmp_path / "a.jsonl", row), solver, samples=2, verify=verify)
    assert written.order == [(1, 0)] and reasons(written) == {"wrong answer": 1}

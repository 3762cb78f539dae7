"""A look before spending, of chains of thought: so many are asked, judged, and no more."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from generate.fake_teacher import FakeTeacher, FakeTeacherSettings

from potstill.console import Console
from potstill.generate.preview import preview, preview_text
from potstill.recipe import parse_recipe
from potstill.registry import implements
from potstill.types import Answer, Request


class FourSettings(FakeTeacherSettings):
    """Says that it is four."""

    kind: Literal["says_four"] = "says_four"  # type: ignore[assignment]
    asked: ClassVar[list[Request]] = []


@implements(FourSettings)
class Four(FakeTeacher):
    def generate(self, requests: Sequence[Request], *, seed: int, wrote: Any = None) -> list[Answer]:
        FourSettings.asked.extend(requests)
        return [Answer(f"Way {request.sample}: the answer is 4", "stop", 5, 6) for request in requests]


def looked(folder: Path, count: int, **generate: Any) -> dict[str, Any]:
    FourSettings.asked.clear()
    (folder / "run").mkdir()
    rows = [{"prompt": f"{n} + 2", "completion": str(n + 2)} for n in range(9)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    document = {
        "name": "sums",
        "teacher": {"kind": "says_four"},
        "data": {"kind": "jsonl", "path": "sums.jsonl"},
        "generate": {"kind": "reasoning", "verify": {"kind": "numeric"}, "samples": 2} | generate,
    }
    return preview(parse_recipe(document, base=folder), folder / "run", count, Console("quiet"))


def test_a_preview_shows_what_the_verifier_says_and_asks_nothing_further(tmp_path: Path) -> None:
    found = looked(tmp_path, 5, hint="{problem} ({reference})", samples_at_once=1)
    assert len(FourSettings.asked) == len(found["requests"]) == 5
    assert (found["kept"], found["rejected"]) == (1, {"wrong answer": 4})
    said = preview_text(found)
    assert "0 + 2" in found["requests"][0]["rendered"]
    assert "row 3, sample 0: accept, " in said and "row 1, sample 0: ‘4’" in said
    assert said.endswith("1 kept; 4 rejected: wrong answer. Nothing further was asked.")


@pytest.mark.parametrize("form", ["rubric", "pairwise"])
def test_a_preview_asks_a_judge_no_more_than_is_left(tmp_path: Path, form: str) -> None:
    found = looked(tmp_path, 3, verify={"kind": "judge", "form": form})
    assert len(FourSettings.asked) == len(found["requests"]) == 3
    assert found["rejected"] == {"cannot be judged": 3}

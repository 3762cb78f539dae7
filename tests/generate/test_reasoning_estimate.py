"""What is said of the cost of chains of thought before anything is asked is never exceeded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from generate.endpoint_run import EndpointRun
from generate.test_reasoning import Solver, asked_of, problem, said, write
from mock_server import mock

from potstill.check import check_recipe
from potstill.generate.estimate import of_reasoning
from potstill.recipe import ReasoningProgram, load_recipe
from potstill.types import Answer, Request

WORST: dict[str, Any] = {
    "samples": 2,
    "instruction": "{problem}\n\n" + "a " * 300,
    "hint": "{problem} (it is {reference})" + " b" * 300,
    "hint_samples": 3,
    "accept_all": True,
}


@pytest.mark.parametrize(("form", "questions"), [("rubric", 1), ("pairwise", 2)])
def test_every_question_of_a_judge_is_within_the_bound(tmp_path: Path, form: str, questions: int) -> None:
    def say(request: Request) -> Answer:
        judged = asked_of(request).startswith("You ")
        return said("Mark: 1" if judged else f"Way {request.sample} to {asked_of(request)[:6]}", tokens=32)

    def bytes_of(teacher: str, request: Request) -> int:
        assert teacher == "main"
        return len(asked_of(request).encode())

    settings = {**WORST, "max_new_tokens": 32, "verify": {"kind": "judge", "form": form, "max_new_tokens": 40}}
    records = [problem("2 + 2", row=1), problem("x + y", reference=None, row=2), problem("1 + 3", row=3)]
    teacher = Solver(say)
    write(tmp_path, records, teacher, **settings)
    writing, judging = of_reasoning(ReasoningProgram(**settings), records, turns=True, reads=bytes_of)
    answers = 2 * (2 + 3) + 2  # no hint without a reference, and nothing to compare with
    judged = answers if form == "rubric" else questions * (answers - 2)
    assert (writing.answers, judging.answers, judging.judges) == (answers, judged, True)
    assert len(teacher.asked) == answers + judged
    assert sum(request.sampling.max_new_tokens for request in teacher.asked) == writing.written + judging.written
    assert sum(bytes_of("main", request) for request in teacher.asked) <= writing.read + judging.read


def test_the_bound_of_check_holds_for_chains(tmp_path: Path) -> None:
    with mock() as server:
        made = EndpointRun(tmp_path, server.url, prompts=0)
        rows = [{"prompt": f"What is {n} + 2?", "completion": str(n + 2)} for n in range(6)]
        (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
        verify = {"kind": "judge", "max_new_tokens": 30}
        section = json.dumps({"kind": "reasoning", "max_new_tokens": 24, "verify": verify} | WORST)
        recipe = (tmp_path / "recipe.yaml").read_text().replace(", format: prompt", "").split("generate:")[0]
        (tmp_path / "recipe.yaml").write_text(f"{recipe}generate: {section}\n")
        found = check_recipe(load_recipe(tmp_path / "recipe.yaml"))
        figures = found.figures
        assert made.here() == 0
        stats = server.stats()
    assert stats["requests"] == figures["answers"] == 2 * 6 * (2 + 3)
    assert found.lines["generate"][0].startswith("at most 60 answers (30 of a judge), at most 1,620 tokens written")
    assert stats["prompt_tokens"] <= figures["tokens_read_at_most"]
    assert stats["tokens"] - stats["prompt_tokens"] <= figures["tokens_at_most"] == 30 * (24 + 30)

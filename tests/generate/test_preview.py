"""A look before spending, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from generate.endpoint_run import EndpointRun
from mock_server import mock

from potstill.answering.journal import Journal
from potstill.cli import main as command_line


def main(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command_line(arguments)
    assert end.value.code == 0


def command(made: EndpointRun, *more: str) -> list[str]:
    return ["generate", str(made.folder / "recipe.yaml"), "--run", str(made.run), "--quiet", *more]


def test_a_preview_asks_so_many_and_no_more_and_writes_no_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mock(reasoning="think") as server:
        made = EndpointRun(tmp_path, server.url)
        main(command(made, "--preview", "5"))
        said = capsys.readouterr().out
        assert server.stats()["requests"] == 5
        assert not (made.run / "generate").exists()
        assert said.count("user: Question") == 5 and said.count("── reasoning\nLet me think.\n── answer (") == 5
        assert "──── 1 of 5, asked now, seed" in said and "5 kept. Nothing further was asked." in said
        main(command(made, "--preview", "5", "--json"))
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert server.stats()["requests"] == 5  # they were in the journal
        assert found["requests"][0]["raw"]["text"].startswith("<think>") and found["kept"] == 5
        # What was looked at is paid for, and the run itself finds it there.
        main(command(made))
        assert server.stats()["requests"] == made.requests
    with Journal(made.run / "journal.sqlite") as journal:
        assert len(journal) == made.requests


def test_a_preview_shows_why_there_is_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mock(reasoning="unclosed") as server:
        made = EndpointRun(tmp_path, server.url)
        main(command(made, "--preview", "2"))
    said = capsys.readouterr().out
    assert said.count("── no answer: reasoning without an end") == 2
    assert "0 kept; 2 rejected: reasoning without an end" in said


def test_a_preview_of_a_local_teacher_shows_prompts_as_they_are_rendered(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = EndpointRun(tmp_path, "http://127.0.0.1:9/v1")
    teacher = f"teacher={{kind: local, model: {tiny_llama}, device: cpu}}"
    main([*command(made, "--preview", "1"), teacher, "generate.max_new_tokens=4"])
    said = capsys.readouterr().out
    assert "1 of 1, asked now" in said and "Question 0: what is a still?" in said
    assert "user: Question" not in said  # the template's own words, whatever they are


def test_check_says_what_it_will_cost_at_most(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POTSTILL_TEST_KEY", raising=False)
    made = EndpointRun(tmp_path, "http://127.0.0.1:9/v1", prompts=10)
    recipe = str(made.folder / "recipe.yaml")
    main(["check", recipe, "teacher.price={input: 1, output: 10}", "generate.budget.tokens=5000", "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["tokens_at_most"] == 20 * 24
    read = figures["tokens_read_at_most"]
    assert figures["dollars_at_most"] == pytest.approx((read + 10 * 480) / 1e6)
    main(["check", recipe, "teacher.api_key_env=POTSTILL_TEST_KEY", "generate.budget.requests=7"])
    said = capsys.readouterr().out
    assert "what they cost is not known" in said and "capped at: requests 7" in said
    assert "the environment variable POTSTILL_TEST_KEY is not set here" in said


def test_the_bound_of_check_holds(tmp_path: Path) -> None:
    with mock() as server:
        made = EndpointRun(tmp_path, server.url, prompts=10)
        from potstill.check import check_recipe
        from potstill.recipe import load_recipe

        figures = check_recipe(load_recipe(made.folder / "recipe.yaml")).figures
        assert made.here() == 0
        stats = server.stats()
    assert stats["prompt_tokens"] <= figures["tokens_read_at_most"]
    assert stats["tokens"] - stats["prompt_tokens"] <= figures["tokens_at_most"]

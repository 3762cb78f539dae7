"""What is said where little or nothing is kept: fixes that the section has, and warnings of what was cut short."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from generate.endpoint_run import EndpointRun
from mock_server import mock
from pydantic import BaseModel

from potstill.console import Console
from potstill.generate.card import Statistics, dataset_card
from potstill.generate.preview import preview, preview_text
from potstill.generate.stage import advice
from potstill.recipe import SelfInstructProgram, SequenceProgram, load_recipe
from potstill.recipe.generate import GenerateSettings
from potstill.recipe.reasoning import ReasoningProgram
from potstill.types import Provenance, Reason, Record, Verdict

SECTIONS: list[GenerateSettings] = [
    SequenceProgram(kind="sequence", keep_unfinished=False),
    SequenceProgram(kind="sequence", token_budget=9),
    ReasoningProgram(kind="reasoning", verify={"kind": "exact"}),
    SelfInstructProgram(kind="self_instruct"),
]


def named_keys(text: str) -> list[str]:
    return re.findall(r"\bgenerate\.([a-z_]+(?:\.[a-z_]+)*)", text)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.kind)
@pytest.mark.parametrize("reason", list(Reason))
def test_every_fix_names_keys_that_the_section_has(section: GenerateSettings, reason: str) -> None:
    for key in named_keys(advice(section, {reason: 3})):
        at: object = section
        for part in key.split("."):
            assert isinstance(at, BaseModel) and part in type(at).model_fields, f"{key}: {section.kind} has no {part}"
            at = getattr(at, part)


def test_a_chain_that_is_cut_is_given_more_room_and_nothing_is_said_of_keeping_it() -> None:
    said = advice(SECTIONS[2], {Reason.TRUNCATED_CHAIN: 8})
    assert "raise generate.max_new_tokens" in said and "keep_unfinished" not in said
    assert "keep_unfinished: true" in advice(SECTIONS[0], {Reason.UNFINISHED: 8})


@pytest.mark.parametrize(("words", "warned"), [(30, True), (12, False)])
def test_answers_that_are_mostly_cut_short_are_a_warning_with_the_fix(words: int, warned: bool, tmp_path: Path) -> None:
    with mock(words=words) as server:
        made = EndpointRun(tmp_path, server.url, prompts=30, samples=1)
        assert made.here("generate.max_new_tokens=12") == 0
    warnings = [text for text in made.manifest["warnings"] if "cut short at max_new_tokens (12)" in text]
    assert len(warnings) == warned
    if warned:
        assert "raise generate.max_new_tokens" in warnings[0]
    assert (made.manifest["facts"]["cut_short"] > 6) == warned


def test_texts_are_not_prompts_and_the_preview_and_the_run_say_what_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mock() as server:
        made = EndpointRun(tmp_path, server.url, prompts=2)
        (tmp_path / "prompts.jsonl").write_text('{"text": "The still."}\n{"text": "The cask."}\n')
        recipe = load_recipe(tmp_path / "recipe.yaml", ["data.format=text"])
        made.run.mkdir()
        said = preview_text(preview(recipe, made.run, 3, Console("quiet")))
        assert "no row of the data could be asked" in said and "fix: data.format: prompt" in said
        assert made.here("data.format=text") == 2
        assert "data.format: prompt" in capsys.readouterr().err
        assert server.stats()["requests"] == 0


def test_a_prompt_that_is_continued_as_plain_text_is_shown_as_such(tmp_path: Path) -> None:
    with mock() as server:
        made = EndpointRun(tmp_path, server.url, prompts=2)
        for api, count in (("completions", 2), ("chat", 0)):
            recipe = load_recipe(tmp_path / "recipe.yaml", [f"teacher.api={api}"])
            (made.run / api).mkdir(parents=True)
            said = preview_text(preview(recipe, made.run / api, 2, Console("quiet")))
            assert said.count("continued as plain text") == count


def test_the_card_escapes_what_others_wrote_and_names_the_verifier(tmp_path: Path) -> None:
    EndpointRun(tmp_path, "http://127.0.0.1:9/v1")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    statistics = Statistics()
    licence = "[free](javascript:alert(1)) ![x](http://h/x.png) <b> | `c` \x1b[2J"
    verdict = Verdict("accept", verifier="exact_match 1")
    record = Record(prompt="q", completion="a", provenance=Provenance(licence=licence), verdicts=(verdict,))
    statistics.add(record, "train")
    statistics.rejected = Counter({"<img src=x>": 1})
    verifier = {"name": "exact_match", "version": 1, "settings": {"reference": "`]|x"}}
    facts = {"teacher": {"kind": "endpoint", "model": "m`|x", "server": "http://h"}, "verifier": verifier}
    card = dataset_card(recipe, facts, statistics)
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert "configs:" in head and "license" not in head
    assert not re.search(r"(?<!\\)\]\(", body) and "<b>" not in body.replace("\\<b\\>", "")
    assert "\\[free\\]" in body and "\x1b" not in body and "<img" not in body.replace("\\<img", "")
    assert "| Verifier | `exact_match` (version 1)" in body
    assert all(line.count("|") - line.count("\\|") == 3 for line in body.splitlines() if line.startswith("| Lic"))
    statistics.licences = Counter({"Apache-2.0": 1})
    assert "license: apache-2.0" in dataset_card(recipe, facts, statistics)


def test_escapes_in_an_answer_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.answering.journal import Journal
    from potstill.cli import main as command_line

    write = Journal.put_batch

    def hostile(self: Journal, answers, *rest, **more):  # type: ignore[no-untyped-def]
        from dataclasses import replace

        evil = "\x1b]0;owned\x07\x1b[2J\u202eabc\r"
        return write(self, [(key, replace(answer, text=evil)) for key, answer in answers], *rest, **more)

    monkeypatch.setattr(Journal, "put_batch", hostile)
    with mock() as server:
        made = EndpointRun(tmp_path, server.url, prompts=2)
        arguments = ["generate", str(made.folder / "recipe.yaml"), "--run", str(made.run), "--quiet", "--preview", "2"]
        for _ in range(2):  # asked, and then from the journal
            with pytest.raises(SystemExit) as end:
                command_line(arguments)
            assert end.value.code == 0
    said = capsys.readouterr()
    assert "abc" in said.out and not {"\x1b", "\x07", "\u202e"} & {*said.out, *said.err}

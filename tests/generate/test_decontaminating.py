"""Evaluation sets kept out of what a teacher writes: before it is asked where that can be, after it where not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from generate.endpoint_run import EndpointRun
from generate.fake_teacher import FakeTeacher
from generate.run_generate import main
from mock_server import mock

from potstill.artifacts import Artifact, Work, read_artifact
from potstill.check import check_recipe
from potstill.console import Console
from potstill.data import load_records, load_rejects
from potstill.errors import DataError, RecipeError
from potstill.generate.decontaminating import Decontaminating
from potstill.generate.preview import preview
from potstill.generate.stage import stage
from potstill.recipe import Decontamination, dump_recipe, load_recipe, parse_recipe
from potstill.types import Answer, Record, Reject, Request

pytest.importorskip("rapidfuzz")

RECIPE = """
name: clean
teacher: {kind: fake, dtype: float32, template: %s, calls: %s}
data: {kind: jsonl, path: prompts.jsonl, format: prompt, held_out: %s}
generate:
  kind: sequence
  max_new_tokens: 40
  batch_size: 1
  decontaminate:
    against: {mine: tests.jsonl, other: {kind: json, path: more/eval.json}}
"""
SAID = "The still was charged with eleven gallons of wash and it ran slow and clear until the small hours of Sunday"
PROMPTS = ["What is a still?", "Why is copper used?", "Tell a story.", "Who invented the worm tub condenser?"]


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher whose answer depends on its prompt alone: the story it tells is one of an evaluation set."""

    def answer(self: FakeTeacher, drawn: str, request: Request) -> Answer:
        prompt = str(request.messages[-1]["content"]) if request.messages else str(request.prompt)
        text = (
            f"Well then: {SAID}, they say." if "story" in prompt else f"It is said of {prompt} that nobody knows it yet"
        )
        return Answer(text, "stop", 5, 20)

    monkeypatch.setattr(FakeTeacher, "_answer", answer)


def written(folder: Path, *, prompts: list[str] = PROMPTS, held_out: str = "0.0", template: str = "null") -> Path:
    (folder / "more").mkdir()
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in prompts))
    (folder / "tests.jsonl").write_text(json.dumps({"prompt": "why is COPPER used"}))
    (folder / "more" / "eval.json").write_text(json.dumps([{"prompt": "Write about Sunday.", "completion": SAID}]))
    (folder / "recipe.yaml").write_text(RECIPE % (template, folder / "calls", held_out))
    return folder / "recipe.yaml"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    return written(tmp_path)


def generate(recipe_file: Path, *overrides: str) -> Artifact:
    run = recipe_file.parent / "run"
    assert main(str(recipe_file), str(run), *overrides) == 0
    artifact = read_artifact(run / "generate")
    assert artifact is not None
    return artifact


def asked(recipe_file: Path) -> int:
    calls = recipe_file.parent / "calls"
    return len(calls.read_text().split()) if calls.exists() else 0


def test_a_prompt_is_caught_before_it_is_asked_and_an_answer_after_and_the_clean_ones_stay(recipe_file: Path) -> None:
    artifact = generate(recipe_file)
    assert [r.row for r in load_records(artifact.path / "records.parquet")] == [1, 4]
    assert asked(recipe_file) == 3  # not the second prompt
    one, other = load_rejects(artifact.path / "rejects.jsonl")
    assert (one.row, one.reason, one.excerpt) == (2, "in an evaluation set", PROMPTS[1])
    assert one.detail == "its prompt is in the prompt of mine, row 1: the same: ‘why is copper used’"
    assert (other.row, other.reason) == (3, "in an evaluation set") and other.excerpt.startswith("Well then: The still")
    run = " ".join(SAID.lower().split()[:13])
    assert other.detail == f"sample 0: its answer is in the answer of other, row 1: a run of words: ‘{run}’"


def test_what_was_caught_is_counted_in_the_manifest_and_on_the_card(recipe_file: Path) -> None:
    artifact = generate(recipe_file)
    counts, facts = artifact.manifest["counts"], artifact.manifest["facts"]
    assert counts["rejected: in an evaluation set"] == 2 and counts["prompts in an evaluation set (not asked)"] == 1
    assert facts["decontamination"] == {"mine": {"items": 1, "caught": 1}, "other": {"items": 1, "caught": 1}}
    card = (artifact.path / "README.md").read_text()
    assert "| in an evaluation set | 2 | 50.0 % |" in card
    assert "| Evaluation sets kept out of training (items) | mine (1), other (1) |" in card
    assert str(recipe_file.parent) not in card  # a card is published: no path of this machine


def test_prompts_that_become_turns_are_caught_too(tmp_path: Path) -> None:
    chatml = json.dumps("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    artifact = generate(written(tmp_path, template=chatml))
    assert [r.row for r in load_rejects(artifact.path / "rejects.jsonl")] == [2, 3]


def test_a_changed_set_makes_the_stage_stale_and_has_nothing_asked_again(recipe_file: Path) -> None:
    def key() -> str:
        recipe = load_recipe(recipe_file)
        return stage(recipe).key(recipe, {})[0]

    before = key()
    generate(recipe_file)
    (recipe_file.parent / "tests.jsonl").write_text(
        json.dumps({"prompt": PROMPTS[3]}) + '\n{"prompt": "why is copper used"}'
    )
    assert key() != before
    artifact = generate(recipe_file)
    assert asked(recipe_file) == 3  # as before
    assert [r.row for r in load_records(artifact.path / "records.parquet")] == [1]


def test_an_endpoint_is_sent_nothing_for_what_is_caught_nor_for_a_changed_set(tmp_path: Path) -> None:
    with mock() as server:
        run = EndpointRun(tmp_path / "endpoint", server.url, prompts=20, samples=1)
        prompts = [json.loads(line)["prompt"] for line in (run.folder / "prompts.jsonl").read_text().splitlines()]
        (run.folder / "tests.jsonl").write_text(json.dumps({"prompt": prompts[4]}))
        section = "generate.decontaminate={against: {mine: tests.jsonl}, similarity: 1.0}"
        assert run.here(section, "data.held_out=0") == 0
        assert (server.stats()["requests"], run.manifest["counts"]["training records"]) == (19, 19)
        before = run.manifest["key"]
        (run.folder / "tests.jsonl").write_text(
            json.dumps({"prompt": prompts[4]}) + "\n" + json.dumps({"prompt": prompts[9]})
        )
        assert run.here(section, "data.held_out=0") == 0
        assert (server.stats()["requests"], run.manifest["counts"]["training records"]) == (19, 18)
        assert run.manifest["key"] != before


def test_what_counts_as_containing_is_in_the_key_and_a_recipe_without_it_has_the_key_it_always_had(
    recipe_file: Path,
) -> None:
    def key(*overrides: str) -> str:
        recipe = load_recipe(recipe_file, overrides)
        return stage(recipe).key(recipe, {})[0]

    without = key("generate.decontaminate=null")
    assert len({without, key(), key("generate.decontaminate.similarity=0.8")}) == 3
    recipe = load_recipe(recipe_file, ["generate.decontaminate=null"])
    assert "decontaminate" not in stage(recipe).settings["generate"]


def test_held_out_records_stay_and_are_counted(tmp_path: Path) -> None:
    prompts = [f"Tell a story of {n}." for n in range(30)]
    artifact = generate(written(tmp_path, prompts=[*prompts, "What is a still?", *PROMPTS[3:]], held_out="0.5"))
    counts, records = artifact.manifest["counts"], artifact.path / "records.parquet"
    held_out = [r for r in load_records(records, side="held_out") if r.prompt and "story" in r.prompt]
    assert not [r for r in load_records(records, side="train") if r.prompt and "story" in r.prompt]
    assert len(held_out) == counts["held-out records in an evaluation set (kept)"] >= 5
    assert counts["rejected: in an evaluation set"] == 30 - len(held_out)


def test_a_preview_asks_nothing_that_is_caught(recipe_file: Path) -> None:
    run = recipe_file.parent / "run"
    run.mkdir()
    found = preview(load_recipe(recipe_file), run, 2, Console("quiet"))
    assert [shown["rendered"] for shown in found["requests"]] == [PROMPTS[0], PROMPTS[2]]


def test_check_says_how_many_prompts_will_not_be_asked(recipe_file: Path) -> None:
    lines = check_recipe(load_recipe(recipe_file)).lines["generate"]
    assert lines[0].startswith("3 answers")
    assert lines[-1] == "in an evaluation set, and not asked: 1 of 4 (mine 1, other 0)"


def test_a_missing_set_is_named_with_the_fix(recipe_file: Path) -> None:
    (recipe_file.parent / "tests.jsonl").rename(recipe_file.parent / "test.jsonl")
    recipe = load_recipe(recipe_file)
    with pytest.raises(
        DataError, match=r"against\.mine: .*tests\.jsonl: no such file; did you mean 'test\.jsonl'[\s\S]*fix: "
    ):
        stage(recipe).key(recipe, {})
    with pytest.raises(DataError, match=r"generate\.decontaminate\.against\.mine: "):
        check_recipe(recipe).refuse()


def test_rows_of_a_set_that_cannot_be_used_are_a_warning(recipe_file: Path) -> None:
    (recipe_file.parent / "tests.jsonl").write_text('{"prompt": "why is copper used"}\n{"prompt": ""}\n')
    warned = generate(recipe_file).manifest["warnings"]
    assert any("1 rows of the evaluation set 'mine' are not usable" in warning for warning in warned)


def test_sets_are_sources_in_short_and_long_form_relative_to_the_recipe_and_read_back(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.generate is not None and recipe.generate.decontaminate is not None
    against, folder = recipe.generate.decontaminate.against, recipe_file.parent
    assert {name: (of.kind, of.path) for name, of in against.items()} == {  # type: ignore[attr-defined]
        "mine": ("jsonl", folder / "tests.jsonl"),
        "other": ("json", folder / "more" / "eval.json"),
    }
    copy = folder / "more" / "resolved.yaml"
    copy.write_text(dump_recipe(recipe))
    assert load_recipe(copy) == recipe


@pytest.mark.parametrize(
    ("decontaminate", "said"),
    [
        ({}, "against is missing"),
        ({"against": {}}, "against names no evaluation set"),
        ({"against": {"mine": "tests.jsonl"}, "ngrams": 8}, "unknown key 'generate.decontaminate.ngrams'.*'ngram'"),
        ({"against": {"mine": "images.npz"}}, "images hold no text"),
        ({"against": {"mine": {"kind": "jsonl", "file": "x"}}}, "against.mine"),
    ],
)
def test_what_is_wrong_in_the_section_is_said(decontaminate: dict[str, Any], said: str, tmp_path: Path) -> None:
    document = {
        "name": "r",
        "teacher": {"kind": "fake"},
        "data": "prompts.jsonl",
        "generate": {"kind": "sequence", "decontaminate": decontaminate},
    }
    with pytest.raises(RecipeError, match=said):
        parse_recipe(document, base=tmp_path)


class Says:
    """A program that yields what it is given, or something of its own."""

    def __init__(self, said: list[Record] | None = None) -> None:
        self.said, self.read = said, list[Record | Reject]()

    def write(
        self, records: Iterable[Record | Reject], answering: Any, *, side_of: Callable[[Record], Any], work: Work
    ) -> Iterator[Record | Reject]:
        self.read = list(records)
        yield from self.read if self.said is None else self.said


def through(program: Says, records: list[Record], tmp_path: Path, *, asks: bool) -> list[Record | Reject]:
    (tmp_path / "set.jsonl").write_text(json.dumps({"prompt": "Why is copper used?", "completion": SAID}))
    settings = Decontamination.model_validate({"against": {"set": str(tmp_path / "set.jsonl")}})
    made = Decontaminating(program, settings, asks=asks)
    work = Work(tmp_path, resumed=False)
    return list(made.write(records, None, side_of=lambda record: "train", work=work))  # type: ignore[arg-type]


def test_a_records_own_answer_does_not_keep_its_prompt_from_being_asked(tmp_path: Path) -> None:
    program = Says([])
    through(program, [Record(prompt="Tell a story.", completion=SAID)], tmp_path, asks=True)
    assert isinstance(program.read[0], Record)


def test_what_a_program_made_up_itself_is_caught_prompt_and_reasoning(tmp_path: Path) -> None:
    user = {"role": "user", "content": "Go on."}
    made = [
        Record(messages=({"role": "user", "content": "Why is copper used?"}, {"role": "assistant", "content": "So."})),
        Record(messages=(user, {"role": "assistant", "content": "So.", "reasoning_content": f"I recall: {SAID}."})),
        Record(messages=(user, {"role": "assistant", "content": "So.", "reasoning_content": "I recall nothing."})),
    ]
    assert [isinstance(item, Record) for item in through(Says(made), [], tmp_path, asks=True)] == [False, False, True]


def test_a_program_that_asks_nobody_gets_whole_conversations_and_loses_the_pieces_that_are_caught(
    tmp_path: Path,
) -> None:
    turns = [
        {"role": "user", "content": "Why is copper used?"},
        {"role": "assistant", "content": "It takes sulphur."},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "It is cleaned."},
    ]
    program = Says([Record(messages=tuple(turns[:2])), Record(messages=tuple(turns[2:]))])
    items = through(program, [Record(messages=tuple(turns))], tmp_path, asks=False)
    assert isinstance(program.read[0], Record)
    assert [isinstance(item, Record) for item in items] == [False, True]

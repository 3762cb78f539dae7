"""From seeds to instructions: what is shown, what is kept, when it ends, and that a broken run ends as a whole one."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from generate.fake_teacher import FakeTeacher, FakeTeacherSettings
from generate.run_generate import main

from potstill.artifacts import Artifact, read_artifact
from potstill.data import load_records, load_rejects
from potstill.registry import implements
from potstill.types import Answer, Record, Reject, Request

WORDS = "amber birch cedar delta ember fjord grove heath islet jetty knoll larch maple north ocean pearl quartz".split()


class TaskWriterSettings(FakeTeacherSettings):
    """Writes tasks that depend on the whole question. `fail_after`: the process has only so many calls in it."""

    kind: Literal["task_writer"] = "task_writer"
    fail_after: int | None = None
    finish: Literal["stop", "length"] = "stop"
    asked: Path | None = None


@implements(TaskWriterSettings)
class TaskWriter(FakeTeacher):
    calls = 0

    @property
    def identity(self) -> dict[str, object]:
        return {**super().identity, "finish": self.settings.finish}  # type: ignore[attr-defined]

    def generate(self, requests: Sequence[Request], *, seed: int, wrote: Any = None) -> list[Answer]:
        settings = self.settings
        assert isinstance(settings, TaskWriterSettings)
        TaskWriter.calls += 1
        if settings.fail_after is not None and TaskWriter.calls > settings.fail_after:
            raise KeyboardInterrupt
        if settings.asked is not None:
            with settings.asked.open("a") as lines:
                lines.writelines(json.dumps(r.prompt) + "\n" for r in requests)
        return super().generate(requests, seed=seed)

    def _answer(self, drawn: str, request: Request) -> Answer:
        settings = self.settings
        assert isinstance(settings, TaskWriterSettings) and request.prompt is not None
        text = written(drawn, request.prompt)
        return Answer(text, settings.finish, 5, min(40, request.sampling.max_new_tokens))


def written(drawn: str, prompt: str) -> str:
    def phrase(n: int) -> str:
        number = int(hashlib.sha256(f"{drawn} {n}".encode()).hexdigest()[:12], 16)
        return " ".join(WORDS[(number >> 4 * i) % len(WORDS)] for i in range(7))

    if prompt.endswith("Classification:"):
        return "Yes" if "amber" in prompt.rpartition("Task:")[2] else "No"
    if prompt.endswith("Input:"):
        return f" {phrase(1)}\nOutput: {phrase(2)}\n\nExample 2\nInput: {phrase(3)}\nOutput: {phrase(4)}"
    if prompt.endswith("Output:"):
        return f" yes\nInput: {phrase(1)}"
    if prompt.endswith("Instruction:"):
        tasks = [
            f" {phrase(n)}\n{n}. Input:\n<noinput>\n{n}. Output:\n{phrase(-n)}\n###\n{n}. Instruction:"
            for n in range(3)
        ]
        return "".join(tasks) + " Describe the image in some words\n9. Input:\n<noinput>\n9. Output:\nno\n"
    return f" {phrase(1)}\nTask 10: {phrase(2)}\nTask 11: too short"


RECIPE = """
name: tasks
teacher: {kind: task_writer}
data: {kind: jsonl, path: seeds.jsonl, format: alpaca, held_out: 0.2, licence: CC0-1.0}
generate: {kind: self_instruct, target: 20, calls: 30, calls_per_round: 4, max_new_tokens: 400}
"""
SELF_INSTRUCT = ("generate.style=self_instruct", "generate.calls=8", "generate.target=12")


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(TaskWriter, "calls", 0)
    seeds = [
        {"instruction": f"Seed {n} asks for something {WORDS[n]} here", "input": "it" * (n % 2), "output": f"done {n}"}
        for n in range(12)
    ]
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(seed) + "\n" for seed in seeds))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def generate(recipe_file: Path, *overrides: str, run: str = "run") -> Artifact:
    folder = recipe_file.parent / run
    assert main(str(recipe_file), str(folder), *overrides) == 0
    artifact = read_artifact(folder / "generate")
    assert artifact is not None
    return artifact


def came_of(artifact: Artifact) -> tuple[list[Record], list[Reject]]:
    return load_records(artifact.path / "records.parquet"), load_rejects(artifact.path / "rejects.jsonl")


def test_it_ends_at_the_target_and_every_task_that_was_written_is_somewhere(recipe_file: Path) -> None:
    artifact = generate(recipe_file)
    records, rejects = came_of(artifact)
    counts = artifact.manifest["counts"]
    assert len(records) == 20 == counts["instructions kept"] and not artifact.manifest["warnings"]
    assert len(records) + len(rejects) == 4 * counts["calls for tasks"]
    reasons = Counter(reject.reason for reject in rejects)
    assert reasons["asks for what a language model cannot do"] == counts["calls for tasks"]
    assert reasons["beyond the target"] > 0
    assert {r.provenance.licence for r in records} == {"CC0-1.0"} and {r.provenance.teacher for r in records} == {
        "fake"
    }
    assert all(r.provenance.sampling["temperature"] == 1.0 for r in records)
    assert all(r.metadata["shown"]["seeds"] and r.metadata["call"] for r in records)
    assert "20 records" in (artifact.path / "README.md").read_text()


@pytest.mark.parametrize("style", [(), SELF_INSTRUCT])
def test_nothing_kept_is_too_similar_to_a_seed_or_to_another(recipe_file: Path, style: tuple[str, ...]) -> None:
    from potstill.generate.rouge import rouge_l

    records, _ = came_of(generate(recipe_file, *style))
    asked = {r.group: str((r.messages or ())[0]["content"]).split("\n\n")[0] for r in records}
    texts = list(asked.values())
    assert len(texts) > 5
    assert max(rouge_l(a, b) for i, a in enumerate(texts) for b in texts[:i]) <= 0.7


def test_the_same_instruction_again_is_left_out(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "written", one_task)
    artifact = generate(recipe_file, "generate.calls=3", "generate.calls_per_round=1")
    records, rejects = came_of(artifact)
    assert len(records) == 1
    assert [r.reason for r in rejects] == ["too similar to another instruction"] * 2
    assert rejects[0].detail == "task 1: ROUGE-L 1.00 with number 13"  # behind the twelve seeds
    assert "1 of 20 instructions when all 3 calls had been made" in artifact.manifest["warnings"][0]


def one_task(drawn: str, prompt: str) -> str:
    return " Say how the tide turns\n4. Input:\n<noinput>\n4. Output:\nSlowly.\n"


def test_prompts_show_what_the_paper_shows(recipe_file: Path) -> None:
    def shown(*overrides: str, run: str) -> list[tuple[int, int]]:
        asked = recipe_file.parent / f"{run}.jsonl"
        generate(recipe_file, f"teacher.asked={asked}", "generate.calls_per_round=2", *overrides, run=run)
        prompts = [json.loads(line) for line in asked.read_text().splitlines()]
        wanted = [p for p in prompts if p.endswith("Instruction:") or re.search(r"Task \d+:$", p)]
        lines = [re.findall(r"(?m)^(?:\d+\. Instruction|Task \d+): (.*)", p) for p in wanted]
        return [
            (len([x for x in of if x.startswith("Seed")]), len([x for x in of if not x.startswith("Seed")]))
            for of in lines
        ]

    assert set(shown(run="alpaca")) == {(3, 0)}
    counts = shown(*SELF_INSTRUCT, run="self_instruct")
    assert counts[:2] == [(8, 0)] * 2 and set(counts[2:]) == {(6, 2)}


def test_examples_of_an_instruction_are_on_one_side_and_labels_come_first_for_classifications(
    recipe_file: Path,
) -> None:
    records, rejects = came_of(generate(recipe_file, *SELF_INSTRUCT))
    assert Counter(Counter(r.group for r in records).values()).keys() == {1, 2}
    for record in records:
        question, answer = (str(m["content"]) for m in record.messages or ())
        assert question.endswith("\n\n" + record.metadata["input"])
        assert (answer == "yes") == ("amber" in question.split("\n\n")[0])
    assert all(r.detail.startswith("task ") for r in rejects)
    assert "instruction too short" in {r.reason for r in rejects}


def test_an_answer_that_was_cut_off_is_dropped_whole_or_without_its_last_task(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recipe_file.parent / "whole"
    assert main(str(recipe_file), str(folder), "teacher.finish=length", "generate.calls=4") == 2  # nothing is left
    assert "no answer was kept (cut off)" in capsys.readouterr().err
    records, rejects = came_of(
        generate(recipe_file, "teacher.finish=length", "generate.cut_off=last", "generate.calls=4")
    )
    assert len(records) > 8
    assert [r.detail for r in rejects if r.reason == "cut off"] == ["task 4"] * 4


def test_a_spent_budget_ends_it_and_says_so(recipe_file: Path) -> None:
    artifact = generate(recipe_file, "generate.token_budget=1000", "generate.target=1000")
    assert artifact.manifest["facts"]["tokens"] <= 1000
    assert any("the budget was used up: raise the budget" in said for said in artifact.manifest["warnings"])
    assert artifact.manifest["counts"]["rejected: token budget"] >= 1


@pytest.mark.parametrize("style", [(), SELF_INSTRUCT])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_broken_run_ends_byte_by_byte_as_a_whole_one(recipe_file: Path, style: tuple[str, ...], after: int) -> None:
    whole = generate(recipe_file, "generate.batch_size=2", *style, run="whole")
    calls, TaskWriter.calls = TaskWriter.calls, 0
    assert calls > after
    with pytest.raises(KeyboardInterrupt):
        main(
            str(recipe_file),
            str(recipe_file.parent / "broken"),
            "generate.batch_size=2",
            f"teacher.fail_after={after}",
            *style,
        )
    TaskWriter.calls = 0
    broken = generate(recipe_file, "generate.batch_size=2", *style, run="broken")
    assert TaskWriter.calls == calls - after
    for name in ("records.parquet", "rejects.jsonl", "README.md"):
        assert (broken.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_another_seed_shows_other_seeds(recipe_file: Path) -> None:
    one, other = (came_of(generate(recipe_file, f"generate.seed={n}", run=f"run{n}"))[0] for n in (0, 1))
    assert [r.metadata["shown"] for r in one[:4]] != [r.metadata["shown"] for r in other[:4]]


def test_too_few_seeds_are_refused_with_the_fix(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("generate.demonstrations=13",)
    assert main(str(recipe_file), str(recipe_file.parent / "run"), *overrides) == 2
    said = capsys.readouterr().err
    assert "12 seeds, and a prompt shows 13" in said and "recipes/seeds.jsonl" in said


def test_a_preview_asks_so_many_and_no_more(recipe_file: Path, tmp_path: Path) -> None:
    from potstill.console import Console
    from potstill.generate.preview import preview
    from potstill.recipe import load_recipe

    for style in ((), SELF_INSTRUCT):
        run = tmp_path / f"run{len(style)}"
        run.mkdir()
        found = preview(load_recipe(recipe_file, list(style)), run, 3, Console("quiet"))
        assert len(found["requests"]) == 3


def test_the_estimate_bounds_what_is_asked(recipe_file: Path) -> None:
    from potstill.check import check_recipe
    from potstill.recipe import load_recipe

    for run, style in enumerate(((), SELF_INSTRUCT)):
        figures = check_recipe(load_recipe(recipe_file, list(style))).figures
        facts = generate(recipe_file, *style, run=f"run{run}").manifest["facts"]
        assert facts["answers"] <= figures["answers"] <= 30 + 2 * 20
        assert facts["tokens"] <= figures["tokens_at_most"]


def test_the_shipped_recipe_is_run_with_the_shipped_seeds(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "self_instruct.yaml"
    assert main(str(recipe), str(tmp_path), "teacher={kind: task_writer}", "generate.target=9") == 0
    artifact = read_artifact(tmp_path / "generate")
    assert artifact is not None
    counts = artifact.manifest["counts"]
    # All seeds are good ones: none is rejected. Self-Instruct has 175 of them.
    assert counts["seeds"] == counts["rows read"] >= 175 and counts["instructions kept"] == 9
    assert (artifact.path / "records.jsonl").is_file()


def test_the_shipped_seeds_are_far_from_each_other() -> None:
    from potstill.generate.rouge import Pool

    pool = Pool()
    seeds = Path(__file__).parents[2] / "recipes" / "seeds.jsonl"
    for line in seeds.read_text(encoding="utf-8").splitlines():
        instruction = json.loads(line)["instruction"]
        assert pool.most_similar(instruction, 0.7) is None
        pool.add(instruction)

"""The stage: its key, its artifact, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from generate.fake_teacher import FakeTeacherSettings
from generate.run_generate import main

from potstill.artifacts import Artifact, Work, read_artifact
from potstill.console import Console
from potstill.data import load_records, load_rejects, read_sides, split_of
from potstill.data.problems import own_answer
from potstill.errors import CapabilityError, DataError
from potstill.generate.stage import stage
from potstill.recipe import Recipe, load_recipe
from potstill.stage import Context

RECIPE = """
name: answers
teacher: {kind: fake}
data: {kind: jsonl, path: prompts.jsonl, held_out: 0.25}
generate: {kind: sequence, max_new_tokens: 20, batch_size: 8, temperature: 1.0}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    lines = [json.dumps({"prompt": f"question {n}"}) for n in range(40)]
    (tmp_path / "prompts.jsonl").write_text("\n".join([*lines, lines[0]]))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def generate(recipe_file: Path, *overrides: str) -> Artifact:
    run = recipe_file.parent / "run"
    assert main(str(recipe_file), str(run), *overrides) == 0
    artifact = read_artifact(run / "generate")
    assert artifact is not None
    return artifact


def write_here(recipe: Recipe, folder: Path) -> Work:
    work = Work(folder, resumed=False)
    stage(recipe).write(Context(recipe, folder, {}, work, Console("quiet")))
    return work


def test_both_sides_of_the_split_are_answered_and_told_apart(recipe_file: Path) -> None:
    records = generate(recipe_file).path / "records.parquet"
    train, held_out = load_records(records, side="train"), load_records(records, side="held_out")
    assert (len(train), len(held_out)) == (30, 10)
    split = split_of(load_recipe(recipe_file).data)
    assert {split.side_of(r) for r in train} == {"train"}
    assert {split.side_of(r) for r in held_out} == {"held_out"}


def test_the_manifest_says_what_was_written_and_what_was_left_out(recipe_file: Path) -> None:
    artifact = generate(recipe_file, "generate.token_budget=200")
    counts, facts = artifact.manifest["counts"], artifact.manifest["facts"]
    rejects = load_rejects(artifact.path / "rejects.jsonl")
    assert counts["rows read"] == 41 and counts["prompts"] == 40
    assert counts["answers kept"] == counts["training records"] + counts["held-out records"]
    assert counts["answers kept"] + counts["rejected: token budget"] == 40
    assert sum(amount for name, amount in counts.items() if name.startswith("rejected: ")) == len(rejects)
    assert counts["rejected: exact duplicate"] == 1
    assert f"{counts['rejected: token budget']} answers were not asked for" in artifact.manifest["warnings"][0]
    assert facts["answers"] == counts["answers kept"] and 180 < facts["tokens"] <= 200 == facts["token_budget"]
    finished = counts["answers kept"] - counts["kept, but cut short"]
    assert facts["share_finished"] == pytest.approx(finished / counts["answers kept"], abs=1e-3)
    assert facts["tokens_per_second"] > 0 and facts["teacher"]["dtype"] == "bfloat16"


def test_seconds_are_those_of_the_writing_whenever_that_was(recipe_file: Path) -> None:
    first = generate(recipe_file, "teacher.seconds=0.01").manifest["facts"]
    again = generate(recipe_file, "teacher.seconds=0.01", "data.licence=CC0-1.0").manifest["facts"]
    assert first["seconds"] >= 0.05
    assert (again["seconds"], again["tokens"]) == (first["seconds"], first["tokens"])
    assert (first["answers_from_journal"], again["answers_from_journal"]) == (0, 40)


def test_the_key_changes_with_data_teacher_and_settings_and_with_nothing_else(recipe_file: Path) -> None:
    def key(*overrides: str) -> str:
        recipe = load_recipe(recipe_file, overrides)
        return stage(recipe).key(recipe, {})[0]

    before = key()
    changes = ["generate.samples=2", "teacher.dtype=float32", "data.held_out=0.5", "seed=3"]
    assert len({before, *map(key, changes)}) == 5
    on_text = "train={objectives: [{kind: hard_ce}]}"
    assert key("student={kind: from_teacher}", on_text, "evaluate={}") == before
    with (recipe_file.parent / "prompts.jsonl").open("a") as prompts:
        prompts.write('\n{"prompt": "one more"}')
    assert key() != before


def test_nothing_needs_torch_but_a_teacher_that_does(recipe_file: Path) -> None:
    script = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules); assert not heavy, heavy"
    )
    program = str(Path(__file__).parent / "run_generate.py")
    command = [sys.executable, "-c", script, program, str(recipe_file), str(recipe_file.parent / "run")]
    subprocess.run(command, check=True)


def test_no_answer_at_all_is_an_error_that_says_why(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["generate.token_budget=19"])
    with pytest.raises(DataError, match=r"no answer was kept \(exact duplicate, token budget\)[\s\S]*token_budget"):
        write_here(recipe, tmp_path)


def test_a_side_without_an_answer_is_a_warning(recipe_file: Path, tmp_path: Path) -> None:
    work = write_here(load_recipe(recipe_file, ["generate.token_budget=20"]), tmp_path)
    assert "no training prompt was answered" in work.warnings


def test_a_teacher_that_cannot_generate_is_refused_with_the_fix(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The recipe is refused as soon as it is read; a teacher that turns out to give less than its settings say, here.
    recipe = load_recipe(recipe_file)
    monkeypatch.setattr(FakeTeacherSettings, "capabilities", frozenset({"head"}))
    with pytest.raises(CapabilityError, match=r"'main' cannot generate[\s\S]*fix: "):
        write_here(recipe, tmp_path)


def test_progress_is_shown_in_tokens_with_the_time_left(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("potstill.console.PLAIN_LINE_EVERY_SECONDS", 0.0)
    recipe = load_recipe(recipe_file, ["teacher.seconds=0.01"])
    stage(recipe).write(Context(recipe, tmp_path, {}, Work(tmp_path, resumed=False), Console("lines")))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("generating: ")]
    assert lines[0] == "generating: 800 tokens"  # at most: 40 answers of 20 tokens
    assert all("tokens/s" in line and "left" in line for line in lines[1:-1]) and len(lines) >= 7
    written, expected = (int(word.replace(",", "")) for word in lines[-2].split()[1:4:2])
    assert written == expected < 800


def test_held_out_records_keep_the_answers_of_the_data_and_are_not_asked(tmp_path: Path) -> None:
    """Students of different texts are measured on the same ones."""
    lines = [json.dumps({"prompt": f"question {n}", "completion": f"reference {n}"}) for n in range(40)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    calls = f"teacher.calls={tmp_path / 'calls'}"
    records = generate(tmp_path / "recipe.yaml", "generate.held_out=given", calls).path / "records.parquet"
    train, held_out = load_records(records, side="train"), load_records(records, side="held_out")
    assert (len(train), len(held_out)) == (30, 10)
    assert sum(map(int, (tmp_path / "calls").read_text().split())) == 30
    assert held_out == list(read_sides(load_recipe(tmp_path / "recipe.yaml").data).held_out)
    assert all("reference" not in (record.messages or ({},))[-1]["content"] for record in train)


def test_held_out_prompts_without_an_answer_are_asked_all_the_same(recipe_file: Path) -> None:
    records = load_records(generate(recipe_file, "generate.held_out=given").path / "records.parquet", side="held_out")
    assert len(records) == 10 and all(own_answer(record) for record in records)

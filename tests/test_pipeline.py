"""Fresh stages are skipped, changed ones are made again, and a run belongs to one recipe."""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from potstill import pipeline
from potstill.artifacts import read_artifact
from potstill.check import Findings
from potstill.console import Console
from potstill.errors import RunError
from potstill.recipe import Recipe, parse_recipe
from potstill.show import describe_run, print_run
from potstill.stage import Context, Stage

QUIET = Console("quiet")


def recipe(name: str = "toy", seed: int = 0) -> Recipe:
    return parse_recipe({"name": name, "seed": seed, "data": {"kind": "jsonl", "path": "x.jsonl"}}, base=Path("/"))


class Toy:
    """Two stages that write what they were told, and count their runs."""

    def __init__(self) -> None:
        self.settings = {"generate": {"n": 1}, "train": {"n": 1}}
        self.data = "digest of the data"
        self.ran: list[str] = []
        self.fail: str | None = None

    def stages(self, _: Recipe) -> list[Stage]:
        return [self._stage("generate", ()), self._stage("train", ("generate",))]

    def _stage(self, name: str, reads: tuple[str, ...]) -> Stage:
        def write(context: Context) -> None:
            self.ran.append(name)
            if self.fail == name:
                raise RunError("broken on purpose")
            taken = [(context.inputs[r].path / "out.txt").read_text() for r in reads]
            (context.out / "out.txt").write_text(f"{self.settings[name]} from {taken} seed {context.recipe.seed}")

        settings: dict[str, Any] = dict(self.settings[name])
        return Stage(name, 1, reads, settings, lambda: {"data": self.data}, write)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    monkeypatch.setattr(pipeline, "stages_of", made.stages)
    monkeypatch.setattr(pipeline, "check_recipe", lambda recipe, verbs: Findings(()))
    return made


def run(folder: Path, **how: Any) -> list[tuple[str, str]]:
    done = pipeline.run_recipe(how.pop("recipe", recipe()), folder, console=QUIET, **how)
    return [(s.stage, s.state) for s in done]


def test_a_second_run_does_nothing(toy: Toy, tmp_path: Path) -> None:
    assert run(tmp_path) == [("generate", "missing"), ("train", "missing")]
    assert run(tmp_path) == [("generate", "fresh"), ("train", "fresh")]
    assert toy.ran == ["generate", "train"]


def test_force_runs_again_what_is_fresh(toy: Toy, tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path, force=True)
    assert toy.ran == ["generate", "train"] * 2


def test_a_changed_setting_remakes_its_stage_and_what_reads_it(toy: Toy, tmp_path: Path) -> None:
    run(tmp_path)
    toy.settings["train"] = {"n": 2}
    assert run(tmp_path) == [("generate", "fresh"), ("train", "stale")]
    toy.settings["generate"] = {"n": 2}
    assert run(tmp_path) == [("generate", "stale"), ("train", "stale")]


def test_an_equal_output_keeps_what_reads_it_fresh(toy: Toy, tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path, verb="generate", force=True)
    assert run(tmp_path) == [("generate", "fresh"), ("train", "fresh")]


@pytest.mark.parametrize("change", ["seed", "data", "contract"])
def test_seed_data_and_contract_are_part_of_the_key(
    toy: Toy, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    if change == "data":
        toy.data = "other data"
    if change == "contract":
        stages = toy.stages
        monkeypatch.setattr(pipeline, "stages_of", lambda r: [replace(s, contract=2) for s in stages(r)])
    states = run(tmp_path, recipe=recipe(seed=1 if change == "seed" else 0))
    assert states == [("generate", "stale"), ("train", "stale")]


def test_a_failure_keeps_what_was_done(toy: Toy, tmp_path: Path) -> None:
    toy.fail = "train"
    with pytest.raises(RunError, match="broken on purpose"):
        run(tmp_path)
    assert [s.state for s in pipeline.plan(recipe(), tmp_path)] == ["fresh", "interrupted"]
    toy.fail = None
    assert run(tmp_path) == [("generate", "fresh"), ("train", "missing")]


def test_a_verb_alone_wants_its_inputs(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"train reads what generate makes.*\n.*potstill run"):
        run(tmp_path, verb="train")


def test_a_verb_alone_refuses_inputs_that_other_settings_made(toy: Toy, tmp_path: Path) -> None:
    run(tmp_path)
    toy.settings["generate"] = {"n": 2}
    with pytest.raises(RunError, match="generate in this run was made by other settings"):
        run(tmp_path, verb="train")
    assert toy.ran == ["generate", "train"]


def test_a_verb_that_the_recipe_lacks_is_said(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no export section"):
        run(tmp_path, verb="export")


def test_a_run_of_another_recipe_is_refused_and_left_alone(toy: Toy, tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(RunError, match="belongs to the recipe 'toy', not 'other'"):
        run(tmp_path, recipe=recipe("other"))
    artifact = read_artifact(tmp_path / "train")
    assert artifact is not None
    artifact.check_whole()


def test_two_processes_do_not_share_a_run(toy: Toy, tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another potstill is at work"):
            run(tmp_path)


def test_a_file_in_the_way_of_the_run_is_said_clearly(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written.*\n.*--run"):
        run(tmp_path / "file")


def test_a_flipped_byte_is_found_before_a_stage_reads_it_or_is_skipped(toy: Toy, tmp_path: Path) -> None:
    run(tmp_path)
    file = tmp_path / "generate" / "out.txt"
    content, written = file.read_bytes(), file.stat().st_mtime_ns
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    toy.settings["train"] = {"n": 2}
    for verb in (None, "train"):
        with pytest.raises(RunError, match=r"out\.txt has changed since it was written"):
            run(tmp_path, verb=verb)
    os.utime(file, ns=(written, written))
    with pytest.raises(RunError, match="has changed"):
        run(tmp_path, verb="train", verify=True)
    assert toy.ran == ["generate", "train"]
    run(tmp_path, verb="generate", force=True)
    assert run(tmp_path, verify=True) == [("generate", "fresh"), ("train", "stale")]


def test_a_failed_stage_is_shown_with_its_error(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy.fail = "train"
    with pytest.raises(RunError):
        run(tmp_path)
    facts = describe_run(tmp_path)
    assert [stage["stage"] for stage in facts["stages"]] == ["generate"]
    assert [(a["stage"], a["state"], a["error"]) for a in facts["unfinished"]] == [
        ("train", "failed", "broken on purpose")
    ]
    print_run(facts)
    assert "train: started 20" in (said := capsys.readouterr().out) and "broken on purpose" in said

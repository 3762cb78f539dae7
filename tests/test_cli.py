"""The command line answers mistakes in words, and machines in JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from potstill import cli


def potstill(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "potstill.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, "COLUMNS": "60"}
    )


def test_init_writes_a_recipe_that_parses_and_never_overwrites(tmp_path: Path) -> None:
    done = potstill("init", str(tmp_path))
    assert done.returncode == 0, done.stderr
    again = potstill("init", str(tmp_path))
    assert again.returncode == 2
    assert "is there already, and is left as it is" in again.stderr
    from potstill.recipe import load_recipe

    assert load_recipe(tmp_path / "recipe.yaml").name == "my-student"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "nothing.yaml"), "no such recipe"),
        (("run",), "Missing argument"),
        (("trian", "recipe.yaml"), "No such command"),
        (("show", "nowhere"), "not a run's folder"),
    ],
)
def test_mistakes_exit_with_2_and_no_traceback(arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    done = potstill(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mistake_in_the_recipe_names_file_key_and_fix(tmp_path: Path) -> None:
    potstill("init", str(tmp_path))
    done = potstill("run", "recipe.yaml", "trian.packing=true", cwd=tmp_path)
    assert done.returncode == 2
    assert "recipe.yaml: unknown key 'trian'; did you mean 'train'?" in done.stderr


def test_json_errors_are_one_object(tmp_path: Path) -> None:
    done = potstill("run", "nothing.yaml", "--json", cwd=tmp_path)
    error = json.loads(done.stdout.splitlines()[-1])
    assert error["event"] == "error"
    assert error["exit_code"] == 2
    assert error["fix"]


def test_a_defect_of_ours_exits_with_1_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Path) -> dict[str, object]:
        raise ZeroDivisionError

    monkeypatch.setattr("potstill.show.describe_run", broken)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["show", "x"])
    assert stopped.value.code == 1
    assert "this is a defect of potstill" in capsys.readouterr().err


def test_a_refusal_exits_with_3(monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.errors import RefusedError

    def refuse(_: Path) -> dict[str, object]:
        raise RefusedError("the licence forbids it")

    monkeypatch.setattr("potstill.show.describe_run", refuse)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["show", "x"])
    assert stopped.value.code == 3


def test_an_interruption_says_how_to_continue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("potstill.pipeline.run_recipe", interrupt)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\ndata: x.jsonl\n")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", str(recipe)])
    assert stopped.value.code == 130
    assert "the same command continues" in capsys.readouterr().err

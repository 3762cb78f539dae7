"""The command line answers mistakes in words, and machines in JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from potstill import cli
from potstill.artifacts import write_artifact
from potstill.console import Console, emit
from potstill.errors import UserError, printable


def potstill(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "potstill.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, "COLUMNS": "60"}
    )


def test_no_summary_of_a_command_is_cut_at_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


def test_init_writes_a_recipe_that_parses_and_never_overwrites(tmp_path: Path) -> None:
    done = potstill("init", str(tmp_path))
    assert done.returncode == 0, done.stderr
    again = potstill("init", str(tmp_path))
    assert again.returncode == 2
    assert "is there already, and is left as it is" in again.stderr
    from potstill.recipe import load_recipe

    assert load_recipe(tmp_path / "recipe.yaml").name == "my-student"


def test_the_package_is_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "potstill", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("potstill ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "nothing.yaml"), "no such recipe"),
        (("run",), "Missing argument"),
        (("trian", "recipe.yaml"), "No such command"),
        (("show", "nowhere"), "there is no such run"),
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


# ---- standard output that is gone or full ----------------------------------------------------------------------


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """A run whose warnings would colour a terminal, and fill a pipe."""
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    hostile = "\x1b[2J\x1b]0;owned\x07 \u202eright to left \ud800"
    with write_artifact(tmp_path, "train", "a" * 64, settings={}, inputs={}, seed=0) as work:
        for number in range(3000):
            work.warn(f"{number} {hostile} {'x' * 60}")
    return tmp_path


def piped(command: str, run: Path) -> subprocess.CompletedProcess[str]:
    script = f"set -o pipefail; {command}"
    environment = {**os.environ, "POTSTILL": f"{sys.executable} -m potstill.cli", "RUN": str(run)}
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("arguments", ["show $RUN", "show $RUN --json"])
def test_a_reader_that_leaves_ends_the_command_without_a_word(arguments: str, shown: Path) -> None:
    done = piped(f"$POTSTILL {arguments} | head -c 10 >/dev/null", shown)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("arguments", ["show $RUN", "show $RUN --json", "--version", "--help", "check --help"])
def test_a_full_disk_under_standard_output_is_a_message(arguments: str, shown: Path) -> None:
    done = piped(f"$POTSTILL {arguments} >/dev/full", shown)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output cannot be written: No space left on device\n  fix: ")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("arguments", ["show $RUN", "show $RUN --json", "--version", "--help"])
def test_closed_streams_are_no_defect(arguments: str, shown: Path) -> None:
    done = piped(f"$POTSTILL {arguments} >&-", shown)
    assert (done.returncode, done.stderr) == (0, "")
    assert piped("$POTSTILL show nowhere 2>&-", shown).returncode == 2


def test_progress_that_nobody_can_read_does_not_end_the_work(shown: Path) -> None:
    code = "from potstill.console import Console; c = Console(); c.say('a'); c.say('b'); print(c.mode)"
    for buffered in ("", "PYTHONUNBUFFERED=1 "):
        done = piped(f'env -u PYTHONUNBUFFERED {buffered}{sys.executable} -c "{code}" 2>/dev/full', shown)
        assert (done.returncode, done.stdout) == (0, "quiet\n"), buffered


def test_the_version_is_printed() -> None:
    done = potstill("--version")
    assert (done.returncode, done.stdout) == (0, f"potstill {metadata.version('potstill')}\n")


# ---- text of models and servers on a terminal ------------------------------------------------------------------

HOSTILE = "a\x1b[31m\x07\x9b2J\x00\r\x7f\u202e\u2066\u2028\ud800\U000e0041b\tc\nd"
CLEANED = r"a\x1b[31m\x07\x9b2J\x00\r\x7f\u202e\u2066\u2028\ud800\U000e0041b".replace(r"\r", r"\x0d") + "\tc\nd"


def test_nothing_that_is_printed_controls_the_terminal(capsys: pytest.CaptureFixture[str], shown: Path) -> None:
    assert printable(HOSTILE) == CLEANED
    assert printable("naïve 日本語 👍🏽 e\u0301 a\u200db\r\n") == "naïve 日本語 👍🏽 e\u0301 a\u200db\n"
    assert str(UserError(HOSTILE, where=HOSTILE, fix=HOSTILE)).count(CLEANED) == 3
    console = Console("lines")
    console.say(HOSTILE)
    console.warn(HOSTILE)
    with console.task(HOSTILE, total=1, unit=HOSTILE) as task:
        task.advance(1, note=HOSTILE)
    emit(HOSTILE)
    done = potstill("show", str(shown))
    printed = "".join(capsys.readouterr()) + done.stdout + done.stderr
    assert CLEANED in printed and "owned" in printed
    assert printed == printable(printed)


def test_a_preview_shows_what_a_model_wrote_and_runs_none_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    potstill("init", str(tmp_path))
    monkeypatch.setattr("potstill.generate.preview.preview", lambda *_: {})
    monkeypatch.setattr("potstill.generate.preview.preview_text", lambda _: HOSTILE)
    monkeypatch.setattr("potstill.pipeline.prepare_models", lambda *_: None)
    with pytest.raises(SystemExit):
        cli.main(["generate", str(tmp_path / "recipe.yaml"), "--preview", "1", "--run", str(tmp_path / "run")])
    assert capsys.readouterr().out == CLEANED + "\n"


def test_bars_show_labels_and_notes_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with Console("bars").task("[red]a\x1b[31m", total=2, unit="tokens") as task:
        task.advance(1, note="[/nothing]\x07")
    printed = capsys.readouterr().err
    assert r"\x1b[31m" in printed and r"[/nothing]\x07" in printed.replace("\n", "")

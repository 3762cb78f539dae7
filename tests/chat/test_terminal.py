"""The terminal: cleaned text, two columns where there is room, one answer where there is nobody."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from potstill.chat import terminal
from potstill.types import Sampling
from tiny_models import make_tiny_causal_lm

HOSTILE = "red \x1b[31m and a title \x1b]0;owned\x07 and \u202eback"


class Scripted:
    def __init__(self, role: str, text: str) -> None:
        self.role, self.text, self.heard = role, text, []

    def answer(self, text: str, sampling: Sampling, seed: int) -> Generator[str, None, None]:
        self.heard.append((text, seed))
        yield from self.text

    def forget(self) -> None:
        self.heard.append("forgot")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [30, 100])
def test_a_models_text_cannot_drive_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    both = [Scripted("student", HOSTILE), Scripted("teacher", HOSTILE)]
    terminal.show(both, "?", Sampling(9), 0)  # type: ignore[arg-type]
    shown = screen.getvalue()
    assert "\x1b[31m" not in shown and "\x1b]0;" not in shown and "\u202e" not in shown
    assert "\\x1b[31m" in shown.replace("\n", "")


def test_wide_terminals_have_columns_and_narrow_ones_one_text_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(columns: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "stdout", screen := Terminal())
        both = [Scripted("student", "left " * 30), Scripted("teacher", "right " * 30)]
        terminal.show(both, "?", Sampling(9), 0)  # type: ignore[arg-type]
        monkeypatch.setattr(sys, "stdout", sys.__stdout__)
        return screen.getvalue().splitlines()

    assert any("left" in line and "right" in line for line in shown(terminal.COLUMNS_FROM))
    assert not any("left" in line and "right" in line for line in shown(terminal.COLUMNS_FROM - 1))


def test_one_typed_history_goes_to_both(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["first", "", "/new", "second"])

    def read(_: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    both = [Scripted("student", "a"), Scripted("teacher", "b")]
    terminal.talk(both, Sampling(9), 0)  # type: ignore[arg-type]
    assert both[0].heard == both[1].heard
    assert [one if isinstance(one, str) else one[0] for one in both[0].heard] == ["first", "forgot", "second"]


def test_ctrl_c_ends_an_answer_and_not_the_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(Scripted):
        def answer(self, text: str, sampling: Sampling, seed: int) -> Generator[str, None, None]:
            yield "half"
            raise KeyboardInterrupt

    typed = iter(["one", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    terminal.talk([Interrupted("student", "")], Sampling(9), 0)  # type: ignore[list-item]
    assert capsys.readouterr().out.endswith("half\n(stopped)\n")


def potstill(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "potstill.cli", "chat", *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


def test_without_a_terminal_one_text_is_answered(tmp_path: Path) -> None:
    model = str(make_tiny_causal_lm(tmp_path / "model"))
    given = potstill(model, "--tokens", "5", "--json", given="hello")
    assert given.returncode == 0, given.stderr
    answer = json.loads(given.stdout.splitlines()[-1])["student"]
    as_argument = potstill(model, "hello", "--tokens", "5", "--quiet")
    assert as_argument.stdout.rstrip("\n") == answer or "\\x" in as_argument.stdout
    nothing = potstill(model, given=" \n")
    assert nothing.returncode == 2 and "nothing to answer" in nothing.stderr


def test_on_a_terminal_it_asks_answers_and_ends(tmp_path: Path) -> None:
    model = make_tiny_causal_lm(tmp_path / "model")
    there, ours = pty.openpty()
    command = [sys.executable, "-m", "potstill.cli", "chat", str(model), "--tokens", "4"]
    process = subprocess.Popen(command, stdin=ours, stdout=ours, stderr=ours, close_fds=True)
    os.close(ours)
    seen, typed = b"", [b"hello\n", b"\x04"]
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            seen += os.read(there, 4096)
        except OSError:  # the other end is closed
            break
        if typed and seen.count(b"\n> ") > 2 - len(typed):
            os.write(there, typed.pop(0))
    assert process.wait(10) == 0, seen
    assert seen.count(b"> ") >= 2
    assert b"Traceback" not in seen

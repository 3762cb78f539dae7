"""The verifier of Python programs, by the record's tests, in a sandbox."""

from __future__ import annotations

import ast
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.recipe.verify import PythonTests
from potstill.registry import implements
from potstill.types import Record, Verdict
from potstill.verify.answer_extraction import without_reasoning
from potstill.verify.base import BaseVerifier, shown
from potstill.verify.sandbox import Run, Sandbox

_FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)
_PYTHON = ("python", "py", "python3", "")

RUNNER = """
import json, os, sys

def _main():
    task = json.loads(sys.stdin.readline())
    out, token = os.dup(1), task["token"]
    def say(*said):
        os.write(out, ("\\n" + token + json.dumps(said) + "\\n").encode())
    with open("/program/candidate.py", encoding="utf-8") as file:
        source = file.read()
    scope = {"__name__": "candidate"}
    at = "the program itself"
    try:
        exec(compile(source, "candidate.py", "exec"), scope)
        for number, test in enumerate(task["tests"], 1):
            at = "test %d" % number
            exec(compile(test, "tests.py", "exec"), scope)
        if task["entry_point"]:
            scope["check"](scope[task["entry_point"]])
    except BaseException as error:
        say("failed", at, type(error).__name__, str(error)[:200])
    else:
        say("passed")
    os._exit(0)

_main()
"""


@implements(PythonTests)
class PythonTestsVerifier(BaseVerifier[PythonTests]):
    """Accepts a program that passes all of its tests. What it prints or returns on the way does not pass for having
    passed: the runner says so itself, with a token that it is given, after the last test. The walls protect the
    machine;
    a program that sets out to deceive its tests (an object that is equal to everything) is not caught.

    It cannot judge where the record has no tests, or tests that test nothing.

    Raises:
        RunError: no sandbox works here, and `unsafe` is not set.
    """

    def __init__(self, settings: PythonTests) -> None:
        super().__init__(settings)
        self.sandbox = Sandbox(settings.sandbox)

    @property
    def version(self) -> str:
        return f"{self.contract}+{self.sandbox.method}"

    guarded = False  # a sandbox that does not start concerns the run

    def judge(self, record: Record, completion: str) -> Verdict:
        tests = record.metadata.get(self._settings.tests)
        several: list[Any] = (
            [tests] if isinstance(tests, (str, Mapping)) else list(tests) if isinstance(tests, Sequence) else []
        )
        if not several:
            return self.cannot_judge(f"the record has no tests in metadata[{self._settings.tests!r}]")
        program = program_in(completion, self._settings.block)
        if not program.strip():
            return self.reject("no program was written")
        try:
            ast.parse(program)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return self.reject(f"not a program: {error}")
        if all(isinstance(t, Mapping) for t in several):
            return self._by_output(program, several)
        if not all(isinstance(t, str) for t in several):
            return self.cannot_judge("tests are all texts, or all {input, output}")
        return self._by_assertion(program, several, str(record.metadata.get("entry_point") or ""))

    def _by_assertion(self, program: str, tests: list[str], entry_point: str) -> Verdict:
        for number, test in enumerate(tests, 1):
            try:
                tested = tests_something(test) or bool(entry_point)
            except SyntaxError as error:
                return self.cannot_judge(f"test {number} is no Python: {error}")
            if not tested:
                return self.cannot_judge(f"test {number} tests nothing: {shown(test)}")
        token = secrets.token_hex(16)
        task = json.dumps({"token": token, "tests": tests, "entry_point": entry_point}) + "\n"
        files = {"candidate.py": program, "runner.py": RUNNER}
        run = self.sandbox.run([self.sandbox.python, "-I", "/program/runner.py"], files, task)
        said = re.findall(rf"^{token}(.*)$", run.out, re.MULTILINE)
        if run.stopped:
            return self.reject(run.stopped)
        if not said:
            return self.reject(f"it ended before its tests did ({_status(run)})")
        outcome, *rest = json.loads(said[-1])
        if outcome == "passed":
            return self.accept(f"passed {len(tests)} {'test' if len(tests) == 1 else 'tests'}", 1.0)
        where, kind, message = rest
        return self.reject(f"{where}: {kind}{': ' + shown(message) if message else ''}")

    def _by_output(self, program: str, tests: list[Mapping[str, Any]]) -> Verdict:
        for number, test in enumerate(tests, 1):
            if not {"input", "output"} <= test.keys():
                return self.cannot_judge(f"test {number} has no input or no output")
        command = [self.sandbox.python, "-I", "/program/candidate.py"]
        for number, test in enumerate(tests, 1):
            run = self.sandbox.run(command, {"candidate.py": program}, _text(test["input"]))
            if run.stopped:
                return self.reject(f"test {number}: {run.stopped}", (number - 1) / len(tests))
            if run.status:
                last = (run.err.strip().splitlines() or [""])[-1]
                return self.reject(f"test {number}: {_status(run)} {shown(last)}", (number - 1) / len(tests))
            if _lines(run.out) != _lines(_text(test["output"])):
                reason = f"test {number}: printed {shown(run.out)}, not {shown(_text(test['output']))}"
                return self.reject(reason, (number - 1) / len(tests))
        return self.accept(f"passed {len(tests)} {'test' if len(tests) == 1 else 'tests'}", 1.0)


def program_in(text: str, block: str) -> str:
    """The Python of a text: of its fenced blocks the last, the first, or all; the whole text where there is none."""
    said = without_reasoning(text)
    found: list[str] = [body for _, language, body in _FENCED.findall(said) if language.lower() in _PYTHON]
    if not found:
        return "" if _FENCED.search(said) else said
    return {"last": found[-1], "first": found[0], "all": "\n".join(found)}[block]


def tests_something(test: str) -> bool:
    """Whether a test does anything when it is run, beyond defining, importing and assigning.

    Raises:
        SyntaxError: it is no Python.
    """
    idle = (
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ClassDef,
        ast.Import,
        ast.ImportFrom,
        ast.Assign,
        ast.AnnAssign,
        ast.Pass,
    )
    statements = [s for s in ast.parse(test).body if not isinstance(s, idle)]
    return any(not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)) for s in statements)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _status(run: Run) -> str:
    return f"killed by signal {-run.status}" if run.status < 0 else f"status {run.status}"

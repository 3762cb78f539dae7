"""Verifier of Python programs, by the record's tests, in sandboxes.

Assertions run in one sandbox and the program in another. The program's process never receives an expected value, and
takes no part in the comparison or the verdict: see `program_tests.py`.
"""

from __future__ import annotations

import ast
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.recipe.verify import PythonTests
from potstill.registry import implements
from potstill.types import Record, Verdict
from potstill.verify.answer_extraction import fenced_blocks, without_reasoning
from potstill.verify.base import BaseVerifier, shown
from potstill.verify.sandbox import Program, Run, Sandbox

_PYTHON = ("python", "py", "python3", "")

_HERE = Path(__file__)
_IMPORTS_WIRE = re.compile(r"^from potstill\.verify\.program_wire import .*\n|^from __future__ .*\n", re.MULTILINE)


def _script(name: str) -> str:
    """The script of one side, preceded by the protocol: our modules are not installed in the sandbox."""
    wire, side = (_HERE.with_name(n).read_text(encoding="utf-8") for n in ("program_wire.py", name))
    return wire + _IMPORTS_WIRE.sub("", side)


TESTS_SIDE, CANDIDATE_SIDE = _script("program_tests.py"), _script("program_candidate.py")


@implements(PythonTests)
class PythonTestsVerifier(BaseVerifier[PythonTests]):
    """Accepts a program that passes all of its tests, if at least one assertion has run. Functions `test_…` and test
    cases that the tests do not call themselves are called.

    It cannot judge if the record has no tests, if no assertion runs, or if the tests compare an object of the program
    with a value, since the program would decide that comparison.

    Raises:
        RunError: no sandbox works here, and `unsafe` is not set.
    """

    def __init__(self, settings: PythonTests) -> None:
        super().__init__(settings)
        self.sandbox = Sandbox(settings.sandbox)

    @property
    def version(self) -> str:
        return f"{self.contract}+{self.sandbox.method}"

    contract = 6
    guarded = False  # a sandbox that does not start concerns the run

    def judge(self, record: Record, completion: str) -> Verdict:
        tests = record.metadata.get(self._settings.tests)
        several: list[Any] = (
            [tests] if isinstance(tests, (str, Mapping)) else list(tests) if isinstance(tests, Sequence) else []
        )
        if not several:
            return self.cannot_judge(f"the record has no tests in metadata[{self._settings.tests!r}]")
        by_output = all(isinstance(t, Mapping) for t in several)
        program = program_in(completion, self._settings.block, defines=not by_output)
        if not program.strip():
            return self.reject("no program was written")
        try:
            ast.parse(program)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return self.reject(f"not a program: {error}")
        if by_output:
            return self._by_output(program, several)
        if not all(isinstance(t, str) for t in several):
            return self.cannot_judge("tests are all texts, or all {input, output}")
        return self._by_assertion(program, several, str(record.metadata.get("entry_point") or ""))

    def _by_assertion(self, program: str, tests: list[str], entry_point: str) -> Verdict:
        for number, test in enumerate(tests, 1):
            try:
                ast.parse(test)
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                return self.cannot_judge(f"test {number} is no Python: {error}")
        token = secrets.token_hex(16)
        task = json.dumps({"token": token, "tests": tests, "entry_point": entry_point})
        python = [self.sandbox.python, "-I"]
        run = self.sandbox.run_pair(
            Program([*python, "/program/tests.py"], {"tests.py": TESTS_SIDE, "tests.json": task}),
            Program([*python, "/program/serve.py"], {"serve.py": CANDIDATE_SIDE, "candidate.py": program}),
        )
        said = re.findall(rf"^{token}(.*)$", run.err, re.MULTILINE)
        if run.stopped:
            return self.reject(run.stopped)
        if not said:
            return self.reject(f"the tests ended early ({_status(run)})")
        outcome, where, kind, message, assertions = json.loads(said[-1])
        if outcome == "undecidable":
            return self.cannot_judge(f"{where}: {message}")
        if outcome == "ended":
            return self.reject(f"{where}: the program ended before its tests did")
        if outcome != "passed":
            return self.reject(f"{where}: {kind}{': ' + shown(message) if message else ''}")
        if not assertions:
            return self.cannot_judge("no assertion of the tests has run")
        return self.accept(f"{assertions} {'assertion' if assertions == 1 else 'assertions'} passed", 1.0)

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


_DEFINES = re.compile(r"^(?:async\s+def|def|class)\s|^\w+\s*=\s*lambda\b", re.MULTILINE)


def program_in(text: str, block: str, *, defines: bool = False) -> str:
    """The Python in a text: the last, the first, or all of its fenced blocks; the whole text if it has none.

    Args:
        defines: take the last block that defines something, if any: later blocks are examples of its use, or their
            output.
    """
    said = without_reasoning(text)
    blocks = fenced_blocks(said)
    found = [body for language, body in blocks if language in _PYTHON]
    if not found:
        return "" if blocks else said
    defining = [body for body in found if _DEFINES.search(body)] if defines else []
    if block == "last" and defining:
        last = len(found) - 1 - found[::-1].index(defining[-1])
        return _with_helpers(found[: last + 1])
    return {"last": found[-1], "first": found[0], "all": "\n".join(found)}[block]


def _with_helpers(blocks: Sequence[str]) -> str:
    """The last block, after those earlier ones that define a name which it reads and does not define itself: a helper
    is often written in a block of its own."""
    taken = [blocks[-1]]
    defined, read = _names_in(blocks[-1])
    for earlier in reversed(blocks[:-1]):
        theirs, needed = _names_in(earlier)
        if theirs & (read - defined):
            taken.insert(0, earlier)
            defined, read = defined | theirs, read | needed
    return "\n".join(taken)


def _names_in(program: str) -> tuple[set[str], set[str]]:
    """The names that a program defines at its top level, and all names that it reads. Empty if it is no Python."""
    try:
        tree = ast.parse(program)
        nodes = list(ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set(), set()
    defined = {
        name
        for node in tree.body
        for name in (
            [node.name]
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            else [alias.asname or alias.name.partition(".")[0] for alias in node.names]
            if isinstance(node, (ast.Import, ast.ImportFrom))
            else [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        )
    }
    return defined, {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _status(run: Run) -> str:
    return f"killed by signal {-run.status}" if run.status < 0 else f"status {run.status}"

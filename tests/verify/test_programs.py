# ruff: noqa: E501  # programs as their authors write them
"""Tests decide in a process of their own: no program passes without doing what its tests ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from potstill.recipe.verify import PythonTests, SandboxSettings
from potstill.types import Record
from potstill.verify import Verifier, open_verifier
from potstill.verify.sandbox import why_not

if why_not("bubblewrap") is not None and why_not("unshare") is not None:
    pytest.skip("no sandbox works here", allow_module_level=True)

ADD = ["assert add(2, 3) == 5", "assert add(-1, 1) == 0"]

CHEATS = {
    "exits with success": "import sys\nsys.exit(0)",
    "exits when called": "import os\ndef add(a, b): os._exit(0)",
    "equals everything": "class E:\n    def __eq__(self, other): return True\ndef add(a, b): return E()",
    "a subclass of int": "class I(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
    "def add(a, b): return I(9)",
    "a subclass of str": "class S(str):\n    def __eq__(self, other): return True\n    __hash__ = str.__hash__\n"
    "def add(a, b): return S('9')",
    "patches AssertionError": "import builtins\nbuiltins.AssertionError = type('Never', (Exception,), {})\n"
    "def add(a, b): return 9",
    "patches built-in functions": "import builtins\nbuiltins.__dict__.update(all=lambda *a: True, isinstance=lambda *a: True)\n"
    "def add(a, b): return 9",
    "patches unittest": "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\n"
    "unittest.main = lambda *a, **k: None\ndef add(a, b): return 9",
    "registers an exit handler": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef add(a, b): return 9",
    "traces the tests": "import sys\ndef trace(frame, event, arg):\n    frame.f_locals.clear()\n    return trace\n"
    "sys.settrace(trace)\ndef add(a, b): return 9",
    "looks for the expected value in frames": "import sys\ndef add(a, b):\n    frame = sys._getframe()\n    while frame:\n"
    "        for constants in [frame.f_code.co_consts]:\n            for one in constants:\n"
    "                if type(one) is int and one in (5, 0): return one\n        frame = frame.f_back\n    return 9",
    "looks for the expected value in all objects": "import gc\ndef add(a, b):\n    for one in gc.get_objects():\n"
    "        if isinstance(one, list) and any('assert add' in str(x) for x in one[:9]): return 5 if a == 2 else 0\n"
    "    return 9",
    "prints the marker of success": "import os, sys\nfor out in (0, 1, 2, 3, 4, 5, 6):\n    try: os.write(out, b'passed\\n')\n"
    "    except OSError: pass\ndef add(a, b): return 9",
    "answers in the runner's place": "import os, json\nfor out in range(3, 9):\n    try: os.write(out, json.dumps(['!', 'value',"
    " [], []]).encode() + b'\\n')\n    except OSError: pass\nos._exit(0)",
    "stops from a thread": "import os, threading\nthreading.Timer(0.05, lambda: os._exit(0)).start()\n"
    "def add(a, b):\n    import time; time.sleep(1)\n    return 9",
    "stops from a signal": "import os, signal\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\n"
    "signal.setitimer(signal.ITIMER_REAL, 0.05)\ndef add(a, b):\n    import time; time.sleep(1)\n    return 9",
    "replaces __import__": "import builtins\nbuiltins.__import__ = lambda *a, **k: type('M', (), {'__getattr__': lambda s, n: 1})()\n"
    "def add(a, b): return 9",
    "changes the tests' globals": "import sys\nfor module in list(sys.modules.values()):\n    if module is not None:\n"
    "        module.__dict__['add'] = lambda a, b: 5\ndef add(a, b): return 9",
    "redefines the runner": "import __main__\n__main__.handle = lambda content: ['value', True, []]\n"
    "__main__.wire.serve = lambda content: __main__.wire.send(['!', 'value', True, []])\ndef add(a, b): return 9",
    "raises AssertionError's opposite": "def add(a, b): raise SystemExit(0)",
    "raises a skip": "import unittest\ndef add(a, b): raise unittest.SkipTest('skip me')",
    "reads the tests' file": "import glob\ntext = ''.join(open(f, errors='ignore').read() for f in glob.glob('/program/*.json')"
    " + glob.glob('/tmp/*'))\nassert 'assert add' in text\ndef add(a, b): return 5 if a == 2 else 0",
    "reads the tests' process": "import glob\nfound = False\nfor name in glob.glob('/proc/*/cmdline'):\n"
    "    found |= b'tests.py' in open(name, 'rb').read()\nassert found\ndef add(a, b): return 5 if a == 2 else 0",
}


LIES = {
    "subtracts to nothing": ("__sub__(self, o): return 0", "assert abs(add(2, 3) - 5) < 1e-9"),
    "is subtracted to nothing": ("__rsub__(self, o): return 0", "assert abs(5 - add(2, 3)) < 1e-9"),
    "leaves no remainder": ("__mod__(self, o): return 0", "assert add(2, 3) % 5 == 0"),
    "contains everything": ("__contains__(self, o): return True", "assert 5 in add(2, 3)"),
    "starts with everything": ("startswith(self, o): return True", "assert add(2, 3).startswith('5')"),
    "counts one of everything": ("count(self, o): return 1", "assert add(2, 3).count(5) == 1"),
}


@pytest.mark.parametrize("how", LIES)
@pytest.mark.parametrize("base", ["object", "str", "list"])
def test_an_object_in_the_place_of_a_value_decides_nothing(verifier: Verifier, how: str, base: str) -> None:
    method, test = LIES[how]
    program = f"class Lie({base}):\n    def {method}\ndef add(a, b): return Lie()"
    assert outcome(verifier, program, test) != "accept"


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with open_verifier(PythonTests(sandbox=SandboxSettings(wall_seconds=30.0))) as opened:
        yield opened


def outcome(verifier: Verifier, program: str, tests: Any, **more: Any) -> str:
    verdict = verifier.verify(Record(prompt="?", metadata={"tests": tests, **more}), f"```python\n{program}\n```")
    print(verdict.reason)
    return verdict.outcome


@pytest.mark.parametrize("how", CHEATS)
def test_a_program_that_cheats_is_not_accepted(verifier: Verifier, how: str) -> None:
    assert outcome(verifier, CHEATS[how], ADD) != "accept"


def test_cheats_do_not_pass_test_cases_either(verifier: Verifier) -> None:
    tests = (
        "import unittest\nclass TestAdd(unittest.TestCase):\n"
        "    def test_one(self): self.assertEqual(add(2, 3), 5)\n    def test_two(self): self.assertTrue(add(2, 3) == 5)\n"
        "unittest.main()"
    )
    assert outcome(verifier, "def add(a, b): return a + b", tests) == "accept"
    for how in ("equals everything", "a subclass of int", "patches unittest", "raises a skip", "exits when called"):
        assert outcome(verifier, CHEATS[how], tests) != "accept", how


RIGHT = {
    "names of another module": (
        "import math\ndef area(r): return math.pi * r * r",
        "assert math.isclose(area(1), math.pi)",
    ),
    "a list changed in place": ("def order(xs): xs.sort()", "xs = [3, 1, 2]\norder(xs)\nassert xs == [1, 2, 3]"),
    "rows changed in place": (
        "def clear(g): g[0][1] = 0",
        "row = [1, 2]\ng = [row, [3]]\nclear(g)\nassert row == [1, 0]",
    ),
    "the same object back": ("def same(x): return x", "xs = [1]\nassert same(xs) is xs"),
    "a function of the tests": ("def twice(f, x): return f(f(x))", "assert twice(lambda x: x + 1, 3) == 5"),
    "a generator": ("def up(n):\n    yield from range(n)", "assert list(up(3)) == [0, 1, 2]"),
    "a closure": ("def adder(n): return lambda x: x + n", "assert adder(2)(3) == 5"),
    "an exception of its own": (
        "class Bad(ValueError): pass\ndef f(): raise Bad('no')",
        "try:\n    f()\n    assert False\nexcept Bad as error:\n    assert str(error) == 'no' and isinstance(error, ValueError)",
    ),
    "an instance of its class": (
        "class P:\n    def __init__(self, x): self.x = x\n    def __eq__(self, o): return self.x == o.x\n"
        "    def __add__(self, o): return P(self.x + o.x)",
        "assert P(1) + P(2) == P(3)\nassert isinstance(P(1), P)\nassert (P(1) + P(1)).x == 2",
    ),
    "a list of its own kind": (
        "class Stack(list):\n    def push(self, x): self.append(x)",
        "s = Stack()\ns.push(4)\nassert s == [4] and len(s) == 1 and s[0] == 4",
    ),
    "a named tuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef make(): return P(1, 2)",
        "assert make() == (1, 2) and make().y == 2",
    ),
    "objects of the tests": (
        "def depth(n): return 0 if n is None else 1 + max(depth(n.left), depth(n.right))",
        "class Node:\n    def __init__(self, left=None, right=None): self.left, self.right = left, right\n"
        "assert depth(Node(Node(), Node(Node()))) == 3",
    ),
    "a built-in name": ("def sum(a, b): return a + b", "assert sum(1, 2) == 3"),
    "dictionaries, sets and big numbers": (
        "def f(n): return {'big': 10 ** n, (1, 2): {1, 2}, 'half': 0.5, 'b': b'x'}",
        "assert f(5000) == {'big': 10 ** 5000, (1, 2): {1, 2}, 'half': 0.5, 'b': b'x'}",
    ),
    "test functions that nothing calls": ("def inc(x): return x + 1", "def test_inc():\n    assert inc(1) == 2"),
    "coroutines": (
        "import asyncio\nasync def double(x):\n    await asyncio.sleep(0)\n    return 2 * x",
        "import asyncio\nassert asyncio.run(double(2)) == 4\nasync def main():\n    assert await double(3) == 6\n"
        "asyncio.run(main())",
    ),
    "what is printed": (
        "def greet(name): print('Hello,', name)",
        "import io\nfrom contextlib import redirect_stdout\nout = io.StringIO()\nwith redirect_stdout(out):\n"
        "    greet('Bo')\nassert out.getvalue() == 'Hello, Bo\\n'",
    ),
    "pytest's parametrize, raises and approx": (
        "def half(x):\n    if x < 0: raise ValueError('negative')\n    return x / 2",
        "import pytest\n@pytest.mark.parametrize('x, expected', [(4, 2), (3, 1.5)])\n"
        "def test_half(x, expected):\n    assert half(x) == pytest.approx(expected)\n"
        "def test_negative():\n    with pytest.raises(ValueError, match='neg'):\n        half(-1)",
    ),
    "operators of a class that the tests name": (
        "class Money:\n    def __init__(self, x): self.x = x\n    def __sub__(self, y): return self.x - y\n"
        "    def __contains__(self, y): return y < self.x",
        "assert Money(5) - 3 == 2\nassert 4 in Money(5) and 6 not in Money(5)",
    ),
    "a class of test methods": (
        "def inc(x): return x + 1",
        "class TestInc:\n    def test_it(self):\n        assert inc(1) == 2",
    ),
}


@pytest.mark.parametrize("what", RIGHT)
def test_a_right_program_is_accepted_and_a_wrong_one_is_not(verifier: Verifier, what: str) -> None:
    program, tests = RIGHT[what]
    assert outcome(verifier, program, tests) == "accept"
    assert outcome(verifier, "def unrelated(): pass", tests) != "accept"


@pytest.mark.parametrize(
    ("tests", "more"),
    [
        ("x = 1", {}),
        ("def helper():\n    assert False", {}),
        ("for x in []:\n    assert x", {}),
        ("pass", {"entry_point": "add"}),
        ("import no_such_module\nassert add(1, 1) == 2", {}),
        ("assert add(", {}),
    ],
)
def test_tests_that_assert_nothing_cannot_judge(verifier: Verifier, tests: str, more: dict[str, Any]) -> None:
    assert outcome(verifier, "def add(a, b): return a + b", tests, **more) == "cannot_judge"


def test_a_check_that_the_program_defines_is_not_asked(verifier: Verifier) -> None:
    tests = "def check(f):\n    assert f(2) == 4\n"
    assert outcome(verifier, "def check(f): pass\ndef double(x): return 0", tests, entry_point="double") == "reject"
    assert (
        outcome(verifier, "def check(f): pass\ndef double(x): return 0", "ready = 1", entry_point="double") != "accept"
    )


def test_a_function_of_the_tests_leads_nowhere_else(verifier: Verifier) -> None:
    program = (
        "def apply(f):\n    for name in ('__globals__', 'gi_frame', 'f_globals', '__code__', '__class__'):\n"
        "        try:\n            getattr(f, name)\n            return name\n        except Exception: pass\n    return 'nothing'"
    )
    program = program.replace("'__class__'", "'__closure__'")
    assert outcome(verifier, program, "assert apply(lambda: 5) == 'nothing'") == "accept"


def test_an_object_is_not_asked_whether_it_is_what_was_expected(verifier: Verifier) -> None:
    program = "class F:\n    def __eq__(self, o): return True\ndef f(): return F()"
    assert outcome(verifier, program, "assert f() == 3") == "cannot_judge"

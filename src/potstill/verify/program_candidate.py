"""The candidate's process: runs the program and serves its functions and objects. Follows `program_wire.py`.

Nothing here is trusted. The program may replace all of it; it can only send values, exceptions, and requests to call
functions that it was given. Expected values are never sent here.
"""

from __future__ import annotations

import builtins
import operator
import os
import sys
import types
from typing import Any

from potstill.verify.program_wire import OPERATIONS, Ended, Wire, own_streams


class Local:
    """An object or a function of the tests, as the program sees it."""

    def __init__(self, number: Any) -> None:
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: Any) -> Any:
        return asked("get", self, name)

    def __setattr__(self, name: Any, value: Any) -> None:
        asked("set", self, name, value)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return asked("call", self, arguments, named)

    def __str__(self) -> Any:
        return asked("str", self)

    def __eq__(self, other: Any) -> Any:
        return asked("eq", self, other)

    def __hash__(self) -> Any:
        return hash(self._number)

    def __lt__(self, other: Any) -> Any:
        return asked("lt", self, other)

    def __len__(self) -> Any:
        return asked("len", self)

    def __iter__(self) -> Any:
        return iter(asked("list", self))

    def __getitem__(self, key: Any) -> Any:
        return asked("getitem", self, key)


class _Wire(Wire):
    def described(self, value: Any) -> Any:
        base = next((kind for kind in PLAIN_BASES if isinstance(value, kind)), None)
        if isinstance(value, type):
            return ["class", lineage(value), None]
        kind = "function" if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)) else "object"
        return [kind, type(value).__name__, None if base is None else plain(value, base)]


PLAIN_BASES: dict[Any, Any] = {
    int: int.__index__,
    float: float.__float__,
    str: str.__str__,
    tuple: lambda value: tuple(tuple.__iter__(value)),
    list: lambda value: list(list.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    bytes: lambda value: bytes(bytes.__iter__(value)),
}


def plain(value: Any, base: Any) -> Any:
    """The content of an object of a subclass of a built-in type, bypassing methods that the subclass overrides."""
    return wire.encode(PLAIN_BASES[base](value))


def lineage(kind: Any) -> Any:
    """Module, name and, for the program's own classes, number of a class and its bases."""
    return [
        [one.__module__, one.__qualname__, wire.number(one) if one.__module__ == MODULE else None]
        for one in kind.__mro__
    ]


def raised(error: Any) -> Any:
    """An exception as a reply."""
    try:
        text = str(error)[:300]
    except BaseException:  # noqa: BLE001  # its `__str__` belongs to the program
        text = ""
    try:
        arguments = [wire.encode(one) for one in list(error.args)[:10]]
    except BaseException:  # noqa: BLE001  # as above
        arguments = []
    return ["raised", lineage(type(error)), arguments, text, wire.number(error)]


def result(value: Any, given: Any = ()) -> Any:
    """A value as a reply, with the final content of the lists, sets and mappings that the call received."""
    for place, (one, _) in enumerate(given):
        if value is one and type(one) in (list, dict, set, bytearray):
            return ["same", place, changes(given), printed()]
    return ["value", wire.encode(value), changes(given), printed()]


MOST_PRINTED = 1_000_000
"""Maximum characters of a call's output that are sent."""


class Printed:
    """Standard output of the program: kept until the next reply, for tests that check what is printed."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.parts: list[str] = []

    def write(self, text: Any) -> Any:
        self.parts.append(str(text))
        return len(text)

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def isatty(self) -> Any:
        return False


def printed() -> Any:
    """What the program has printed since the last reply."""
    text = "".join(output.parts)[:MOST_PRINTED]
    output.parts.clear()
    return text


def changes(given: Any) -> Any:
    """The arguments that the call has changed, by position."""
    changed = []
    for place, (one, before) in enumerate(given):
        if type(one) in (list, dict, set, bytearray):
            after = wire.encode(one)
            if after != before:
                changed.append([place, after])
    return changed


def handle(content: Any) -> Any:
    """Answer a request of the tests."""
    try:
        what, *arguments = content
        if what == "names":
            return names(*arguments)
        if what == "call":
            function, arguments, named = (decoded(one) for one in arguments)
            given = [(one, wire.encode(one)) for one in arguments]
            return result(function(*arguments, **named), given)
        subject, *others = (decoded(one) for one in arguments)
        if what == "get":
            return result(getattr(subject, *others))
        if what == "set":
            setattr(subject, *others)
            return result(None)
        if what == "await":
            import asyncio

            async def awaited() -> Any:
                return await subject

            return result(asyncio.run(awaited()))
        if what == "plain":
            base = next(kind for kind in PLAIN_BASES if isinstance(subject, kind))
            return ["value", plain(subject, base), []]
        if what == "builtin":
            name, *others = others
            return result(getattr(builtins, name)(subject, *others))
        if what in OPERATIONS:
            return result(getattr(operator, what)(subject, *others))
        raise NotImplementedError(what)
    except Ended:
        raise
    except BaseException as error:  # noqa: BLE001  # it is sent on
        return raised(error)


def names(wanted: Any) -> Any:
    """Run the program, then send the names that the tests use."""
    with open("/program/candidate.py", encoding="utf-8", errors="surrogatepass") as file:
        source = file.read()
    exec(compile(source, "candidate.py", "exec"), program.__dict__)
    found = []
    for name in wanted:
        if name in program.__dict__:
            value = program.__dict__[name]
            module = value.__name__ if isinstance(value, types.ModuleType) else None
            found.append([name, ["module", module] if module else wire.encode(value)])
    return ["value", found, []]


def decoded(message: Any) -> Any:
    return wire.decode(message, lambda number: locals_.setdefault(number, Local(number)))


def asked(what: Any, subject: Any, *arguments: Any) -> Any:
    """Send the tests' process a request about one of its objects."""
    number = object.__getattribute__(subject, "_number")
    kind, *content = wire.request(what, number, *(wire.encode(one) for one in arguments))
    if kind == "raised":
        name, text = content
        error = getattr(builtins, name, None)
        raise (error if isinstance(error, type) and issubclass(error, Exception) else RuntimeError)(text)
    return decoded(content[0])


def theirs(value: Any) -> Any:
    """The number of an object of the tests."""
    return object.__getattribute__(value, "_number") if type(value) is Local else None


MODULE = "candidate"
program = types.ModuleType(MODULE)
sys.modules[MODULE] = program
locals_: dict[int, Local] = {}
output = Printed()
sys.stdout = output
wire = _Wire(own_streams(), handle, theirs)
os.dup2(0, 2)
try:
    while True:
        _, *request = wire.receive()
        wire.serve(request)
except Ended:
    os._exit(0)

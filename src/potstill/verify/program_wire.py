"""Messages between tests and candidate: values, and references to objects that stay in their own process.

Sent into the sandbox as text, before `program_tests.py` or `program_candidate.py`, so it uses the standard library
only. A message is one line of JSON. A plain value is sent by content. Any other object stays in its process and is sent
as a number, by which the other side requests its attributes or calls it.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import fractions
import json
import os
import sys
from typing import Any

MOST_DEPTH = 60

OPERATIONS = frozenset(
    """add sub mul truediv floordiv mod pow matmul and_ or_ xor lshift rshift neg pos abs_ invert eq ne lt le gt ge
    getitem setitem delitem contains""".split()
)
"""Operations on objects of the other side, by their names in the module `operator`."""


class Ended(BaseException):
    """The other side closed the connection or sent a malformed message."""


class Wire:
    """One end of the connection. `objects` are our objects that the other side knows by number."""

    def __init__(self, streams: Any, handle: Any, foreign: Any) -> None:
        self.incoming, self.outgoing = streams
        self.handle, self.foreign = handle, foreign
        self.objects: dict[int, Any] = {}
        self.numbers: dict[int, int] = {}

    def request(self, *message: Any) -> Any:
        """Send a request and return the other side's reply; serve its requests meanwhile."""
        self.send(["?", *message])
        while True:
            kind, *content = self.receive()
            if kind == "!":
                return content
            self.serve(content)

    def serve(self, content: Any) -> None:
        """Answer one request of the other side."""
        self.send(["!", *self.handle(content)])

    def send(self, message: Any) -> None:
        try:
            self.outgoing.write(json.dumps(message).encode() + b"\n")
            self.outgoing.flush()
        except OSError:
            raise Ended from None

    def receive(self) -> Any:
        line = self.incoming.readline()
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise Ended from None
        if not isinstance(message, list) or not message or message[0] not in ("?", "!"):
            raise Ended
        return message

    def number(self, value: Any) -> Any:
        """The number of one of our objects."""
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.numbers) + 1
            self.objects[len(self.numbers)] = value
        return self.numbers[id(value)]

    def encode(self, value: Any, depth: Any = 0) -> Any:
        """A value as JSON. Only exact types are sent by content: a subclass may have methods of its own."""
        kind: Any = type(value)
        if value is None or kind in (bool, str, float):
            return value
        if kind is int:
            return value if -(2**53) < value < 2**53 else ["int", format(value, "x")]
        theirs = self.foreign(value)
        if theirs is not None:
            return ["yours", theirs]
        if depth < MOST_DEPTH:
            if kind in SEQUENCES:
                return [SEQUENCES[kind], [self.encode(one, depth + 1) for one in list(value)]]
            if kind in MAPPINGS:
                pairs = list(value.items())
                return [MAPPINGS[kind], [[self.encode(k, depth + 1), self.encode(v, depth + 1)] for k, v in pairs]]
        if kind in (bytes, bytearray):
            return [type(value).__name__, value.hex()]
        if kind is complex:
            return ["complex", value.real, value.imag]
        if kind in (range, slice):
            return [kind.__name__, *(self.encode(one) for one in (value.start, value.stop, value.step))]
        if kind is decimal.Decimal:
            return ["decimal", str(value)]
        if kind is fractions.Fraction:
            return ["fraction", self.encode(value.numerator), self.encode(value.denominator)]
        if kind in (datetime.date, datetime.datetime, datetime.time) and getattr(value, "tzinfo", None) is None:
            return [kind.__name__, value.isoformat()]
        if kind is datetime.timedelta:
            return ["timedelta", value.days, value.seconds, value.microseconds]
        if value is NotImplemented or value is Ellipsis:
            return ["builtin", str(value)]
        name = getattr(value, "__name__", None)
        if isinstance(value, type) and isinstance(name, str) and getattr(builtins, name, None) is value:
            return ["builtin", name]
        described = self.described(value)  # may fail; the object then gets no number
        return ["mine", self.number(value), *described]

    def described(self, value: Any) -> Any:
        """The facts about an object that accompany its number."""
        return []

    def decode(self, message: Any, met: Any) -> Any:
        """The value of a message; `met` makes the stand-in for an object of the other side."""
        if not isinstance(message, list):
            return message
        kind, *content = message
        if kind == "yours":
            return met_ours(self.objects, content[0])
        if kind == "mine":
            return met(*content)
        if kind in BUILDERS:
            (items,) = content
            if kind in MAPPING_NAMES:
                return BUILDERS[kind]((self.decode(k, met), self.decode(v, met)) for k, v in items)
            return BUILDERS[kind](self.decode(one, met) for one in items)
        if kind == "int":
            return int(content[0], 16)
        if kind in ("bytes", "bytearray"):
            return getattr(builtins, kind).fromhex(content[0])
        if kind == "complex":
            return complex(*content)
        if kind in ("range", "slice"):
            return getattr(builtins, kind)(*(self.decode(one, met) for one in content))
        if kind == "decimal":
            return decimal.Decimal(content[0])
        if kind == "fraction":
            return fractions.Fraction(*(self.decode(one, met) for one in content))
        if kind in ("date", "datetime", "time"):
            return getattr(datetime, kind).fromisoformat(content[0])
        if kind == "timedelta":
            return datetime.timedelta(*content)
        if kind == "builtin":
            return getattr(builtins, content[0])
        raise Ended


def met_ours(objects: Any, number: Any) -> Any:
    """One of our objects, by the number that the other side sent."""
    if number not in objects:
        raise Ended
    return objects[number]


SEQUENCES: dict[Any, str] = {
    list: "list",
    tuple: "tuple",
    set: "set",
    frozenset: "frozenset",
    collections.deque: "deque",
}
MAPPINGS: dict[Any, str] = {
    dict: "dict",
    collections.OrderedDict: "ordered",
    collections.defaultdict: "dict",
    collections.Counter: "counter",
}
MAPPING_NAMES = frozenset(MAPPINGS.values())
BUILDERS: dict[str, Any] = {name: kind for kind, name in SEQUENCES.items()}
BUILDERS.update(dict=dict, ordered=collections.OrderedDict, counter=lambda pairs: collections.Counter(dict(pairs)))


def own_streams() -> Any:
    """Binary streams over the descriptors 0 and 1, which are redirected to /dev/null so that nothing else writes to the
    connection."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    return incoming, outgoing

"""Which known licence a text is: compared word by word, without regard to layout, headers and years.

`texts.json` holds, of each text that the table was read from, its SHA-256 and the hashes of its three-word sequences;
the texts themselves are not here. A text counts as a known one if it has nearly all of its sequences and little else,
and words like "not" equally often. A clause more, or one less, makes it another text, which a person must read.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

_WORD = re.compile(r"[^\W_]+(?:\.\d+)*")
_LINK = re.compile(r"https?://\S+|\]\([^)\s]*\)")
_YEAR = re.compile(r"(?:19|20)\d\d|yyyy|year")
_NUMBER = re.compile(r"(?<![\w.])\(?(?:\d{1,2}|[a-z]|[ivx]{1,4})[.)](?=\s)")
"""The number of a clause: `1.`, `(a)`, `iii)`."""
_LENGTH = 3
LONGEST_HEADER = 60
"""Maximum number of words before the text: its title, and the copyright holder."""
_MISSING, _MORE, _SHARE = 9, 7, 0.01
"""Maximum number of missing and of further sequences, or this share of the text's sequences if that is larger. One
word in place of another (a name in a disclaimer) makes three of each; a clause of nine words, eleven further ones. The
share allows for differences all over a long text: in one place there may be at most `_MORE` further ones."""
MOST_CHARACTERS = 400_000
"""A longer text is not a known one."""
_RESTRICTIVE = frozenset(
    """except may must never no not only prohibited shall unless without
    academic commercial commercially educational evaluation internal noncommercial personal research sell sublicense
    """.split()
)
"""Words that turn a sentence round, or say who may do what: one more or less of them makes another text."""


@dataclass(frozen=True)
class Variant:
    """Hashes of a text's sequences of words, and how often it has each restrictive word."""

    hashes: frozenset[int]
    restrictive: Mapping[str, int]


@dataclass(frozen=True)
class KnownText:
    """A text that the table was read from. `variants` are the whole, and parts that are usual by themselves (a licence
    without its appendix)."""

    source: str
    sha256: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Match:
    """The nearest known text. `exact` if it is that text; otherwise it only resembles it: `missing` and `more` count
    three-word sequences."""

    source: str
    exact: bool
    missing: int
    more: int
    of: int


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without links, markup, punctuation, years and numbers of clauses."""
    plain = _LINK.sub(" ", text[:MOST_CHARACTERS].replace("\\", "").replace("’", "'").casefold())
    plain = _NUMBER.sub(" ", plain.replace("*", " "))
    return [word for word in _WORD.findall(plain) if not _YEAR.fullmatch(word)]


def hashes_of(words: list[str]) -> list[int]:
    """24 bits of the CRC-32 of every sequence of three words, in order."""
    sequences = (" ".join(words[i : i + _LENGTH]) for i in range(len(words) - _LENGTH + 1))
    return [zlib.crc32(sequence.encode()) & 0xFFFFFF for sequence in sequences]


def nearest(text: str) -> Match | None:
    """The known text that a text is, or resembles; None if it has less than half of every one's sequences."""
    words = words_of(text)
    hashes = hashes_of(words)
    found = frozenset(hashes)
    best: tuple[int, Match] | None = None
    for known in known_texts().values():
        for variant in known.variants:
            common = len(found & variant.hashes)
            missing = len(variant.hashes) - common
            if common < len(variant.hashes) / 2:
                continue
            match = _match(known.source, words, hashes, variant, missing, whole=len(text) <= MOST_CHARACTERS)
            # A text that holds a shorter licence whole (MIT in a modified MIT) is the longer one, where that is whole.
            score = common - 3 * missing
            if best is None or score > best[0]:
                best = (score, match)
    return best[1] if best is not None else None


def _match(source: str, words: list[str], hashes: list[int], variant: Variant, missing: int, *, whole: bool) -> Match:
    places = [place for place, value in enumerate(hashes) if value in variant.hashes]
    first, size = places[0], len(variant.hashes)
    more = len(hashes) - first - len(places)
    share = round(_SHARE * size)
    together = max(after - before - 1 for before, after in pairwise([*places, len(hashes)]))
    exact = whole and missing <= max(_MISSING, share) and more <= max(_MORE, share) and first <= LONGEST_HEADER
    exact = exact and together <= _MORE
    exact = exact and restrictive_in(words[first:]) == variant.restrictive
    return Match(source, exact, missing, more + max(0, first - LONGEST_HEADER), size)


def restrictive_in(words: list[str]) -> Mapping[str, int]:
    """How often each restrictive word is there."""
    return Counter(word for word in words if word in _RESTRICTIVE)


@cache
def known_texts() -> Mapping[str, KnownText]:
    """The known texts by source."""
    document = json.loads((files("potstill.policy") / "texts.json").read_text(encoding="utf-8"))
    return {source: _known(source, entry) for source, entry in document.items()}


def _known(source: str, entry: Mapping[str, Any]) -> KnownText:
    body, rest = _unpacked(entry["body"]), _unpacked(entry["rest"])
    variants = [Variant(body, entry["restrictive_body"])]
    if rest:
        variants.insert(0, Variant(body | rest, entry["restrictive"]))
    return KnownText(source, entry["sha256"], tuple(variants))


def packed(hashes: frozenset[int]) -> str:
    """A set of hashes as text: sorted, 3 bytes each, big-endian, base64."""
    return base64.b64encode(b"".join(value.to_bytes(3) for value in sorted(hashes))).decode()


def _unpacked(text: str) -> frozenset[int]:
    content = base64.b64decode(text)
    return frozenset(int.from_bytes(content[i : i + 3]) for i in range(0, len(content), 3))

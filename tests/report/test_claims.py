"""What page, card and terminal say are the numbers of measures.json, read back from the text and compared."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report.synthetic import Shape, write_report

from potstill.measures import Interval, Loss, Measures
from potstill.report.terminology import words_of
from potstill.report.verdict import judge

LEAST = 60
_NUMBER = re.compile(r"[+−-]?\d[\d,]*(?:\.\d+)?")
_FACTORS = {"K": 1e3, "M": 1e6, "B": 1e9}


class Tables(HTMLParser):
    """Every table of a page by its label: rows of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] | None = None
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "div" and given.get("role") == "region":
            self._rows = self.tables.setdefault(str(given["aria-label"]), [])
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("td", "th") and self._rows is not None:
            self._rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._inside = False
        elif tag == "table":
            self._rows = None

    def handle_data(self, data: str) -> None:
        if self._inside and self._rows:
            self._rows[-1][-1] += data


def tables_of_markdown(text: str) -> Iterator[list[list[str]]]:
    """Every table of a card: rows of cells."""
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip().replace("\\", "") for cell in line.strip("|").split("|")]
            if not set("".join(cells)) <= set("- "):
                rows.append(cells)
        elif rows:
            yield rows
            rows = []


def says(text: str, found: Interval, share: bool) -> bool:
    """Whether a text like `41.2 % [39.0, 43.5]` has an interval's numbers, as far as its digits go."""
    shown = _NUMBER.findall(text)
    if len(shown) < 3:
        return False
    factor = 100.0 if share else 1.0
    for printed, value in zip(shown[:3], (found.value, found.low, found.high), strict=True):
        plain = printed.replace(",", "").replace("−", "-")
        decimals = len(plain.partition(".")[2])
        scale = next((size for unit, size in _FACTORS.items() if f"{printed}{unit}" in text), 1.0)
        if abs(float(plain) * scale - factor * value) > (0.5001 * 10**-decimals) * scale:
            return False
    return True


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("claims"), Shape(measured=True, solve=True)).parent


def read(written: Path) -> tuple[Measures, dict[str, Any]]:
    """The measures, and the file as plain JSON, which no class of ours has touched."""
    file = written / "evaluate" / "measures.json"
    return Measures.load(file), json.loads(file.read_text(encoding="utf-8"))


def of_models(measures: Measures, raw: dict[str, Any], rows: list[list[str]]) -> int:
    """Check a table with a row per model against the JSON; how many cells were checked."""
    names = {words_of(measures).shown(name): name for name in measures.models}
    heads = {spec["label"]: name for name, spec in raw["metrics"].items()}
    heads |= {measures.metrics[name].head: name for name in raw["metrics"]}
    checked = 0
    for row in rows[1:]:
        for head, cell in zip(rows[0][1:], row[1:], strict=True):
            metric, model = heads.get(head), names.get(row[0])
            if metric is None or model is None or not _NUMBER.search(cell):
                continue
            found = raw["models"][model]["metrics"][metric]
            assert says(cell, Interval(**found), raw["metrics"][metric]["unit"] == "share"), (row[0], head, cell, found)
            checked += 1
    return checked


def of_differences(raw: dict[str, Any], measures: Measures, rows: list[list[str]]) -> int:
    words, checked = words_of(measures), 0
    for pair, metric, difference, *_ in rows[1:]:
        matching = [
            c
            for c in raw["comparisons"]
            if f"{words.shown(c['model'])} − {words.shown(c['against'])}" == pair
            and measures.metrics[c["metric"]].in_sentence == metric
        ]
        assert len(matching) == 1, (pair, metric)
        share = raw["metrics"][matching[0]["metric"]]["unit"] == "share"
        assert says(difference, Interval(**matching[0]["difference"]), share), (pair, metric, difference)
        checked += 1
    return checked


def of_bands(raw: dict[str, Any], measures: Measures, tables: dict[str, list[list[str]]]) -> int:
    """Tables of findings by part: values of every model, and the student less its teacher."""
    words, checked = words_of(measures), 0
    for finding in raw["findings"]:
        if finding["type"] != "bands":
            continue
        rows = tables[finding["title"]]
        share = finding["metric"]["unit"] == "share"
        for row, band in zip(rows[1:], finding["bands"], strict=True):
            assert row[0] == band["name"] and row[1].replace(",", "") == str(band["targets"])
            for head, cell in zip(rows[0], row, strict=True):
                model = next((name for name in band["values"] if words.shown(name) == head), None)
                if model is not None:
                    assert says(cell, Interval(**band["values"][model]), share), (finding["title"], row[0], head)
                    checked += 1
                if head == "student − teacher" and band["excess"] is not None:
                    assert says(cell, Interval(**band["excess"]), share), (finding["title"], row[0], cell)
                    checked += 1
    return checked


def test_the_page_says_what_was_measured(written: Path) -> None:
    measures, raw = read(written)
    parser = Tables()
    parser.feed((written / "report" / "report.html").read_text(encoding="utf-8"))
    checked = sum(of_models(measures, raw, rows) for rows in parser.tables.values() if rows)
    checked += of_differences(raw, measures, parser.tables["Paired differences"])
    checked += of_bands(raw, measures, parser.tables)
    assert checked >= LEAST, f"only {checked} claims were checked"


def test_the_card_says_what_was_measured(written: Path) -> None:
    measures, raw = read(written)
    text = (written / "report" / "README.md").read_text(encoding="utf-8")
    tables = list(tables_of_markdown(text))
    checked = sum(of_models(measures, raw, rows) for rows in tables)
    checked += sum(of_differences(raw, measures, rows) for rows in tables if rows[0][0] == "pair")
    assert checked >= 20, f"only {checked} claims were checked"


def test_figures_say_what_was_measured(written: Path) -> None:
    measures, raw = read(written)
    page = (written / "report" / "report.html").read_text(encoding="utf-8")
    labels = re.findall(r'role="img"[^>]*aria-label="([^"]*)"|aria-label="([^"]*)"[^>]*role="img"', page)
    drawn = [first or second for first, second in labels]
    checked = 0
    for name, spec in raw["metrics"].items():
        for label in drawn:
            if not label.startswith(f"{spec['label']},"):
                continue
            for part in label.partition(": ")[2].split("; "):
                model = next((m for m in raw["models"] if part.startswith(f"{words_of(measures).shown(m)} ")), None)
                if model is not None and (found := raw["models"][model]["metrics"].get(name)) is not None:
                    ends = re.search(r"\[(.+), (.+)\]", part)
                    assert ends is not None, part
                    factor = 100 if spec["unit"] == "share" else 1
                    for end, value in zip(ends.groups(), (found["low"], found["high"]), strict=True):
                        assert float(end) == pytest.approx(factor * value, rel=5e-3, abs=5e-3), (label, model)
                        checked += 1
    assert checked >= 10, f"only {checked} claims were checked: {drawn[:3]}"


def test_the_verdict_names_the_losses_of_the_file_with_their_sizes_worst_first(written: Path) -> None:
    measures, raw = read(written)
    problems = Loss("solved", "gets fewer problems right", Interval(0.47, 0.4, 0.55), "", "what it knew", "share")
    measures = replace(measures, losses=(*measures.losses, problems))
    by_text = {loss["text"]: loss for loss in [*raw["losses"], asdict(problems)]}
    shares = []
    for named in judge(measures).losses:
        own = next(text for text in by_text if named.text.startswith(f"it {text} (lost: "))
        size, told = by_text[own]["size"], named.text.removeprefix(f"it {own} (lost: ")
        share = size["value"]
        if by_text[own]["unit"] == "nats":
            percent, _, told = told.partition(", ")
            share = 1 - math.exp(-size["value"])
            assert abs(float(percent.removesuffix(" %")) - 100 * share) <= 0.0501, named.text
        assert says(told, Interval(**size), share=by_text[own]["unit"] == "share"), named.text
        shares.append(share)
    assert len(shares) > 1 and shares == sorted(shares, reverse=True)


def test_a_number_that_was_changed_is_seen() -> None:
    assert says("41.2 % [39.0, 43.5]", Interval(0.4121, 0.3899, 0.43512), share=True)
    assert not says("41.3 % [39.0, 43.5]", Interval(0.4121, 0.3899, 0.43512), share=True)
    assert not says("0.41 [0.39, 0.45]", Interval(0.41, 0.39, 0.4351), share=False)
    assert says("−0.38 [−0.51, −0.26] nats", Interval(-0.381, -0.512, -0.2649), share=False)

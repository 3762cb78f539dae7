"""`potstill report --compare`: finished runs on one page."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report.browser import Browser
from report.synthetic import Shape, tokens_of, write_run

from potstill import cli
from potstill.errors import RunError
from potstill.sweep.side_by_side import compare_runs


def runs_of(folder: Path, *names: str) -> list[Path]:
    made = []
    for name in names:
        (folder / name).mkdir()
        write_run(folder / name, Shape(measured=True))
        made.append(folder / name)
    return made


def test_two_runs_stand_side_by_side_with_paired_differences(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, "a", "b")
    columns = tokens_of(Shape())
    columns["kl_student"] = columns["kl_student"] + 0.5
    pq.write_table(pa.table(columns), runs[1] / "evaluate" / "tokens.parquet")
    text = compare_runs(runs, tmp_path / "out").read_text()
    assert "<h2>Against <bdi>a</bdi></h2>" in text
    assert re.search(r"\+0\.50* \[\+0\.50*, \+0\.50*\] nats", text) and ">worse<" in text
    # The NLL is the same, target by target.
    assert "no difference is shown" in text
    assert "Calibration</h2>" in text and "<script" not in text


def test_runs_on_other_records_are_shown_and_not_paired(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, "a", "b")
    columns = tokens_of(Shape())
    columns["record_id"] = [f"other {i}" for i in columns["record_id"]]
    pq.write_table(pa.table(columns), runs[1] / "evaluate" / "tokens.parquet")
    text = compare_runs(runs, tmp_path / "out").read_text()
    assert "b was measured on other held-out records than a" in text and "<h2>Against" not in text


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for where in ("x", "y"):
        (tmp_path / where).mkdir()
    runs = [*runs_of(tmp_path / "x", "run"), *runs_of(tmp_path / "y", "run")]
    text = compare_runs(runs, tmp_path / "out").read_text()
    assert str(runs[0]) in text and str(runs[1]) in text


def test_one_run_or_one_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path, "a")
    with pytest.raises(RunError, match="one run to compare") as caught:
        compare_runs([run], tmp_path)
    assert "report --compare" in str(caught.value)
    with pytest.raises(RunError, match="was not evaluated"):
        compare_runs([run, tmp_path / "nowhere"], tmp_path)


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = runs_of(tmp_path, "a", "b")
    cli.app(["report", "--compare", *map(str, runs), "--run", str(tmp_path / "out")], standalone_mode=False)
    assert (tmp_path / "out" / "comparison.html").is_file()
    assert "comparison.html" in capsys.readouterr().out


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_asks_for_nothing_and_keeps_hostile_names_inert(
    width: int, tmp_path: Path, browser: Browser
) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    runs = runs_of(tmp_path, "a", hostile)
    page = compare_runs(runs, tmp_path / "out")
    browser.open(page, width=width)
    assert browser.ask("document.documentElement.scrollWidth") == width
    assert browser.ask("document.images.length") == 0
    assert browser.requests == [page.resolve().as_uri()] and browser.complaints == []

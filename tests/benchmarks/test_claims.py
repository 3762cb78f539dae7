"""A benchmark's aims are data: a value that reaches one, one that does not, and one that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import busy, claims, generate, kd_loss, promptness
from benchmarks.claims import Aim, claims_of, rows_of


def test_a_claim_is_met_by_a_value_that_reaches_its_aim_and_by_no_other() -> None:
    aims = [Aim("time", "s", most=2.0), Aim("rate", "1/s", least=10.0), Aim("share", "", least=0.5)]
    time, rate, share = claims_of(aims, {"time": 2.0, "rate": 9.9})
    assert time == {"name": "time", "aim": "≤ 2", "value": 2.0, "met": True, "unit": "s"}
    assert rate == {"name": "rate", "aim": "≥ 10", "value": 9.9, "met": False, "unit": "1/s"}
    assert share == {"name": "share", "aim": "≥ 0.5", "value": None, "met": False, "unit": ""}


def test_the_table_has_every_kept_claim_and_every_aim_without_a_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = claims_of(kd_loss.AIMS, {"KL / products": 1.1})
    kept = {"benchmark": "kd_loss", "machine": {"processor": "Z80"}, "claims": made}
    (tmp_path / "kd_loss.jsonl").write_text(json.dumps(kept) + "\n\n" + json.dumps(kept) + "\n")
    claims.main(["--results", str(tmp_path)])
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["met"] == 2 and found["of"] == len(found["rows"]) == len(table) - 1
    valued = [row for row in found["rows"] if row["value"] is not None]
    assert [(row["name"], row["met"], row["processor"]) for row in valued] == [("KL / products", True, "Z80")] * 2
    missing = {(row["benchmark"], row["name"]) for row in found["rows"] if row["value"] is None}
    assert ("kd_loss", "KL / liger") in missing and ("kd_loss", "KL / products") not in missing
    assert {benchmark for benchmark, _ in missing} == set(claims.BENCHMARKS)
    assert not any(row["met"] for row in found["rows"] if row["value"] is None)


def test_a_result_without_claims_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"benchmark": "kd_loss", "rows": []}')
    with pytest.raises(ValueError, match=r"old\.json: a result has `claims`"):
        claims.kept_results(tmp_path)


def test_every_benchmark_with_a_result_declares_its_aims() -> None:
    folder = Path(claims.__file__).parent
    printing = {p.stem for p in folder.glob("*.py") if "\nAIMS = [" in p.read_text(encoding="utf-8")}
    assert printing == set(claims.BENCHMARKS)
    assert all(claims.declared_aims().values())
    assert rows_of([], {"x": [Aim("a", "s", most=1)]})[0]["met"] is False


def test_figures_of_the_grid_and_of_the_client_are_those_that_are_aimed_at() -> None:
    cell = "V=49152 H_t=1x masked=0 float32 ours"
    values = kd_loss.values_of({f"{cell} forward_kl / products": 1.1, f"{cell} jsd / products": 1.3})
    assert values == {"KL / products": 1.1, "KL / liger": None, "JSD / products": 1.3}
    rows = [{"variant": "ours", "records_per_second": 2500.0, "cpu_ms_per_record": 0.4}]
    made = claims_of(generate.AIMS, generate.values_of(rows, {}))
    assert [claim["met"] for claim in made] == [True, True, False, False]


def test_what_people_wait_for_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    promptness.main(["--json", "--only", "0"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["claims"][0]["value"] > 0
    assert [claim["value"] for claim in result["claims"][1:]] == [None] * 5


@pytest.mark.long
def test_training_beside_busy_processes_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    busy.main(["--json", "--rounds", "1", "--steps", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["claims"][0]["value"] > 0
    assert {row["wait_policy"] for row in result["rows"]} == {"PASSIVE"}

"""The benchmark of generation asks the mock server by every client, and has the figures that it promises."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import generate

TINY: dict[str, Any] = {"records": 120, "connections": 16, "latency": 0.001}


def test_ours_and_the_bare_clients_get_every_answer(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--records", "100", "--many", "0", "--connections", "16", "--latency", "0.001", "--rounds", "1"]
    generate.main(["--json", *sizes, "--only", "ours", "aiohttp", "aiohttp_wal"])
    report = json.loads(capsys.readouterr().out)
    assert report["benchmark"] == "generate" and len(report["claims"]) == len(generate.AIMS)
    assert [row["variant"] for row in report["rows"]] == ["ours", "aiohttp", "aiohttp_wal"]
    assert set(report["ratios"]) == {"records/s of ours over aiohttp", "records/s of ours over aiohttp_wal"}
    for row in report["rows"]:
        assert row["records_per_second"] == pytest.approx(100 / row["seconds"], rel=0.01)
        assert row["cpu_ms_per_record"] > 0 and row["first_seconds"] > 0 and row["resident_bytes"] > 10_000_000
        assert 1 <= row["most_at_a_time"] <= 16
        assert "folder" not in row


def test_the_openai_sdk_gets_every_answer(tmp_path: Any) -> None:
    pytest.importorskip("openai", reason="the SDK was not asked: it is installed by `make test-long`")
    row = generate.measure({**TINY, "variant": "openai", "folder": str(tmp_path)})
    assert row["cpu_ms_per_record"] > 0 and 1 <= row["most_at_a_time"] <= 16


def test_a_client_that_leaves_out_a_record_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    one_short = lambda url, folder, records, connections: generate.aiohttp_client(url, folder, records - 1, connections)  # noqa: E731
    monkeypatch.setitem(generate.CLIENTS, "aiohttp", one_short)
    with pytest.raises(RuntimeError, match="gave 218 answers for 100 and 120 records"):
        generate.measure({**TINY, "variant": "aiohttp", "folder": str(tmp_path)})


def test_ratios_are_of_rates_and_memory_is_the_difference() -> None:
    rows = [
        {"variant": "ours", "records_per_second": 2000.0, "resident_bytes": 100_000_000},
        {"variant": "openai", "records_per_second": 500.0, "resident_bytes": 1},
        {"variant": "ours_many", "records_per_second": 1900.0, "resident_bytes": 112_000_000},
    ]
    ratios = {name: value for name, value in generate.ratios_of(rows).items() if value is not None}
    assert ratios == {"records/s of ours over openai": 4.0, "MB more with many prompts": 12.0}

"""The variants compute the same thing, and the result has the form that is promised. No peers are needed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks import harness, kd_loss
from benchmarks.harness import PeakMemory, Variant, ratio, run_interleaved

TINY: dict[str, Any] = {
    "rows": 24, "vocab": 50, "width": 8, "masked": 0.0,
    "temperature": 1.0, "hard_ce": False, "device": "cpu", "calls": 1,
}  # fmt: skip


@pytest.mark.parametrize("hard_ce", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_ours_and_naive_find_the_same_loss_and_gradient(hard_ce: bool, temperature: float) -> None:
    changes = {"hard_ce": hard_ce, "temperature": temperature}
    ours, naive = (kd_loss.measure({**TINY, **changes, "by": by}) for by in ("ours", "naive"))
    for key in ("loss", "weight_gradient_norm"):
        assert ours[key] == pytest.approx(naive[key], rel=1e-5)
    assert len(ours["seconds"]) == 1 and ours["seconds"][0] > 0


@pytest.mark.peers
@pytest.mark.parametrize("by", ["liger", "trl"])
def test_peers_find_the_same_loss_and_gradient(by: str) -> None:
    ours, theirs = (kd_loss.measure({**TINY, "by": b, "chunk_size": 8, "compiled": False}) for b in ("ours", by))
    for key in ("loss", "weight_gradient_norm"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5)


def test_masking_half_leaves_half_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = kd_loss.fused_sweep

    def spy(student: Any, *rest: Any) -> Any:
        seen.append(student.hidden.shape[0])
        return original(student, *rest)

    monkeypatch.setattr(kd_loss, "fused_sweep", spy)
    kd_loss.measure({**TINY, "by": "ours", "masked": 0.5})
    assert seen[-1] == 12


def test_variants_that_compute_something_else_are_refused() -> None:
    row = {"hard_ce": False, "masked": 0.0, "loss": 1.0, "weight_gradient_norm": 2.0}
    rows = [{**row, "variant": name} for name in ("ours KL", "naive KL")]
    kd_loss.refuse_unequal(rows)
    with pytest.raises(RuntimeError, match="liger KL computes something else"):
        kd_loss.refuse_unequal([*rows, {**row, "variant": "liger KL", "loss": 1.01}])


def test_peak_memory_sees_what_was_taken_and_given_back() -> None:
    if not harness.can_measure_resident_peak():
        pytest.skip("peak memory was not checked: it needs Linux with glibc and a writable /proc/self/clear_refs")
    peak = PeakMemory(torch.device("cpu"))
    peak.start()
    torch.ones(8 * 2**20)
    taken = peak.bytes()
    assert taken is not None and 30 * 2**20 < taken < 64 * 2**20


def test_rounds_are_interleaved_and_a_row_is_the_median_of_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    seconds = iter([3.0, 10.0, 1.0, 30.0, 2.0])

    def worker(module: str, variant: Variant, timeout_seconds: float) -> dict[str, Any]:
        order.append(variant.name)
        return {"seconds": [next(seconds)], "peak_bytes": 7, "loss": 0.5}

    monkeypatch.setattr(harness, "_run_worker", worker)
    rows = run_interleaved("any", [Variant("a", {"by": "x"}), Variant("b", rounds=2)], 3)
    assert order == ["a", "b", "a", "b", "a"]
    assert rows[0] == {
        "variant": "a", "seconds": 2.0, "seconds_min": 1.0, "seconds_max": 3.0, "peak_bytes": 7, "processes": 3,
        "by": "x", "loss": 0.5,
    }  # fmt: skip
    assert rows[1]["seconds"] == 20.0
    assert ratio(rows, "b", "a") == 10.0 and ratio(rows, "b", "c") is None


def test_a_worker_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"ours KL failed with exit code 1[\s\S]*KeyError"):
        run_interleaved(kd_loss.MODULE, [Variant("ours KL")], 1)


def test_an_absent_peer_is_named_with_its_install_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    assert not harness.has_peer("trl", "the comparison with TRL")
    assert 'pip install "potstill[peers]"' in capsys.readouterr().err


def test_the_last_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    only = ["--only", "products chunked", "ours KL"]
    kd_loss.main(["--rows", "16", "--vocab", "40", "--hidden", "4", "--repeats", "1", "--calls", "1", *only])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(report) == {"benchmark", "machine", "rows", "ratios"} and report["benchmark"] == "kd_loss"
    assert [row["variant"] for row in report["rows"]] == ["products chunked", "ours KL"]
    assert set(report["ratios"]) == {"KL / products"}
    assert all(row["vocab"] == 40 and row["seconds"] > 0 for row in report["rows"])
    assert report["machine"]["torch"] == torch.__version__

"""The variants compute the same thing, and the result has the form that is promised. No peers are needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import harness, kd_grid, kd_loss, kd_variants
from benchmarks.harness import PeakMemory, Variant, ratio, run_interleaved

TINY: dict[str, Any] = {
    "rows": 24, "vocab": 50, "width": 8, "teacher_hidden": 1, "masked": 0.0, "dtype": "float32",
    "objective": "forward_kl", "temperature": 1.0, "hard_ce": False, "device": "cpu", "calls": 1,
}  # fmt: skip


@pytest.mark.parametrize("hard_ce", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_ours_and_naive_find_the_same_loss_and_gradient(hard_ce: bool, temperature: float) -> None:
    changes = {"hard_ce": hard_ce, "temperature": temperature}
    ours, naive = (kd_loss.measure({**TINY, **changes, "by": by}) for by in ("ours", "naive"))
    for key in ("loss", "weight_gradient_norm"):
        assert ours[key] == pytest.approx(naive[key], rel=1e-5)
    assert len(ours["seconds"]) == 1 and ours["seconds"][0] > 0


@pytest.mark.parametrize("masked", [0.0, 0.5])
@pytest.mark.parametrize("objective", kd_variants.OBJECTIVES)
def test_ours_is_the_same_as_naive_for_every_objective(objective: str, masked: float) -> None:
    changes = {"objective": objective, "masked": masked, "teacher_hidden": 2}
    ours, naive = (kd_loss.measure({**TINY, **changes, "by": by}) for by in ("ours", "naive"))
    for key in ("loss", "weight_gradient_norm"):
        assert ours[key] == pytest.approx(naive[key], rel=1e-5)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_the_gradients_error_is_that_of_the_dtype_and_the_median_of_several_draws(dtype: str, most: float) -> None:
    found = kd_loss.measure({**TINY, "by": "ours", "objective": "jsd", "dtype": dtype, "error_rows": 8})
    for name in ("hidden", "weight"):
        assert most / 1000 < found[f"{name}_gradient_error"] < most
        draws = found[f"{name}_gradient_errors"]
        assert len(set(draws)) == 5 and found[f"{name}_gradient_error"] == sorted(draws)[2]


@pytest.mark.peers
@pytest.mark.parametrize("masked", [0.0, 0.5])
@pytest.mark.parametrize("objective", kd_variants.PEER_BETA)
@pytest.mark.parametrize("by", ["liger", "trl"])
def test_peers_find_the_same_loss_and_gradient(by: str, objective: str, masked: float) -> None:
    changes = {"chunk_size": 8, "compiled": False, "objective": objective, "masked": masked}
    ours, theirs = (kd_loss.measure({**TINY, **changes, "by": b}) for b in ("ours", by))
    for key in ("loss", "weight_gradient_norm"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5)


def test_masking_half_leaves_half_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = kd_variants.fused_sweep

    def spy(student: Any, *rest: Any) -> Any:
        seen.append(student.hidden.shape[0])
        return original(student, *rest)

    monkeypatch.setattr(kd_variants, "fused_sweep", spy)
    kd_loss.measure({**TINY, "by": "ours", "masked": 0.5})
    assert seen[-1] == 12


def test_variants_that_compute_something_else_are_refused() -> None:
    row = {"hard_ce": False, "masked": 0.0, "loss": 1.0, "weight_gradient_norm": 2.0}
    rows = [{**row, "variant": name} for name in ("ours KL", "naive KL")]
    kd_loss.refuse_unequal(rows)
    with pytest.raises(RuntimeError, match="liger KL computes something else"):
        kd_loss.refuse_unequal([*rows, {**row, "variant": "liger KL", "loss": 1.01}])


@pytest.mark.needs("resettable peaks")
def test_peak_memory_sees_what_was_taken_and_given_back() -> None:
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
    assert set(report) == {"benchmark", "machine", "rows", "ratios", "claims"} and report["benchmark"] == "kd_loss"
    assert [row["variant"] for row in report["rows"]] == ["products chunked", "ours KL"]
    assert set(report["ratios"]) == {"KL / products"}
    assert all(row["vocab"] == 40 and row["seconds"] > 0 for row in report["rows"])
    assert report["machine"]["torch"] == torch.__version__


CELLS = ["--objective", "jsd", "--rows", "16", "--vocab", "40", "--hidden", "4", "--repeats", "1", "--calls", "1"]


def test_a_cell_has_a_floor_of_its_own_and_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kd_grid, "has_peer", lambda package, what: False)
    measured: list[str] = []

    def worker(module: str, variant: Variant, timeout_seconds: float) -> dict[str, Any]:
        measured.append(variant.name)
        return kd_loss.measure(variant.settings)

    monkeypatch.setattr(harness, "_run_worker", worker)
    resume = ["--resume", str(tmp_path / "grid.jsonl"), "--masked", "0"]
    kd_loss.main([*CELLS, *resume, "--dtype", "float32"])
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    cell = "V=40 H_t=1x masked=0 float32"
    variants = ["products", "products in ours' chunks", "ours jsd", "error of ours jsd"]
    assert measured == [f"{cell} {name}" for name in variants]
    assert set(first["ratios"]) == {f"{cell} ours jsd / products"}
    floor = min(row["seconds"] for row in first["rows"][:2])
    assert first["ratios"][f"{cell} ours jsd / products"] == pytest.approx(
        first["rows"][2]["seconds"] / floor, abs=1e-3
    )
    assert first["rows"][3]["hidden_gradient_error"] < 1e-5
    (tmp_path / "grid.jsonl").open("a").write('{"asked": ')  # A line that was cut short.
    kd_loss.main([*CELLS, *resume, "--dtype", "float32", "bfloat16"])
    assert len(measured) == 8 and all("bfloat16" in name for name in measured[4:])
    both = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert both["rows"][:4] == first["rows"] and len(both["ratios"]) == 2
    kd_loss.main([*CELLS, *resume, "--dtype", "float32", "bfloat16"])
    assert len(measured) == 8
    kd_loss.main([*CELLS, *resume, "--temperature", "2"])
    assert len(measured) > 8


def test_the_grid_is_every_vocabulary_width_share_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(module: str, options: Any, best_liger: Any) -> tuple[list[Any], dict[str, Any]]:
        asked.extend(kd_grid.cells_of(options))
        return [], {}

    monkeypatch.setattr(kd_grid, "run", run)
    kd_loss.main(["--grid", "--json"])
    assert len(asked) == len(set(map(str, asked))) == 24
    assert {cell.vocab for cell in asked} == {49_152, 151_936, 262_144}


def test_a_cell_whose_variants_differ_is_refused() -> None:
    row = {"objective": "jsd", "dtype": "float32", "loss": 1.0, "weight_gradient_norm": 2.0}

    def rows(**norms: float) -> list[dict[str, Any]]:
        return [{**row, "by": by, "variant": f"{by} jsd", "weight_gradient_norm": norm} for by, norm in norms.items()]

    for found in (rows(ours=2.0, trl=2.01), rows(ours=2.01, trl=2.0, liger=2.0)):
        with pytest.raises(RuntimeError, match="computes something else: weight_gradient_norm"):
            kd_grid.refuse_unequal(found)
    kd_grid.refuse_unequal(odd := rows(ours=2.0, trl=2.0, liger=2.01))  # one against two, and not ours
    assert [list(found.get("differs", ())) for found in odd] == [[], [], ["weight_gradient_norm"]]

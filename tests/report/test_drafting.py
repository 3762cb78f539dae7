"""Claims about the section on speculative decoding."""

from __future__ import annotations

from pathlib import Path

from potstill.measures import Interval
from potstill.recipe import parse_recipe
from potstill.report.page import render_speculation
from potstill.speculation import (
    Advice,
    Costs,
    Exported,
    Forecast,
    Piece,
    Speculation,
    Trial,
    load_speculation,
    save_speculation,
)

ONE = Interval(1.5, 1.4, 1.6)
TRIAL = Trial(0.0, 2, 0.0, ONE, Interval(1.47, 1.3, 1.7), 30.0, 20.0, (3, 2, 5), 0.01, 0.04, 0.001)


def found(*pieces: Piece) -> Speculation:
    forecasts = tuple(Forecast(gamma, 1.8, ONE) for gamma in (1, 2))
    advice = Advice(0.0, 1, 0.0, forecasts, 2, True, "use it: 1.50 ×", 0.4, 0.3)
    costs = Costs(1, (0.04, 0.05, 0.06), (0.01, 0.02), (0.0, 0.0, 0.0), 0.1, 0.01)
    exported = Exported("draft", 0.61, 0.61, 2)
    return Speculation(
        "big", "two layers", "float32", 4, 80, {"greedy": ONE}, (0.5,), (costs,), (advice,), (TRIAL,), pieces, exported
    )


def page(made: Speculation, folder: Path) -> str:
    save_speculation(made, folder)
    plain = {
        "name": "small",
        "teacher": {"kind": "local", "model": "big"},
        "data": {"kind": "jsonl", "path": "data.jsonl", "format": "prompt"},
        "speculate": {},
    }
    return render_speculation(parse_recipe(plain, base=folder), load_speculation(folder))


def test_the_page_has_the_advice_the_trials_beside_their_forecasts_and_the_figures(tmp_path: Path) -> None:
    shown = page(found(Piece("so", "draft"), Piece(" far", "target")), tmp_path)
    assert "use it: 1.50 ×" in shown and "1.47 [1.30, 1.70]" in shown and "1.50 [1.40, 1.60]" in shown
    assert "2.20 tokens a round" in shown, "1 + (2·1 + 5·2) / 10"
    assert '<span class="by-draft">so</span><span class="by-target"> far</span>' in shown
    for label in ("Speed-up by gamma", "Tokens accepted per round", "Time of a round"):
        assert f'aria-label="{label}: ' in shown
    assert "61.0" in shown


def test_what_the_model_wrote_is_escaped(tmp_path: Path) -> None:
    shown = page(found(Piece("<script>alert(1)</script>", "draft")), tmp_path)
    assert "<script" not in shown and "&lt;script&gt;" in shown


def test_costs_are_stated_by_one_token_of_the_target() -> None:
    costs = found().costs[0]
    assert costs.c == 0.25 and costs.v(3) == 1.5

"""The page in a real browser: it fits, loads nothing, runs nothing, and is readable by day and by night."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from report.browser import Browser

WIDTHS = (1280, 400)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", ["report", "hostile_report"])
def test_it_fits_and_asks_for_nothing(width: int, which: str, browser: Browser, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(which) / "report.html"
    browser.open(page, width=width)
    assert browser.ask("document.documentElement.scrollWidth") == width
    assert browser.ask("document.documentElement.scrollHeight") > 3000
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.complaints == []


@pytest.mark.parametrize("width", WIDTHS)
def test_no_part_sticks_out_of_the_page(width: int, report: Path, browser: Browser) -> None:
    browser.open(report / "report.html", width=width)
    sticking_out = """[...document.querySelectorAll('main *')].filter(e => {
        const inside = e.closest('.scroll, pre, .words, svg'), box = e.getBoundingClientRect();
        return (!inside || inside === e) && box.width > 0 && (box.right > innerWidth + 1 || box.left < -1);
    }).map(e => e.outerHTML.slice(0, 80))"""
    assert browser.ask(sticking_out) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_long_words_are_broken_and_not_scrolled_to(width: int, hostile_report: Path, browser: Browser) -> None:
    browser.open(hostile_report / "report.html", width=width)
    wider = "[...document.querySelectorAll('.words')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert browser.ask(wider) == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_every_chart_is_drawn_once_and_its_words_stay_legible(width: int, report: Path, browser: Browser) -> None:
    browser.open(report / "report.html", width=width)
    charts = browser.ask(
        "[...document.querySelectorAll('figure')].map(f => [...f.querySelectorAll('svg[role=img]')]"
        ".filter(s => s.getBoundingClientRect().width > 0).length)"
    )
    assert len(charts) == 21 and set(charts) == {1}
    smallest = browser.ask(
        "Math.min(...[...document.querySelectorAll('figure svg text')].map("
        "t => t.getBoundingClientRect()).filter(b => b.width > 0).map(b => b.height))"
    )
    assert smallest >= 12


@pytest.mark.parametrize("width", WIDTHS)
def test_no_word_of_a_chart_leaves_its_frame(width: int, report: Path, browser: Browser) -> None:
    browser.open(report / "report.html", width=width)
    outside = """[...document.querySelectorAll('figure svg text')].filter(t => {
        const word = t.getBoundingClientRect(), frame = t.closest('figure').getBoundingClientRect();
        return word.width > 0 && (word.left < frame.left || word.right > frame.right);
    }).map(t => t.textContent)"""
    assert browser.ask(outside) == []


def test_what_a_model_wrote_stays_text(hostile_report: Path, browser: Browser) -> None:
    browser.open(hostile_report / "report.html", width=1280)
    assert browser.ask("document.title").startswith("<script>document.title='ran'</script>")
    assert browser.ask("document.querySelectorAll('script, img, iframe, object, embed, link, base').length") == 0
    assert browser.ask("document.querySelectorAll('style').length") == 1
    assert "<svg onload=\"document.title='ran'\">" in browser.ask("document.querySelector('.words').textContent")
    assert "{{ 7*7 }}" in browser.ask("document.querySelector('.words').textContent")


def test_the_policy_would_stop_a_script_that_came_in(report: Path, browser: Browser, tmp_path: Path) -> None:
    broken = tmp_path / "report.html"
    page = (report / "report.html").read_text(encoding="utf-8")
    attack = (
        "<script>document.title='ran'</script><img src='https://example.org/x.png' onerror=\"document.title='ran'\">"
    )
    broken.write_text(page.replace("<main>", f"<main>{attack}<p style='color:red'>", 1), encoding="utf-8")
    browser.open(broken, width=1280)
    assert browser.ask("document.title") != "ran"
    assert len(browser.complaints) >= 3


def test_night_and_day_differ_and_both_have_contrast(report: Path, browser: Browser) -> None:
    seen = {}
    for dark in (False, True):
        browser.open(report / "report.html", width=1280, dark=dark)
        paper = _luminance(browser.ask("getComputedStyle(document.documentElement).backgroundColor"))
        card = _luminance(browser.ask("getComputedStyle(document.querySelector('figure')).backgroundColor"))
        ink = _luminance(browser.ask("getComputedStyle(document.body).color"))
        soft = _luminance(browser.ask("getComputedStyle(document.querySelector('.sub')).color"))
        assert _contrast(ink, paper) >= 7 and _contrast(soft, paper) >= 4.5
        for model in ("teacher", "student", "text-only", "untrained"):
            colour = browser.ask(f"getComputedStyle(document.querySelector('figure .fill-{model}')).fill")
            assert _contrast(_luminance(colour), card) >= 3, (model, dark)
        seen[dark] = paper
    assert seen[False] > 0.9 and seen[True] < 0.05


def _luminance(colour: str) -> float:
    """Relative luminance of `rgb(…)` (WCAG 2.2)."""
    parts = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)

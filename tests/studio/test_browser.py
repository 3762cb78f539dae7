"""The studio in a real browser: from the first visit to the certificate, and what a page looks like."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from studio.conftest import Served, serve
from studio.test_runs import _wait, long_run_in

from potstill.pipeline import process_at_work
from potstill.studio import control
from potstill.studio.course import content
from potstill.studio.course.labs import Outcome, bars, lab_folder, run_link, table
from potstill.studio.course.progress import Progress
from potstill.studio.workspace import Workspace

AXE = Path(__file__).parent / "axe-4.14.1.min.js"
SHOTS = os.environ.get("STUDIO_SHOTS")
"""A folder for screenshots, to be looked at."""


@pytest.fixture(scope="module")  # while Playwright is open, its event loop is this thread's
def chrome(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def served(hostile_run: Path) -> Iterator[Served]:
    """A studio over the hostile run, with a lab whose outcomes are hostile too."""
    folder = lab_folder(Workspace(hostile_run), 1)
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [table(["", "<b>a</b>"], [["<img src=x onerror=alert(1)>", 1]]), bars("Chart", [("<i>", 2.0)]),
              run_link("hostile", "it")]  # fmt: skip
    outcome = Outcome(True, "<script>document.title='ran'</script> It ran.", blocks)
    (folder / "price.json").write_text(json.dumps(outcome.__dict__))
    yield from serve(hostile_run)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Served]:
    """A studio over an empty folder."""
    yield from serve(tmp_path / "runs")


def _page(chrome: Any, width: int = 1280, dark: bool = False) -> tuple[Any, list[str]]:
    context = chrome.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(20_000)
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: heard.append(str(error)))
    return page, heard


PAGES = (
    "", "runs/hostile", "runs/hostile/records", "runs/hostile/records?kind=rejects", "runs/hostile/recipe",
    "compare?run=hostile", "playground", "learn", "learn/1", "learn/2", "learn/1/lab", "learn/3/lab", "learn/test",
    "learn/certificate", "learn/sources", "learn/1/tutor", "runs/nowhere",
)  # fmt: skip


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (400, False), (400, True)])
def test_every_page_fits_runs_nothing_and_has_no_serious_violation(
    chrome: Any, served: Served, width: int, dark: bool
) -> None:
    page, heard = _page(chrome, width, dark)
    for path in PAGES:
        page.goto(f"{served.address}/{path}", wait_until="load")
        assert page.title() != "ran", path
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} is wider than {width}"
        if SHOTS:
            name = path.replace("/", "_").replace("?", "_") or "index"
            page.screenshot(path=f"{SHOTS}/{name}-{width}{'d' if dark else 'l'}.png", full_page=True)
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [
            (v["id"], v["help"], [n["html"][:160] for n in v["nodes"][:3]]) for v in found
            if v["impact"] in ("serious", "critical")
        ]  # fmt: skip
        assert not serious, (path, serious)
    assert [text for text in heard if "404" not in text] == []
    page.context.close()


def test_the_first_page_is_small_and_soon_there(chrome: Any, served: Served) -> None:
    page, _ = _page(chrome)
    sizes: list[int] = []
    page.on("response", lambda response: sizes.append(len(response.body())))
    page.goto(served.address + "/", wait_until="load")
    assert sum(sizes) <= 200_000
    page.context.close()


def test_from_the_first_visit_to_the_certificate_though_the_browser_is_closed(chrome: Any, fresh: Served) -> None:
    page, heard = _page(chrome)
    page.goto(f"{fresh.address}/learn")
    page.get_by_role("link", name="What is model distillation?").click()
    assert page.get_by_role("heading", level=1).inner_text() == "What is model distillation?"

    question = content.quiz(1)[0]
    wrong = next(number for number, choice in enumerate(question.choices) if not choice.right)
    for number, told in ((wrong, "That is not right"), (question.right, "That is right.")):
        form = page.locator(f"#q{question.key}")
        form.locator("input[type=radio]").nth(number).check()
        form.get_by_role("button").click()
        page.locator(f"#q{question.key} [role=status]", has_text=told).wait_for()
        assert question.choices[number].why in page.locator(f"#q{question.key}").inner_text()

    page.goto(f"{fresh.address}/learn/test")
    page.get_by_role("button", name="Begin").click()
    page.get_by_role("button", name="Hand it in").wait_for()
    first = page.locator("fieldset legend").all_inner_texts()
    page.context.close()

    page, again = _page(chrome)  # opened again: the same test, nothing lost
    page.goto(f"{fresh.address}/learn/test")
    assert page.locator("fieldset legend").all_inner_texts() == first
    test = Progress.load(fresh.studio.workspace.own / "course.json").test
    assert test is not None
    for question, order in test.asked():
        page.locator(f"input[name={question.key}]").nth(order.index(question.right)).check()
    page.get_by_role("button", name="Hand it in").click()
    page.get_by_role("link", name="Your certificate").click()
    page.get_by_label("Name on it").fill("Ada Lovelace")
    page.get_by_role("button", name="Write it").click()
    assert page.get_by_role("heading", level=1).inner_text() == "Ada Lovelace"
    assert "15 of 15" in page.inner_text("main")
    page.goto(f"{fresh.address}/learn")
    assert "answered" not in page.locator(".lessons li").nth(1).inner_text()
    assert heard == again == []
    page.context.close()


@pytest.mark.slow
def test_a_training_is_watched_killed_and_continued(chrome: Any, fresh: Served) -> None:
    folder = long_run_in(fresh.studio.workspace.folder)
    page, heard = _page(chrome)
    page.set_default_timeout(90_000)
    page.goto(f"{fresh.address}/runs/long")
    page.get_by_role("button", name="Start").click()
    page.locator("figure polyline").first.wait_for()  # the loss, while it trains, without a reload
    page.get_by_role("button", name="Stop").wait_for()
    _wait("a checkpoint", lambda: any(folder.glob(".partial-train-*/checkpoints/*")))
    pid = process_at_work(folder)
    assert pid
    os.kill(pid, signal.SIGKILL)
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("button", name="Stop").wait_for()
    _wait("the second life", lambda: process_at_work(folder) not in (None, pid))
    control.stop(folder)
    page.get_by_role("button", name="Continue").wait_for()
    assert "interrupted" in page.inner_text("main")
    assert heard == []
    page.context.close()


LAB_STEPS = [
    # lab, step, what is put into its fields, what its outcome shows
    pytest.param(1, "distribution", {"prompt": "The ship sailed across the"}, "#distribution", marks=pytest.mark.slow),
    pytest.param(1, "dark", {}, ".digit", marks=pytest.mark.slow),
    pytest.param(1, "students", {}, "table", marks=pytest.mark.long),
    pytest.param(1, "price", {"dollars": "0.25"}, "table", marks=pytest.mark.long),
    pytest.param(2, "byte", {}, "table", marks=pytest.mark.long),
    pytest.param(3, "teacher", {}, "a[href*=learn-3-teacher]", marks=pytest.mark.long),
    pytest.param(4, "plant", {"digit": "3"}, "a[href*=learn-4-without-3]", marks=pytest.mark.long),
    pytest.param(4, "sizes", {}, "table", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("lab", "step", "fields", "shown"), LAB_STEPS)
def test_a_step_of_a_lab_is_run_and_watched_in_the_browser(
    chrome: Any, fresh: Served, lab: int, step: str, fields: dict[str, str], shown: str
) -> None:
    page, heard = _page(chrome)
    page.set_default_timeout(900_000)
    page.goto(f"{fresh.address}/learn/{lab}/lab")
    card = page.locator(f"section[data-part={step}]")
    for name, value in fields.items():
        card.locator(f"input[name={name}]").fill(value)
    card.get_by_role("button", name="Run it").click()
    page.locator(f"section[data-part={step}-now] progress").wait_for()  # something to look at while it runs
    outcome = page.locator(f"section[data-part={step}-outcome]")
    outcome.locator(shown).first.wait_for()
    assert outcome.locator(".finding").inner_text().strip()
    card.locator(".state", has_text="done").wait_for()
    page.context.close()

    page, again = _page(chrome)  # a browser that is opened again: nothing is lost
    page.goto(f"{fresh.address}/learn/{lab}/lab")
    assert page.locator(f"section[data-part={step}-outcome] .finding").inner_text().strip()
    for name, value in fields.items():
        assert page.locator(f"section[data-part={step}] input[name={name}]").input_value() == value
    assert heard == again == []
    page.context.close()


def test_records_are_searched_as_one_types(chrome: Any, served: Served) -> None:
    page, heard = _page(chrome)
    page.goto(f"{served.address}/runs/hostile/records")
    page.get_by_label("Words").fill("nothing has these words")
    page.locator("#found", has_text="Nothing is found.").wait_for()
    assert page.get_by_label("Words").input_value() == "nothing has these words"
    page.get_by_label("Words").fill("")
    page.locator("#found .records li").first.wait_for()
    assert heard == []
    page.context.close()


def test_another_page_cannot_use_the_studio(chrome: Any, served: Served, tmp_path: Path) -> None:
    """A page of elsewhere in the same browser, that even knows the token, gets nothing and changes nothing."""
    evil = tmp_path / "evil.html"
    evil.write_text(f"<form method=post action='{served.address}/runs'><input name=name value=evil></form>")
    page, _ = _page(chrome)
    page.goto(evil.as_uri())
    read = f"fetch('{served.address}/').then(r => r.text()).catch(() => 'refused')"
    assert page.evaluate(read) == "refused"
    page.evaluate("document.forms[0].submit()")
    page.wait_for_load_state()
    assert "evil" not in served.studio.workspace.names()
    page.context.close()

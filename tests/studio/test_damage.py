"""Whatever stands in the files of a run or of the course, and whatever a form holds: a page says so, others go on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from studio.conftest import Site

from potstill.errors import RecipeError
from potstill.pipeline import EVENTS
from potstill.studio import control
from potstill.studio.course import content
from potstill.studio.course.progress import Progress
from potstill.studio.live import Broadcast
from potstill.studio.render import markdown
from potstill.studio.tutor import _piece

DEEP = "[" * 200_000
EVENT_LINES = (
    '{"event": "log", "step": 1, "steps": "x", "loss": 1}',
    '{"event": "log", "step": 1, "steps": 1e999, "loss": 1}',
    '{"event": "log", "step": 1' + "0" * 400 + ', "loss": 1}',
    '{"event": "log", "step": NaN, "loss": Infinity}',
    '{"event": "log", "step": 1, "loss": 1e308}\n{"event": "log", "step": 2, "loss": -1e308}',
    '{"event": "task", "task": "x", "done": "a", "total": 5}',
    '{"event": "task", "task": "x", "done": 1, "total": 5, "per_second": NaN, "time": "x"}',
    '{"event": "end", "state": "failed"}',
    DEEP,
)


@pytest.mark.parametrize("line", EVENT_LINES)
def test_an_event_that_is_none_leaves_the_page(site: Site, line: str) -> None:
    site.post("runs", name="first")
    (site.studio.workspace.folder / "first" / EVENTS).write_text(f'{line}\n{{"event": "say", "text": "went on"}}\n')
    for path in ("", "runs/first", "compare?run=first"):
        assert site.get(path).status_code == 200, path
    assert "went on" in site.get("runs/first").text


@pytest.mark.parametrize(
    "name", ["train/manifest.json", ".partial-train-0123456789abcdef/manifest.json", "evaluate/measures.json"]
)
@pytest.mark.parametrize("text", [DEEP, "[]", '{"stage": ["train"], "state": "running"}', "\x00"])
def test_a_file_of_a_run_that_is_damaged_leaves_the_other_pages(site: Site, name: str, text: str) -> None:
    site.post("runs", name="first")
    file = site.studio.workspace.folder / "first" / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    for path in ("", "runs/first", "runs/first/records", "runs/first/recipe", "compare?run=first"):
        assert site.get(path).status_code == 200, path


COURSE = (
    "[]", "null", "3", "", DEEP, '{"name": "a", "read": 5, "quiz": {}}',
    '{"name": "a", "read": [], "quiz": {}, "best": null, "test": {"questions": ["b1"], "orders": []}}',
    '{"name": "a", "read": [], "quiz": {}, "best": null, "test": {"questions": ["b1"], "orders": [[0, 9]]}}',
)  # fmt: skip


@pytest.mark.parametrize("text", COURSE)
def test_progress_that_cannot_be_read_is_put_aside_whatever_it_is(site: Site, text: str) -> None:
    file = site.studio.workspace.own / "course.json"
    for _ in range(2):  # the second does not take the first one's place
        file.write_text(text)
        for path in ("learn", "learn/1", "learn/test", "learn/certificate"):
            assert site.get(path).status_code == 200, path
    aside = list(file.parent.glob("course.json.damaged*"))
    assert [one.read_text() for one in aside] == [text, text]


def test_progress_is_read_as_it_was_saved(tmp_path: Path) -> None:
    progress = Progress.load(tmp_path / "p.json")
    progress.begin_test(seed=1)
    progress.end_test({})
    progress.save()
    assert Progress.load(tmp_path / "p.json") == progress


@pytest.mark.parametrize(
    "line",
    ['{"question": 5, "answer": 5, "sources": []}', '{"question": "q", "answer": "a", "sources": [["x"]]}', DEEP, "[]"],
)
def test_a_conversation_or_outcome_that_is_damaged_is_passed_over(site: Site, line: str) -> None:
    own = site.studio.workspace.own
    (own / "tutor").mkdir()
    (own / "tutor" / "1.jsonl").write_bytes(line.encode() + b"\n\xff\n")
    (own / "labs" / "1").mkdir(parents=True)
    (own / "labs" / "1" / f"{content.lab(1).steps[0].key}.json").write_text(line)
    for path in ("learn", "learn/1/tutor", "learn/1/lab", "learn/certificate"):
        assert site.get(path).status_code == 200, path


@pytest.mark.parametrize("number", ["1" * 5000, "٣", "-1", "99", "²", ""])
def test_a_number_of_a_form_that_is_none_is_passed_over(site: Site, number: str) -> None:
    assert site.post("learn/1", **{content.quiz(1)[0].key: number}).status_code == 303
    site.studio.session.columns = {"student": [{}]}
    assert site.get(f"playground/at?of=student&place={number or 'x'}").status_code in (303, 404)


def test_a_form_of_too_many_fields_is_refused(site: Site) -> None:
    assert site.post("runs", **{f"a{number}": "1" for number in range(300)}).status_code == 400


def test_a_link_out_of_the_folder_is_on_no_list(site: Site, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "recipe.yaml").write_text("name: outside")
    (site.studio.workspace.folder / "linked").symlink_to(tmp_path / "outside")
    assert site.studio.workspace.names() == []
    assert "linked" not in site.get().text


def test_code_of_the_same_name_in_another_folder_is_new_code(site: Site, tmp_path: Path) -> None:
    site.post("runs", name="first")
    folder = site.studio.workspace.folder / "first"
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("kind: forward_kl", 'kind: "mine.py:Mine"'))
    with pytest.raises(RecipeError, match="names code to run"):
        control.check_text(text.replace("kind: forward_kl", f'kind: "{tmp_path}/mine.py:Mine"'), folder)


def test_a_page_is_followed_on_after_a_look_that_failed() -> None:
    looks = iter(["one", OSError("removed"), ValueError("half written"), "two"])

    def make() -> str:
        found = next(looks, "two")
        if isinstance(found, Exception):
            raise found
        return found

    async def follow() -> list[bytes]:
        listening = Broadcast(make, every=0.01).listen()
        return [await asyncio.wait_for(anext(listening), 10) for _ in range(2)]

    assert [event.split(b"data: ")[1].strip() for event in asyncio.run(follow())] == [b"one", b"two"]


def test_a_picture_in_markdown_is_no_picture() -> None:
    assert "<img" not in markdown("![x](http://elsewhere.example/p.png)")


@pytest.mark.parametrize(
    "answer", ["[]", "5", "null", '{"choices": {}}', '{"choices": [5]}', '{"choices": [{"delta": {"content": 5}}]}']
)
def test_a_tutors_server_may_send_anything(answer: str) -> None:
    assert _piece(json.loads(answer)) == ""
    assert _piece({"choices": [{"delta": {"content": "yes"}}]}) == "yes"

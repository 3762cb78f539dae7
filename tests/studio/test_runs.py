"""The window on runs: how each stands, by its files, whatever these hold."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from report.synthetic import HOSTILE
from studio.conftest import Site

from potstill.artifacts import read_artifact, write_artifact
from potstill.errors import PotstillError, RecipeError, RunError
from potstill.pipeline import EVENTS, process_at_work
from potstill.studio import control
from potstill.studio.live import MOST_POINTS, Broadcast, Curve, Reader
from potstill.studio.records import find_records, find_rejects
from potstill.studio.workspace import read_measures, read_run
from tiny_models import make_tiny_causal_lm


def test_a_folder_without_runs_says_what_a_run_is(site: Site) -> None:
    answer = site.get()
    assert answer.status_code == 200
    assert "No runs yet" in answer.text


def test_a_new_run_has_a_recipe_that_check_reads(site: Site) -> None:
    assert site.post("runs", name="first").headers["location"].endswith("/runs/first/recipe")
    folder = site.studio.workspace.folder / "first"
    assert "name: first" in (folder / "recipe.yaml").read_text()
    assert read_run(folder).state == "not started"


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "x" * 101, "über", "first"])
def test_a_name_that_cannot_be_one_is_said(site: Site, name: str) -> None:
    site.post("runs", name="first")
    answer = site.post("runs", name=name)
    assert answer.status_code == 400
    assert 'role="alert"' in answer.text
    assert site.studio.workspace.names() == ["first"]


def test_the_editor_says_what_check_says(site: Site) -> None:
    site.post("runs", name="first")
    folder = site.studio.workspace.folder / "first"
    wrong = (folder / "recipe.yaml").read_text().replace("forward_kl", "forward_kk")
    with pytest.raises(RecipeError) as raised:
        control.check_text(wrong, folder)
    answer = site.post("runs/first/recipe", recipe=wrong, do="save")
    assert "forward_kl" in raised.value.what and "forward_kl" in answer.text  # the nearest name
    assert "Saved." not in answer.text
    assert "forward_kk" not in (folder / "recipe.yaml").read_text()
    assert "forward_kk" in answer.text  # nothing that was typed is lost


def test_a_recipe_from_the_page_brings_in_no_code(site: Site, tmp_path: Path) -> None:
    site.post("runs", name="first")
    folder = site.studio.workspace.folder / "first"
    (tmp_path / "evil.py").write_text("raise SystemExit(99)")
    text = (folder / "recipe.yaml").read_text()
    for changed in (
        text.replace("kind: forward_kl", f'kind: "{tmp_path}/evil.py:Evil"'),
        text.replace("kind: local,", "kind: local, trust_remote_code: true,"),
    ):
        assert changed != text
        with pytest.raises(RecipeError, match="names code to run"):
            control.save_recipe(changed, folder)
    assert (folder / "recipe.yaml").read_text() == text


def test_a_manifest_that_is_damaged_is_said_and_others_are_shown(hostile_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(hostile_run / "hostile", run)
    (run / "evaluate" / "manifest.json").write_text("{")
    found = read_run(run)
    assert found.state == "unreadable"
    assert "the manifest is damaged" in found.problem
    assert {s.name: s.state for s in found.stages}["train"] == "done"


def test_a_run_of_a_newer_version_is_said(hostile_run: Path, tmp_path: Path, site: Site) -> None:
    run = site.studio.workspace.folder / "newer"
    shutil.copytree(hostile_run / "hostile", run)
    recipe = (run / "recipe.yaml").read_text() + "\nteleport: {kind: beam}\n"
    (run / "recipe.yaml").write_text(recipe)
    measures = json.loads((run / "evaluate" / "measures.json").read_text())
    (run / "evaluate" / "measures.json").write_text(json.dumps({**measures, "beams": 3}))
    manifest = json.loads((run / "train" / "manifest.json").read_text())
    del manifest["counts"]
    (run / "train" / "manifest.json").write_text(json.dumps(manifest))
    found = read_run(run)
    assert found.state == "unreadable" and "teleport" in found.problem
    assert "cannot be read by this version" in read_measures(run)[2]
    for path in ("", "runs/newer", "runs/newer/recipe", "runs/newer/records", "compare?run=newer"):
        assert site.get(path).status_code == 200, path
    assert "teleport" in site.get("runs/newer").text


def test_what_a_model_wrote_stays_text_on_every_page(hostile_site: Site) -> None:
    for path in (
        "",
        "runs/hostile",
        "runs/hostile/records",
        "runs/hostile/records?kind=rejects",
        "compare?run=hostile",
    ):
        answer = hostile_site.get(path)
        assert answer.status_code == 200
        assert "<script>document" not in answer.text
        assert "<img src=x" not in answer.text


def test_the_report_runs_nothing(hostile_site: Site) -> None:
    policy = hostile_site.get("runs/hostile/report").headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert "unsafe" not in policy and "allow-scripts" not in policy


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A generation under way that has rejected three answers; the third is half written."""
    run = tmp_path / "run"
    partial = run / ".partial-generate-0123456789abcdef"
    partial.mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: run")
    rows = [{"reason": "empty answer", "source": "p", "row": 1, "excerpt": HOSTILE, "detail": ""}]
    rows.append({"reason": "wrong answer", "source": "p", "row": 2, "excerpt": "it is seven", "detail": "6 expected"})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (partial / "rejects.jsonl").write_text(text + '{"reason": "half')
    return run


def test_rejects_are_found_by_reason_and_words_while_they_are_written(ledger: Path) -> None:
    run = read_run(ledger)
    assert find_rejects(run).choices == {"empty answer": 1, "wrong answer": 1}
    assert [row.turns[0].text for row in find_rejects(run, words="SEVEN it").rows] == ["it is seven"]
    assert find_rejects(run, choice := "", "wrong answer").matches == 1 and choice == ""
    assert find_rejects(run, words="nowhere").matches == 0
    assert Reader(ledger).rejects(run.rejects) == {"empty answer": 1, "wrong answer": 1}


def test_records_are_shown_with_provenance_a_page_at_a_time(hostile_run: Path) -> None:
    run = read_run(hostile_run / "hostile")
    whole = find_records(run)
    assert whole.matches == sum(whole.choices.values()) > 0
    assert all(row.turns and row.facts["teacher"] and row.verdicts for row in whole.rows)
    assert find_records(run, side="held_out").matches == whole.choices["held_out"]
    assert find_records(run, page=10_000).rows == ()


def test_a_story_is_read_on_from_where_it_was_left(tmp_path: Path) -> None:
    events = [
        {"time": 1.0, "event": "begin", "pid": 1},
        {"time": 2.0, "event": "say", "text": "train: started", "stage": "train", "resumed": False},
        {
            "time": 3.0,
            "event": "task",
            "task": "training",
            "done": 10,
            "total": 100,
            "unit": "tokens",
            "per_second": 5.0,
        },
        {"time": 3.0, "event": "log", "step": 1, "steps": 10, "loss": 3.5},
        {"time": 4.0, "event": "say", "text": "held out", "step": 1, "kl": 0.5, "level": None},
        {"time": 4.5, "event": "say", "text": "warning: hot", "level": "warning"},
        {"time": 5.0, "event": "from the future", "step": "many"},
    ]
    file, reader = tmp_path / EVENTS, Reader(tmp_path)
    assert reader.read().task is None
    lines = "".join(json.dumps(e) + "\n" for e in events)
    file.write_text(lines[: len(lines) // 2])
    reader.read()
    file.write_text(lines + "{torn")
    story = reader.read()
    assert story.task is not None and story.task["done"] == 10
    assert story.curves["train"].points == [(1.0, 3.5)]
    assert story.held_out["train"] == [(1.0, {"kl": 0.5})]
    assert story.warnings == ["hot"]
    with file.open("a") as out:
        out.write('"\n' + json.dumps({"time": 9.0, "event": "end", "state": "failed", "error": "no"}) + "\n")
    assert reader.read().end == {"time": 9.0, "event": "end", "state": "failed", "error": "no"}
    assert reader.read().task is None


def test_a_curve_is_thinned_and_goes_back_with_its_checkpoint() -> None:
    curve = Curve()
    for step in range(10_000):
        curve.add(step, 1.0)
    assert len(curve.points) <= MOST_POINTS + 1
    curve.add(5_000, 2.0)
    assert max(step for step, _ in curve.points) <= 5_000


@pytest.fixture
def long_run(site: Site) -> Iterator[Path]:
    """A tiny model that would train for minutes."""
    folder = long_run_in(site.studio.workspace.folder)
    yield folder
    if process_at_work(folder):
        control.stop(folder)


def long_run_in(runs: Path) -> Path:
    """The folder of a run that would train for minutes."""
    folder = runs / "long"
    make_tiny_causal_lm(folder / "teacher")
    lines = [{"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": "a b c"}]}
             for i in range(64)]  # fmt: skip
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.yaml").write_text(
        "name: long\nteacher: {kind: local, model: ./teacher, device: cpu}\n"
        "student: {kind: from_teacher, layers: every_other}\ndata: {kind: jsonl, path: data.jsonl, held_out: 0.25}\n"
        "train: {max_length: 64, checkpoint_seconds: 1, objectives: [{kind: forward_kl}],"
        " args: {max_steps: 100000, use_cpu: true, logging_steps: 5}}\n"
    )
    return folder


def _wait(what: str, holds, seconds: float = 300.0) -> None:  # type: ignore[no-untyped-def]
    for _ in range(int(seconds * 10)):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError(f"never: {what}")


@pytest.mark.slow
def test_a_run_is_started_watched_killed_continued_and_stopped(site: Site, long_run: Path) -> None:
    assert site.post("runs/long", do="start").status_code == 303
    assert site.post("runs/long", do="start", follow=True).status_code in (200, 400)
    reader = Reader(long_run)
    _wait("a loss", lambda: reader.read().curves.get("train") is not None)
    _wait("a rate", lambda: (reader.read().task or {}).get("done", 0) > 0)
    page = site.get("runs/long").text
    assert "at work" in page and "Stop" in page and "<polyline" in page
    _wait("a checkpoint", lambda: any(long_run.glob(".partial-train-*/checkpoints/*")))

    pid = process_at_work(long_run)
    assert pid
    os.kill(pid, signal.SIGKILL)
    _wait("its death", lambda: process_at_work(long_run) is None)
    assert read_run(long_run).state == "interrupted"
    assert "Continue" in site.get("runs/long").text

    first = reader.read().began
    assert site.post("runs/long", do="start").status_code == 303
    _wait("the second life", lambda: process_at_work(long_run) not in (None, pid))
    _wait("its first step", lambda: reader.read().began != first and (reader.read().task or {}).get("done", 0) > 0)
    assert site.post("runs/long", do="stop").status_code == 303
    _wait("its end", lambda: process_at_work(long_run) is None)
    assert read_run(long_run).state == "interrupted"
    assert reader.read().end is not None and reader.read().end["state"] == "interrupted"


@pytest.mark.slow
def test_a_run_that_is_started_by_a_studio_in_the_background_can_be_stopped(site: Site, long_run: Path) -> None:
    """A shell starts `studio &` with interrupts ignored, which processes inherit."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        control.start(long_run)
    finally:
        signal.signal(signal.SIGINT, before)
    _wait("its start", lambda: process_at_work(long_run) is not None)
    control.stop(long_run)
    _wait("its end", lambda: not control.starting(long_run))


def test_what_cannot_begin_says_why(site: Site) -> None:
    site.post("runs", name="first")
    folder = site.studio.workspace.folder / "first"
    (folder / "prompts.jsonl").unlink()
    control.start(folder)
    _wait("its end", lambda: not control.starting(folder))
    assert "prompts.jsonl" in site.get("runs/first").text


def test_stopping_what_is_not_at_work_is_said(site: Site) -> None:
    site.post("runs", name="first")
    assert site.post("runs/first", do="stop").status_code == 400
    with pytest.raises(RunError):
        control.stop(site.studio.workspace.folder / "first")


def test_everybody_who_watches_gets_the_same_text_and_it_is_made_once() -> None:
    import asyncio

    made: list[int] = []

    def make() -> str:
        made.append(1)
        return "same"

    async def watch() -> None:
        broadcast = Broadcast(make, every=3600)
        streams = [broadcast.listen() for _ in range(200)]
        texts = await asyncio.gather(*(anext(s) for s in streams))
        assert set(texts) == {b"event: message\ndata: same\n\n"} and len({id(text) for text in texts}) == 1
        for s in streams:
            await s.aclose()

    asyncio.run(watch())
    assert len(made) == 1


def test_a_whole_artifact_beside_an_attempt_is_shown_as_the_attempt(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with write_artifact(run, "train", "k" * 64, settings={}, inputs={}, seed=0) as work:
        work.count("steps", 3)
    assert read_artifact(run / "train") is not None
    with pytest.raises(PotstillError), write_artifact(run, "train", "l" * 64, settings={}, inputs={}, seed=0):
        raise RunError("the disk is on fire", fix="pour water")
    (run / "recipe.yaml").write_text("nothing: here")
    states = {s.name: s for s in read_run(run).stages}
    assert states["train"].state == "failed" and states["train"].attempt is not None
    assert states["train"].attempt.fix == "pour water"


def test_the_command_line_says_the_address(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "potstill.cli", "studio", str(tmp_path / "runs"), "--port", "28765"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline()
        if "in use" in address:
            address = process.stdout.readline()
        assert address.startswith("open http://127.0.0.1:") and len(address.split("/")[3]) == 43
    finally:
        process.kill()
        process.wait()


def test_the_studio_ends_at_once_and_in_silence_though_a_page_is_open(tmp_path: Path) -> None:
    import urllib.request

    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "recipe.yaml").write_text("name: x")
    process = subprocess.Popen(
        [sys.executable, "-m", "potstill.cli", "studio", str(tmp_path / "runs"), "--port", "28865"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = next(line.split()[1] for line in process.stdout if line.startswith("open "))
        for _ in range(100):  # the address is printed just before the server answers
            try:
                stream = urllib.request.urlopen(f"{address}runs/x/events", timeout=30)
                break
            except OSError:
                time.sleep(0.1)
        assert stream.readline() == b"event: message\n"
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert [line for line in said.splitlines() if not line.startswith("Ctrl-C ends it")] == []
    assert stream.read().endswith(b"\n\n")  # ended, not cut

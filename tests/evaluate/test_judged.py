"""Judged quality: both orders, contradictions, length, and a judge that goes down in the middle."""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from generate.fake_teacher import FakeTeacher, FakeTeacherSettings

from potstill.errors import PotstillError, RecipeError
from potstill.evaluate.bootstrap import PairedBootstrap
from potstill.evaluate.measures.judged import Pair, at_equal_length, contradictions_by_chance, figures_of
from potstill.evaluate.stage import stage
from potstill.measures import Figures, Measures
from potstill.recipe import EndpointTeacher, parse_recipe
from potstill.recipe.measures import Fidelity, Judged
from potstill.registry import implements
from potstill.types import Answer, Request
from potstill.verify.judge import marks_in, preference_in
from small_run import SmallRun
from tiny_models import VOCAB, make_tiny_causal_lm

ANSWERS = re.compile(r"<answer ([AB]) \w+>\n(.*?)\n</answer", re.DOTALL)


class FakeJudgeSettings(FakeTeacherSettings):
    """A judge whose marks follow from the text alone (`fair`), or from the place (`first`); it goes down after some
    calls."""

    kind: Literal["fake_judge"] = "fake_judge"  # type: ignore[assignment]
    prefers: Literal["fair", "first"] = "fair"
    down_after: int = 0


@implements(FakeJudgeSettings)
class FakeJudge(FakeTeacher):
    def generate(self, requests: Sequence[Request], *, seed: int, wrote: Any = None) -> list[Answer]:
        settings = self.settings
        assert isinstance(settings, FakeJudgeSettings) and settings.calls is not None
        before = settings.calls.read_text().split() if settings.calls.exists() else []
        if settings.down_after and len(before) >= settings.down_after:
            raise PotstillError("the judge is down", fix="start it again")
        with settings.calls.open("a") as calls:
            calls.write(f"{len(requests)}\n")
        return [self._judged(str((request.messages or ({},))[0]["content"])) for request in requests]

    def _judged(self, asked: str) -> Answer:
        answers = dict(ANSWERS.findall(asked))
        marks = {"A": 9, "B": 3}
        if self.settings.prefers == "fair":  # type: ignore[attr-defined]
            marks = {name: 1 + sum(map(ord, text)) % 10 for name, text in answers.items()}
        text = f"Well.\nMarks: A {marks['A']}, B {marks['B']}"
        if "Better:" in asked:
            better = "neither" if marks["A"] == marks["B"] else max(marks, key=marks.__getitem__)
            text = f"Well.\nBetter: {better}"
        return Answer(text, "stop", 5, 5)


def asking(run: SmallRun, calls: Path, form: Literal["rubric", "pairwise"] = "rubric", **judge: Any) -> SmallRun:
    """The run, with a judge among its teachers and a measure that asks it."""
    measure = Judged(judge="critic", answer_tokens=12, form=form)
    evaluate = run.recipe.required_evaluate.model_copy(update={"measures": (Fidelity(), measure)})
    teachers = {"main": run.recipe.teachers["main"], "critic": FakeJudgeSettings(calls=calls, **judge)}
    run.recipe = run.recipe.model_copy(update={"teachers": teachers, "evaluate": evaluate})
    return run


def small(folder: Path) -> SmallRun:
    folder.mkdir(exist_ok=True)
    return SmallRun(folder, evaluate={"samples_shown": 0, "controls": []}, records=60)


def judged(run: SmallRun) -> tuple[dict[str, Any], Measures]:
    context = run.context()
    stage(run.recipe).write(context)
    measures = Measures.load(context.out / "measures.json")
    rows = {
        spec.name: values
        for finding in measures.findings
        if isinstance(finding, Figures) and finding.section == "judged"
        for spec, values in finding.rows
    }
    return rows, measures


@pytest.mark.parametrize("form", ["rubric", "pairwise"])
def test_a_fair_judge_gives_shares_and_never_contradicts_itself(
    tmp_path: Path, form: Literal["rubric", "pairwise"]
) -> None:
    rows, measures = judged(asking(small(tmp_path), tmp_path / "calls", form))
    (loss,) = measures.losses
    assert loss.share == pytest.approx(1 - 2 * rows["preferred"]["student"].value)
    assert loss.size.low == pytest.approx(1 - 2 * rows["preferred"]["student"].high)
    for name in ("student", "text_only"):
        assert rows["contradicts"][name].value == 0
        assert 0 <= rows["preferred"][name].value <= 1
    lines = [json.loads(line) for line in (tmp_path / "evaluate" / "judged.jsonl").read_text().splitlines()]
    assert set(lines[0]["answers"]) == {"teacher", "student", "text_only"}
    if form == "rubric":
        marks = [line["judged"]["student"]["marks"] for line in lines]
        share = sum(mine for mine, _ in marks) / sum(theirs for _, theirs in marks)
        assert rows["share_of_marks"]["student"].value == pytest.approx(share)
    else:
        assert "share_of_marks" not in rows


def test_of_a_judge_that_prefers_a_place_no_share_is_given(tmp_path: Path) -> None:
    rows, measures = judged(asking(small(tmp_path), tmp_path / "calls", prefers="first"))
    assert set(rows) == {"contradicts", "chance"} and measures.losses == ()
    assert rows["contradicts"]["student"].value == 1 and rows["chance"]["student"].value == 0.5
    assert any("no share is given: the judge contradicts itself in 100 %" in note for note in measures.notes)


def test_a_judge_that_goes_down_in_the_middle_is_asked_the_rest_alone(tmp_path: Path) -> None:
    whole_calls, calls, run = tmp_path / "whole-calls", tmp_path / "calls", small(tmp_path)
    whole, _ = judged(asking(run, whole_calls))
    (tmp_path / "journal.sqlite").unlink()
    with pytest.raises(PotstillError, match="the judge is down"):
        judged(asking(run, calls, down_after=3))
    assert len(calls.read_text().split()) == 3
    resumed, _ = judged(asking(run, calls))
    assert resumed == whole
    assert calls.read_text() == whole_calls.read_text()


class JudgingServer(ThreadingHTTPServer):
    """A judge behind an OpenAI-compatible address, whose marks follow from the text alone. After `left` answers it
    hangs up on everybody."""

    daemon_threads = True
    request_queue_size = 128  # all questions may come at once

    def __init__(self, left: float = math.inf) -> None:
        super().__init__(("127.0.0.1", 0), JudgingHandler)
        self.left, self.paid, self.lock = left, Counter[str](), threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class JudgingHandler(BaseHTTPRequestHandler):
    server: JudgingServer

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][0]["content"]
        with self.server.lock:
            self.server.left -= 1
            if self.server.left < 0:
                self.close_connection = True
                return
            self.server.paid[asked] += 1
        marks = {name: 1 + sum(map(ord, text)) % 10 for name, text in ANSWERS.findall(asked)}
        said = {"role": "assistant", "content": f"Well.\nMarks: A {marks['A']}, B {marks['B']}"}
        usage = {"prompt_tokens": 50, "completion_tokens": 9, "total_tokens": 59}
        body = json.dumps(
            {"choices": [{"index": 0, "message": said, "finish_reason": "stop"}], "usage": usage}
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def judging() -> Iterator[JudgingServer]:
    with JudgingServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def behind(run: SmallRun, address: str) -> SmallRun:
    """The run, with a judge behind a server among its teachers."""
    measure = Judged(judge="critic", answer_tokens=12)
    evaluate = run.recipe.required_evaluate.model_copy(update={"measures": (Fidelity(), measure)})
    critic = EndpointTeacher(base_url=address, model="critic", patience_seconds=0.5, timeout_seconds=60, retries=2)
    teachers = {"main": run.recipe.teachers["main"], "critic": critic}
    run.recipe = run.recipe.model_copy(update={"teachers": teachers, "evaluate": evaluate})
    return run


def test_a_server_that_goes_down_in_the_middle_is_paid_for_each_question_once(
    tmp_path: Path, judging: JudgingServer
) -> None:
    run = behind(small(tmp_path), judging.address)
    whole, _ = judged(run)
    questions = Counter(judging.paid)
    assert sum(questions.values()) == len(questions) == 4 * len(run.held_out_records)
    (tmp_path / "journal.sqlite").unlink()
    judging.paid.clear()
    judging.left = len(questions) // 3
    with pytest.raises(PotstillError):
        judged(run)
    assert 0 < sum(judging.paid.values()) <= len(questions) // 3
    judging.left = math.inf
    resumed, _ = judged(run)
    assert resumed == whole
    assert judging.paid == questions


SERVE = """
import itertools, os, sys, threading, urllib.request, xllamacpp
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, most = int(sys.argv[2]), int(sys.argv[3])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.warmup, params.endpoint_metrics = sys.argv[1], 16384, False, True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
kind = xllamacpp.common_grammar_type.COMMON_GRAMMAR_TYPE_USER
params.sampling.grammar = xllamacpp.CommonGrammar(kind, 'root ::= "Marks: A " [1-9] ", B " [1-9]')
params.port = 0 if most else port
server = xllamacpp.Server(params)
answered = itertools.count(1)


class Door(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + self.path, body, headers)
        with urllib.request.urlopen(request) as reply:
            answer = reply.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        self.wfile.flush()
        if next(answered) == most:
            os._exit(9)

    def log_message(self, *args):
        pass


if most:
    door = ThreadingHTTPServer(("127.0.0.1", port), Door)
    threading.Thread(target=door.serve_forever, daemon=True).start()
print(f"http://127.0.0.1:{port}" if most else server.listening_address, flush=True)
sys.stdin.readline()
lines = urllib.request.urlopen(server.listening_address + "/metrics").read().decode().splitlines()
written = next(line.split()[1] for line in lines if line.startswith("llamacpp:tokens_predicted_total"))
print(int(float(written)), flush=True)
sys.stdin.read()
"""
"""llama.cpp's server with a judge whose replies a grammar keeps to the form, 16 tokens each. It says at the end how
many tokens it wrote; or its process, with a door before it that counts, dies with the last of so many answers."""


@contextmanager
def llama_server(model: Path, port: int = 0, dies_after: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A process with its address."""
    command = [sys.executable, "-c", SERVE, str(model), str(port), str(dies_after)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        yield process.stdout.readline().strip(), process
        process.stdin.close()


def little_judge(folder: Path) -> Path:
    """A model with random weights, as a file of llama.cpp's, with room for a judge's questions. Its tokenizer has one
    merge: llama.cpp opens no file without any."""
    from potstill.export.gguf_file import write_gguf

    make_tiny_causal_lm(folder, vocab=VOCAB + 1, seed=3)
    for name in ("tokenizer.json", "config.json"):
        document = json.loads((folder / name).read_text())
        if name == "config.json":
            document["max_position_embeddings"] = 4096
        else:
            document["model"]["vocab"]["th"], document["model"]["merges"] = VOCAB, [["t", "h"]]
        (folder / name).write_text(json.dumps(document))
    write_gguf(folder, folder / "judge.gguf", "f32", end_tokens=[2], name="judge")
    return folder / "judge.gguf"


@pytest.mark.slow
@pytest.mark.needs("llama.cpp's server")
def test_a_real_server_that_dies_is_asked_the_rest_alone_and_a_judge_of_random_weights_is_not_believed(
    tmp_path: Path,
) -> None:
    judge = little_judge(tmp_path / "judge")
    run = SmallRun(tmp_path, evaluate={"samples_shown": 0, "controls": []}, records=30, text_only=False)
    questions = 2 * len(run.held_out_records)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with llama_server(judge, port, dies_after=6) as (address, process):
        with pytest.raises(PotstillError) as caught:
            judged(behind(run, f"{address}/v1"))
        assert process.wait() == 9 and str(port) in str(caught.value) and "fix" in str(caught.value)
    with llama_server(judge, port) as (again, process):
        assert again == address
        context = behind(run, f"{again}/v1").context()
        stage(run.recipe).write(context)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        tokens = int(process.stdout.readline())
    kept = context.work.facts["judge"]["answers_from_journal"]
    assert kept >= 4, "what was answered before it died"
    assert tokens == 16 * (questions - kept), "the rest alone was written again"
    measures = Measures.load(context.out / "measures.json")
    (figures,) = (f for f in measures.findings if isinstance(f, Figures) and f.section == "judged")
    assert [spec.name for spec, _ in figures.rows] == ["contradicts", "chance"] and measures.losses == ()
    assert any("Of the student no share is given: the judge contradicts itself" in note for note in measures.notes)


HOSTILE = [
    "",
    "Marks: A 7, B",
    "Marks: A \u0667, B \u0663",
    "Marks: A 7, B 3\n" * 50_000 + "Marks: none",
    "[" * 500 + "Marks: A 7, B 3",
    "\x00\x1b[31mMarks: A 99999999999999999999, B 1",
    "Marks: A 0, B 11",
    "<script>alert(1)</script>",
    "Better: A",
    "x" * 1_000_000,
    "mark: " + " *_" * 100_000,
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_reply_of_any_shape_is_no_verdict_or_marks_within_the_scale(number: int) -> None:
    marks = marks_in(HOSTILE[number], 10)
    assert marks is None or all(1 <= mark <= 10 for mark in marks)
    assert preference_in(HOSTILE[number]) in (None, 1.0)


# ---- what a reply says, and the statistics -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "marks"),
    [
        ("Fine.\nMarks: A 7, B 10", (7, 10)),
        ("**Marks: A: 7 and B: 3.**", (7, 3)),
        ("Marks: A 7, B 11", None),
        ("Marks: A 7, B 3\nMarks: A 7, B three", None),
        ("A 7, B 3", None),
        ("Marks: A 7, B 3, or so", None),
    ],
)
def test_marks_are_read_from_the_last_line_alone(said: str, marks: tuple[int, int] | None) -> None:
    assert marks_in(said, 10) == marks


@pytest.mark.parametrize(
    ("said", "found"), [("Better: A", 1.0), ("Better: b.", 0.0), ("Better: tie", 0.5), ("A", None)]
)
def test_a_preference_is_read(said: str, found: float | None) -> None:
    assert preference_in(said) == found


def bootstrap(count: int) -> PairedBootstrap:
    return PairedBootstrap([f"g{n}" for n in range(count)], resamples=300, confidence=0.95, seed=0)


def test_chance_is_that_of_a_coin_with_as_many_ties() -> None:
    orders = np.array([[0.5, 1.0], [0.5, 0.0], [1.0, 0.0], [1.0, 1.0]])  # a quarter of what it says is a tie
    chance = bootstrap(4).value(contradictions_by_chance(orders))
    assert chance == pytest.approx(1 - 0.25**2 - 2 * (0.75 / 2) ** 2)


@pytest.mark.parametrize("prefers", [0.0, 1.0])
def test_a_judge_that_always_prefers_the_same_side_is_believed(prefers: float) -> None:
    pairs = [Pair(n, (prefers, prefers), None, 0.0) for n in range(40)]
    found, refused = figures_of(pairs, bootstrap(40))
    assert not refused and found["preferred"].value == prefers and found["contradicts"].high < 0.2


def test_a_judge_that_tosses_a_coin_is_not() -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(20):
        pairs = [Pair(n, (float(rng.integers(2)), float(rng.integers(2))), None, 0.0) for n in range(100)]
        refused += figures_of(pairs, bootstrap(100))[1]
    assert refused >= 19


def test_students_of_several_seeds_have_their_variation_in_the_intervals() -> None:
    def pairs(seed: int, won: float) -> list[Pair]:
        return [Pair(n, (float(n < won * 60),) * 2, (5.0 + seed, 6.0), 0.0) for n in range(60)]  # type: ignore[arg-type]

    three = [*pairs(0, 0.2), *pairs(1, 0.5), *pairs(2, 0.8)]
    groups = PairedBootstrap([f"g{n % 60}" for n in range(180)], resamples=300, confidence=0.95, seed=0)
    found, _ = figures_of(three, groups, np.repeat([0, 1, 2], 60))
    pooled, _ = figures_of(three, groups)
    # Student's interval of 0.2, 0.5 and 0.8 alone reaches 0.75 to either side; pooled, seeds would not count.
    assert found["preferred"].value == pytest.approx(0.5)
    assert (found["preferred"].low, found["preferred"].high) == (0.0, 1.0)
    assert pooled["preferred"].low > 0.3
    assert found["share_of_marks"].high - found["share_of_marks"].low > 2 * 4.302 * (1 / 6) / 3**0.5


def test_at_equal_length_nothing_is_left_of_a_preference_for_length() -> None:
    rng = np.random.default_rng(0)
    longer = rng.normal(0.5, 0.3, 400)
    score = 0.5 + 0.4 * longer
    controlled = bootstrap(400).interval(at_equal_length(score, longer))
    assert score.mean() > 0.65 and controlled.value == pytest.approx(0.5)
    theirs = rng.uniform(4, 8, 400)
    share = bootstrap(400).value(at_equal_length(theirs - 1 + longer, longer, theirs))
    assert share == pytest.approx(1 - 1 / theirs.mean())
    assert bootstrap(400).value(at_equal_length(score, np.zeros(400))) == pytest.approx(score.mean())


def test_a_judge_must_be_one_of_the_teachers_and_the_task_must_write() -> None:
    recipe = {
        "name": "x",
        "teacher": {"kind": "local", "model": "m"},
        "student": {"kind": "from_teacher"},
        "data": {"kind": "jsonl", "path": "x.jsonl", "held_out": 0.1},
        "train": {"max_length": 200},
        "evaluate": {"measures": [{"kind": "judged", "judge": "critic"}]},
    }
    with pytest.raises(RecipeError, match="teacher 'critic' is not among the teachers"):
        parse_recipe(recipe, base=Path())

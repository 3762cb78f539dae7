"""Records of any program are judged before they are kept, by whichever teacher the recipe names for it."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from generate.endpoint_run import EndpointRun
from generate.fake_teacher import FakeTeacher, FakeTeacherSettings
from mock_server import mock

from potstill.answering.budget import TokenBudget
from potstill.answering.journal import Journal
from potstill.answering.local import JournaledTeacher, LocalAnswering
from potstill.artifacts import Work
from potstill.check import check_recipe
from potstill.console import Console
from potstill.data import load_records, load_rejects
from potstill.errors import DataError, RecipeError
from potstill.generate import verifying as module
from potstill.generate.preview import preview
from potstill.generate.sequence import Sequence as SequenceOf
from potstill.generate.verifying import Verifying
from potstill.recipe import SequenceProgram, load_recipe
from potstill.types import Answer, Reason, Record, Reject, Request


class Writer(FakeTeacher):
    """Says which sample it is, in words that grow with it."""

    def generate(self, requests: Sequence[Request], *, seed: int, wrote: Any = None) -> list[Answer]:
        return [Answer(" ".join(["word"] * (1 + request.sample)), "stop", 5, 6) for request in requests]


def write(folder: Path, records: Sequence[Record | Reject], **settings: Any) -> tuple[list[Record | Reject], Work]:
    work = Work(folder, resumed=False)
    program = SequenceProgram(**({"samples": 4, "temperature": 1.0, "max_new_tokens": 8} | settings))
    with Journal(folder / "journal.sqlite") as journal:
        journaled = JournaledTeacher(
            Writer(FakeTeacherSettings()), journal, budget=TokenBudget(None), seed=0, console=Console("quiet")
        )
        made = Verifying(SequenceOf(program), program, program.verify)
        answering = LocalAnswering(journaled, batch_size=8)
        return list(made.write(records, answering, side_of=lambda record: "train", work=work)), work


def prompts(count: int) -> list[Record | Reject]:
    return [Record(prompt=f"Question {n}?", row=n + 1, completion="word word") for n in range(count)]


def test_what_a_verifier_does_not_accept_is_in_the_ledger_in_its_place(tmp_path: Path) -> None:
    items, work = write(tmp_path, prompts(2), verify={"kind": "length", "least": 2, "most": 3})
    assert [(item.row, isinstance(item, Record)) for item in items] == [
        (row, kept) for row in (1, 2) for kept in (False, True, True, False)
    ]
    first, second = items[0], items[1]
    assert isinstance(first, Reject) and first.reason == "rejected by the verifier" and "sample 0: " in first.detail
    assert isinstance(second, Record) and second.verdicts[0].verifier == "length@2"
    assert work.facts["verifier"]["name"] == "length"


def test_the_answer_of_the_data_is_the_reference(tmp_path: Path) -> None:
    items, _ = write(tmp_path, prompts(1), verify={"kind": "exact", "answer": "whole"})
    assert [item.sample for item in items if isinstance(item, Record)] == [1]  # two words
    without: list[Record | Reject] = [Record(prompt="Question?", row=1)]
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="none of the 1 prompts has a reference answer"):
        write(tmp_path / "other", without, verify={"kind": "exact"})


def test_the_best_are_kept_by_the_score_of_the_verifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever block their prompt falls into."""
    from potstill.generate.verifying import Verification
    from potstill.types import Verdict

    def scored(self: Verification, items: Any) -> Any:
        for _, answer in items:
            score = {1: None, 2: 0.25, 3: 0.75, 4: 0.75}[len(answer.text.split())]
            yield Verdict("accept", "as told", score, "told@1")

    monkeypatch.setattr(Verification, "verdicts", scored)
    for at_once in (1, 2, 5, 1024):
        monkeypatch.setattr(module, "_AT_ONCE", at_once)
        (folder := tmp_path / str(at_once)).mkdir()
        items, _ = write(folder, prompts(3), verify={"kind": "length"}, keep="best", kept=2)
        kept = [(item.row, item.sample) for item in items if isinstance(item, Record)]
        assert kept == [(row, sample) for row in (1, 2, 3) for sample in (2, 3)]
        rejects = [item for item in items if isinstance(item, Reject)]
        assert {reject.reason for reject in rejects} == {Reason.NOT_CHOSEN} and len(items) == 12
        assert rejects[0].detail == "sample 0: keep: best: 2 of 4 accepted are kept; its score: None"


def test_the_sample_most_like_the_reference_is_kept(tmp_path: Path) -> None:
    """Sequence-level interpolation, Kim & Rush 2016, §3.3. Sample k says `word` k + 1 times."""
    asked: list[Record | Reject] = [Record(prompt="Question?", row=1, completion="word word word and")]
    items, _ = write(tmp_path, asked, verify={"kind": "sentence_bleu"}, keep="best")
    (kept,) = (item for item in items if isinstance(item, Record))
    assert kept.sample == 2
    assert kept.verdicts[0].score == pytest.approx(math.exp(1 - 4 / 3))  # all n-grams match; one word is missing


RECIPE = """
name: judged
teachers:
  main: {{kind: endpoint, base_url: {main}, model: writer, price: {{input: 1, output: 2}}}}
  strict: {{kind: endpoint, base_url: {judge}, model: strict, price: {{input: 100, output: 200}}}}
data: {{kind: jsonl, path: prompts.jsonl, format: prompt, held_out: 0.2}}
generate:
  kind: sequence
  samples: 3
  temperature: 1.0
  max_new_tokens: 24
  verify: {{kind: judge, teacher: strict, accept_from: 2, max_new_tokens: 16}}
  keep: best
  {more}
"""


def made_with(folder: Path, main: str, judge: str, more: str = "") -> EndpointRun:
    run = EndpointRun(folder, main, prompts=10, samples=3)
    (folder / "recipe.yaml").write_text(RECIPE.format(main=main, judge=judge, more=more))
    return run


def dollars_of(stats: dict[str, Any], price: float) -> float:
    """As the recipe has it: what is written costs twice as much as what is read."""
    return price * float(2 * stats["tokens"] - stats["prompt_tokens"])


def test_a_judge_behind_another_server_chooses_among_what_was_written(tmp_path: Path) -> None:
    with mock() as writer, mock(marks=True) as judge:
        made = made_with(tmp_path, writer.url, judge.url)
        found = check_recipe(load_recipe(tmp_path / "recipe.yaml"))
        made.finish()
        asked, judged = writer.stats(), judge.stats()
        assert (asked["answers"], judged["answers"]) == (30, 30)
        lines = found.lines["generate"]
        assert lines[0].startswith("60 answers (30 of a judge)") and lines[1].startswith("main: at most ")
        assert lines[2].startswith("strict: at most ")
        assert found.figures["tokens_at_most"] == 30 * (24 + 16)
        cost = dollars_of(asked, 1e-6) + dollars_of(judged, 1e-4)
        assert cost <= found.figures["dollars_at_most"]

        facts, output = made.manifest["facts"], made.output
        assert facts["teacher"]["model"] == "writer" and facts["judges"]["strict"]["teacher"]["model"] == "strict"
        assert facts["judges"]["strict"]["answers"] == 30
        assert f"| Judge `strict` | `strict`, `endpoint {judge.url}` |" in output["README.md"].decode()
        records = load_records(made.run / "generate" / "records.parquet")
        rejects = load_rejects(made.run / "generate" / "rejects.jsonl")
        assert len(records) + len(rejects) == 30 and len({record.row for record in records}) == len(records)
        marks: dict[int, list[float]] = {}
        for reject in rejects:
            if reject.reason == Reason.NOT_CHOSEN:
                marks.setdefault(reject.row, []).append(float(reject.detail.rsplit(" ", 1)[1]))
        assert marks
        for record in records:
            (verdict,) = record.verdicts
            assert verdict.verifier == "judge@2" and verdict.score is not None
            assert verdict.score >= max(marks.get(record.row, [0.0]))
        # Nothing is sent again; and to another judge, only what it judges.
        made.finish()
        assert made.output == output and writer.stats()["answers"] == judge.stats()["answers"] == 30
        made.finish("teachers.strict.model=stricter")
        assert writer.stats()["answers"] == 30 and judge.stats()["answers"] == 60


@pytest.mark.parametrize("cap", ["requests: 45", "tokens: 3000", "money: 0.2"])
def test_writer_and_judge_share_a_cap_that_is_not_exceeded(cap: str, tmp_path: Path) -> None:
    with mock(latency_seconds=0.005) as writer, mock(marks=True, latency_seconds=0.005) as judge:
        made = made_with(tmp_path, writer.url, judge.url, f"budget: {{{cap}}}")
        made.here()
        asked, judged = writer.stats(), judge.stats()
    dollars = dollars_of(asked, 1e-6) + dollars_of(judged, 1e-4)
    spent = {"requests": asked["requests"] + judged["requests"], "tokens": asked["tokens"] + judged["tokens"]}
    name, most = cap.split(": ")
    used = (spent | {"money": dollars})[name] / float(most)
    assert 0.5 < used <= 1 and judged["answers"] < 30
    assert {r.reason for r in load_rejects(made.run / "generate" / "rejects.jsonl")} & {"cannot be judged"}


def test_a_judge_does_not_wait_for_what_is_set_aside_for_requests_that_nobody_sends(tmp_path: Path) -> None:
    """The writer's server fails for good, and what was set aside for it leaves the judge no room within the cap."""
    with mock(latency_seconds=0.002, forbid_after=1060) as writer, mock(marks=True) as judge:
        made = made_with(tmp_path, writer.url, judge.url, "budget: {tokens: 60000}")
        lines = [json.dumps({"prompt": f"Question {n}: what is a still?"}) for n in range(2000)]
        (made.folder / "prompts.jsonl").write_text("\n".join(lines))
        process = made.start("teachers.main.max_in_flight=64")
        try:
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
        assert writer.stats()["answers"] >= 1024
    assert process.returncode == 2 and "the server refuses access (403: no longer)" in errors


def test_what_a_cap_leaves_out_does_not_depend_on_interruptions(tmp_path: Path) -> None:
    with mock(latency_seconds=0.004) as writer, mock(marks=True, latency_seconds=0.004) as judge:
        whole = made_with(tmp_path / "whole", writer.url, judge.url, "budget: {tokens: 3000}")
        whole.finish()
        killed = made_with(tmp_path / "killed", writer.url, judge.url, "budget: {tokens: 3000}")
        before = writer.stats()["answers"] + judge.stats()["answers"]
        process = killed.start("teachers.strict.max_in_flight=2", "teachers.main.max_in_flight=2")
        while writer.stats()["answers"] + judge.stats()["answers"] < before + 35 and process.poll() is None:
            pass
        process.send_signal(signal.SIGINT)  # what is under way is waited for, so that nothing is lost to the cap
        process.communicate()
        killed.finish()
        assert killed.output == whole.output


def test_a_preview_asks_no_judge(tmp_path: Path) -> None:
    with mock() as writer, mock(marks=True) as judge:
        made = made_with(tmp_path, writer.url, judge.url)
        recipe = load_recipe(made.folder / "recipe.yaml")
        (made.folder / "preview").mkdir()
        found = preview(recipe, made.folder / "preview", 40, Console("quiet"))  # of 30
        assert (writer.stats()["requests"], judge.stats()["requests"]) == (30, 0)
    assert len(found["requests"]) == 30 and found["rejected"] == {"cannot be judged": 30}


def test_a_local_writer_may_have_a_judge_behind_a_server(tmp_path: Path) -> None:
    local = (
        "teachers: {main: {kind: local, model: m}, strict: {kind: endpoint, base_url: http://127.0.0.1:9/v1, model: j}}"
    )
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Question?"}))

    def load(generate: str) -> None:
        (tmp_path / "recipe.yaml").write_text(
            f"name: n\n{local}\ndata: {{kind: jsonl, path: prompts.jsonl, format: prompt}}\ngenerate: {generate}\n"
        )
        load_recipe(tmp_path / "recipe.yaml")

    judge = "verify: {kind: judge, teacher: strict}"
    load(f"{{kind: sequence, {judge}, budget: {{tokens: 1000}}}}")
    load(f"{{kind: reasoning, {judge}, keep: best, kept: 1}}")
    load(f"{{kind: self_instruct, {judge}}}")
    exact = "{kind: self_instruct, verify: {kind: all, of: [{kind: length}, {kind: exact}]}}"
    with pytest.raises(RecipeError, match="a task that a teacher makes brings nothing"):
        load(exact)
    local = local.replace("model: j", "model: j, api: completions")
    with pytest.raises(RecipeError, match="a judge is asked in turns, and 'strict' continues plain texts"):
        load(f"{{kind: sequence, {judge}}}")
    local = local.replace(", api: completions", "")
    for generate, said in (
        (f"{{kind: sequence, {judge}, token_budget: 1000}}", "cap what the endpoint costs by budget"),
        ("{kind: sequence, verify: {kind: judge, teacher: other}}", "teacher 'other' is not among the teachers"),
        ("{kind: sequence, samples: 2, temperature: 1, keep: best}", "by the score of verify"),
        ("{kind: sequence, keep: best, verify: {kind: judge}}", "set samples above 1"),
        ("{kind: sequence, budget: {tokens: 9}, verify: {kind: judge}}", "a cap for endpoints"),
        ("{kind: sequence, verify: {kind: length, unit: tokens, of: both}}", "set unit: words"),
    ):
        with pytest.raises(RecipeError, match=said):
            load(generate)

"""The stage with a teacher behind a server: order, journal, keys, and what is said of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from generate.endpoint_run import SCRIPT, EndpointRun
from mock_server import Mock, mock, text_for

from potstill.answering.endpoint import EndpointAnswering
from potstill.answering.journal import Journal
from potstill.console import Console
from potstill.data import load_records, load_rejects
from potstill.errors import DataError
from potstill.recipe import EndpointTeacher
from potstill.teachers import EndpointModel
from potstill.types import Reason, Request, Sampling


@pytest.fixture(scope="module")
def server() -> Iterator[Mock]:
    with mock(latency_seconds=0.01) as started:
        yield started


@pytest.fixture(scope="module")
def answered(server: Mock, tmp_path_factory: pytest.TempPathFactory) -> EndpointRun:
    """A finished run."""
    made = EndpointRun(tmp_path_factory.mktemp("answered"), server.url)
    assert made.here() == 0
    return made


def test_every_prompt_is_answered_and_rows_stand_in_the_order_of_the_data(answered: EndpointRun) -> None:
    records = load_records(answered.run / "generate" / "records.parquet")
    assert [(r.row, r.sample) for r in records] == [(n, s) for n in range(1, 61) for s in range(2)]
    for record in records:  # each has the answer to its own request, and not a neighbour's
        assert record.messages is not None
        *asked, answer = record.messages
        sent = {**record.provenance.sampling, "model": "mock", "messages": asked, "seed": record.provenance.seed}
        assert answer["content"] == text_for({name: sent.get(name) or None for name in sent})
    assert len({r.provenance.seed for r in records}) == 120  # so that samples differ
    facts = answered.manifest["facts"]
    assert (facts["answers"], facts["answers_from_journal"], facts["requests_sent"]) == (120, 0, 120)
    assert facts["price"] == "unknown" and facts["dollars"] is None


def test_a_record_says_where_it_comes_from(answered: EndpointRun, server: Mock) -> None:
    provenance = load_records(answered.run / "generate" / "records.parquet")[0].provenance
    assert (provenance.teacher, provenance.route) == ("mock", f"endpoint {server.url}")
    assert provenance.sampling["temperature"] == 0.7 and provenance.seed is not None
    assert provenance.template == "the server's"


def test_a_second_run_sends_nothing(answered: EndpointRun, server: Mock) -> None:
    before, output = server.stats()["requests"], answered.output
    assert answered.here() == 0
    assert server.stats()["requests"] == before
    assert answered.output == output
    assert answered.manifest["facts"]["answers_from_journal"] == 120


@pytest.mark.parametrize(
    "change",
    ["teacher.reasoning=required", "generate.keep_unfinished=false", "generate.jsonl=true", "teacher.max_in_flight=3"],
)
def test_what_is_decided_after_the_answer_sends_nothing(change: str, answered: EndpointRun, server: Mock) -> None:
    before = server.stats()["requests"]
    code = answered.here(change)
    assert code == (2 if "reasoning" in change else 0)  # the mock does not reason: then no answer is kept
    assert server.stats()["requests"] == before


@pytest.mark.parametrize(
    "change",
    [
        "generate.temperature=0.8",
        "generate.top_p=0.9",
        "generate.top_k=9",
        "generate.max_new_tokens=23",
        "teacher.model=other",
        "teacher.extra.min_p=0.1",
        "teacher.omit=[top_p]",
        "teacher.max_tokens_field=max_completion_tokens",
        "seed=8",
    ],
)
def test_what_changes_answers_is_a_miss(change: str, answered: EndpointRun, server: Mock) -> None:
    before = server.stats()["requests"]
    assert answered.here(change) == 0
    assert server.stats()["requests"] == before + answered.requests


def test_another_server_is_a_miss(answered: EndpointRun) -> None:
    with mock() as other:
        assert answered.here(f"teacher.base_url={other.url}") == 0
        assert other.stats()["requests"] == answered.requests


def test_a_journal_in_part_is_filled_up_and_the_files_are_the_same(
    answered: EndpointRun, server: Mock, tmp_path: Path
) -> None:
    """The first half is answered by itself, as if the rest had not been there yet."""
    half = EndpointRun(tmp_path, server.url)
    prompts = half.folder / "prompts.jsonl"
    whole = prompts.read_text()
    prompts.write_text("\n".join(whole.splitlines()[:30]))
    assert half.here() == 0
    prompts.write_text(whole)
    before = server.stats()["requests"]
    assert half.here() == 0
    assert server.stats()["requests"] == before + 60
    assert answered.here() == 0  # other tests have left other settings behind
    assert half.output == answered.output


def test_every_way_of_reasoning_is_read(tmp_path: Path) -> None:
    for way in ("reasoning_content", "reasoning", "think", "bare"):
        with mock(reasoning=way) as server:
            made = EndpointRun(tmp_path / way, server.url, prompts=3, samples=1)
            assert made.here() == 0
        for record in load_records(made.run / "generate" / "records.parquet"):
            assert record.messages is not None
            assert record.messages[-1]["reasoning_content"] == "Let me think."
            assert "think" not in record.messages[-1]["content"]


def test_answers_with_half_a_surrogate_pair_are_kept(tmp_path: Path) -> None:
    with mock(halves=True) as server:
        made = EndpointRun(tmp_path, server.url, prompts=20)
        assert made.here() == 0
    records = load_records(made.run / "generate" / "records.parquet")
    assert len(records) == 40
    assert all(r.messages is not None and r.messages[-1]["content"].endswith(" \ufffd") for r in records)


def test_reasoning_without_an_end_is_a_reject_and_another_parser_sends_nothing(tmp_path: Path) -> None:
    with mock(reasoning="unclosed") as server:
        made = EndpointRun(tmp_path, server.url, prompts=3, samples=1)
        assert made.here() == 2  # none was kept
        assert made.here("teacher.reasoning=required") == 2
        assert server.stats()["requests"] == 3


def test_records_are_read_by_datasets_as_parquet_as_json_lines_and_by_the_card(
    answered: EndpointRun, tmp_path: Path
) -> None:
    import datasets

    assert answered.here("generate.jsonl=true") == 0
    folder = answered.run / "generate"
    cache = str(tmp_path)
    by_card = datasets.load_dataset(str(folder), split="train", cache_dir=cache)
    lines = datasets.load_dataset("json", data_files=str(folder / "records.jsonl"), split="train", cache_dir=cache)
    assert len(by_card) == len(lines) == 120
    assert by_card[7]["messages"] == lines[7]["messages"] and by_card[7]["id"] == lines[7]["id"]
    assert by_card.column_names == lines.column_names


def test_the_card_says_what_was_kept_out_and_why(tmp_path: Path, server: Mock) -> None:
    # Answers follow from the server's port too: 49 of them are neither all longer than 12 words nor all shorter.
    made = EndpointRun(tmp_path, server.url, prompts=49, samples=1)
    with (tmp_path / "prompts.jsonl").open("a") as prompts:
        prompts.write('\n{"prompt": "Question 0: what is a still?"}')
    assert made.here("generate.max_new_tokens=12", "generate.keep_unfinished=false") == 0
    card = (made.run / "generate" / "README.md").read_text()
    rejects = load_rejects(made.run / "generate" / "rejects.jsonl")
    cut = sum(r.reason == "unfinished answer" for r in rejects)
    assert 0 < cut < 49 and f"| unfinished answer | {cut} | {100 * cut / 50:.1f} % |" in card
    assert "| exact duplicate | 1 | 2.0 % |" in card
    assert "`mock`" in card and f"endpoint {server.url}" in card


def test_what_the_server_refuses_of_one_request_is_a_reject(tmp_path: Path) -> None:
    with mock(refuse_prompts="Question 4") as server:
        made = EndpointRun(tmp_path, server.url, prompts=6, samples=1)
        assert made.here() == 0
    (reject,) = load_rejects(made.run / "generate" / "rejects.jsonl")
    assert (reject.row, reject.reason) == (5, Reason.REFUSED)
    assert "maximum context length" in reject.detail


@pytest.mark.parametrize(
    ("flags", "overrides", "said"),
    [
        ({"refuse": ["top_p"]}, (), r"does not take 'top_p'[\s\S]*add top_p to the teacher's omit"),
        ({"refuse": ["min_p"]}, ("teacher.extra.min_p=0.1",), r"does not take 'min_p'[\s\S]*drop min_p from"),
        ({"choices": 2}, (), "2 choices where one was asked for"),
        (
            {},
            ("teacher.logprobs=true",),
            r"log-probabilities, and gives none[\s\S]*set the teacher's logprobs: false",
        ),
        ({"refuse": ["logprobs"]}, ("teacher.logprobs=true",), r"not take 'logprobs'[\s\S]*teacher's logprobs: false"),
        ({"require_key": "abc"}, (), r"refuses access[\s\S]*api_key_env"),
        ({}, ("teacher.base_url=URL/v2",), "has no such address or model"),
        ({}, ("teacher.api_key_env=NO_SUCH_VARIABLE",), "NO_SUCH_VARIABLE is not set"),
        ({}, ("generate.budget.money=1",), r"nobody knows what 'mock' at 127.0.0.1 costs[\s\S]*teacher.price"),
    ],
)
def test_what_no_request_can_pass_ends_the_work_with_the_fix(
    flags: dict[str, object], overrides: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    with mock(**flags) as server:
        made = EndpointRun(tmp_path, server.url)
        overrides = tuple(o.replace("URL", server.url.removesuffix("/v1")) for o in overrides)
        assert made.here(*overrides) == 2
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_log_probabilities_are_asked_for_by_name_and_their_mean_is_kept(api: str, tmp_path: Path) -> None:
    with mock(logprobs=True) as server:
        made = EndpointRun(tmp_path, server.url, prompts=4, samples=1)
        assert made.here("teacher.logprobs=true", f"teacher.api={api}") == 0
    for record in load_records(made.run / "generate" / "records.parquet"):
        said = record.messages[-1]["content"] if record.messages else record.completion
        several = [-0.5 * (index % 3) for index in range(len(str(said).split(" ")))]
        assert record.metadata["mean_logprob"] == round(sum(several) / len(several), 4)


def test_conversations_over_completions_are_rendered_by_the_tokenizer_or_refused(
    server: Mock, tiny_llama: Path, tmp_path: Path
) -> None:
    made = EndpointRun(tmp_path, server.url, prompts=4, samples=1)
    lines = [json.dumps({"messages": [{"role": "user", "content": f"Hello {n}"}]}) for n in range(4)]
    (made.folder / "prompts.jsonl").write_text("\n".join(lines))
    overrides = ("teacher.api=completions", "data.format=messages")
    assert made.here(*overrides) == 2
    assert made.here(*overrides, f"teacher.tokenizer={tiny_llama}") == 0
    record = load_records(made.run / "generate" / "records.parquet")[0]
    assert record.messages is not None and record.messages[-1]["role"] == "assistant"
    assert record.provenance.template not in ("", "the server's")
    teacher = EndpointModel(
        EndpointTeacher(base_url=server.url, model="m", api="completions", tokenizer=str(tiny_llama))
    )
    rendered = teacher.rendered(Request(Sampling(4), prompt="Hello"))
    assert rendered is not None and "Hello" in rendered and rendered != "Hello"


def test_no_torch_and_no_transformers_are_loaded(server: Mock, tmp_path: Path) -> None:
    made = EndpointRun(tmp_path, server.url, prompts=3)
    script = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules); assert not heavy, heavy"
    )
    command = [sys.executable, "-c", script, str(SCRIPT), str(made.folder / "recipe.yaml"), str(made.run)]
    subprocess.run(command, check=True)


def answering(server: Mock, journal: Journal, **settings: object) -> EndpointAnswering:
    teacher = EndpointModel(EndpointTeacher(base_url=server.url, model="m", **settings))  # type: ignore[arg-type]
    return EndpointAnswering(teacher, journal, console=Console("quiet"))


def test_requests_are_read_a_bounded_number_ahead_of_what_is_taken(server: Mock, tmp_path: Path) -> None:
    read = 0

    def endless() -> Iterator[Request]:
        nonlocal read
        while True:
            read += 1
            yield Request(Sampling(4), prompt=f"number {read}")

    most = 0
    with (
        Journal(tmp_path / "journal.sqlite") as journal,
        answering(server, journal, max_in_flight=4) as asked,
    ):
        for taken, _ in enumerate(asked.answers(endless())):
            most = max(most, read - taken)
            if taken == 1000:
                break
    assert 64 <= most <= 32 * 4 + 2 * 64


def test_equal_requests_are_sent_once(server: Mock, tmp_path: Path) -> None:
    requests = [Request(Sampling(4), prompt=f"same {n % 3}") for n in range(300)]
    before = server.stats()["requests"]
    with Journal(tmp_path / "journal.sqlite") as journal, answering(server, journal) as asked:
        came = list(asked.answers(requests))
    assert [a.request for a in came] == requests and len({a.answer.text for a in came if a.answer}) == 3
    assert server.stats()["requests"] == before + 3


def test_questions_can_be_asked_while_answers_to_others_are_taken(server: Mock, tmp_path: Path) -> None:
    """As a judge does, through the same journal."""
    from potstill.generate import ask_all

    with Journal(tmp_path / "journal.sqlite") as journal, answering(server, journal, max_in_flight=8) as asked:
        outer = [Request(Sampling(8), prompt=f"question {n}") for n in range(200)]
        for answered in asked.answers(outer):
            assert answered.answer is not None
            (judged,) = ask_all(asked, "main", None, [Request(Sampling(8), prompt=f"judge: {answered.answer.text}")])
            assert judged.text
        assert len(journal) == 400


def test_a_conversation_that_cannot_be_rendered_is_an_error_of_the_recipe(server: Mock, tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal, answering(server, journal, api="completions") as asked:
        with pytest.raises(DataError, match=r"api: completions takes prompts[\s\S]*use api: chat"):
            asked.prompt_tokens(Request(Sampling(4), messages=({"role": "user", "content": "Hi"},)))

"""Chains of thought: what is asked, what a verifier lets through, and what is learned of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from generate.fake_teacher import CHATML, FakeTeacher, FakeTeacherSettings
from pydantic import ValidationError

from potstill.answering.budget import TokenBudget
from potstill.answering.journal import Journal
from potstill.answering.local import JournaledTeacher, LocalAnswering
from potstill.artifacts import Work
from potstill.console import Console
from potstill.errors import RecipeError
from potstill.generate import reasoning as program_module
from potstill.generate.reasoning import Reasoning
from potstill.generate.verifying import Verification
from potstill.recipe import AllOf, Judge, Numeric, ReasoningProgram, parse_recipe
from potstill.types import Answer, Provenance, Record, Reject, Request, group_of

KEEPS = CHATML.replace("m.content", "(m.reasoning_content + '\\n' if m.reasoning_content else '') + m.content")
Say = Callable[[Request], Answer]


class Solver(FakeTeacher):
    """Says what it is told to, and keeps what it was asked."""

    def __init__(self, say: Say, template: str | None = CHATML) -> None:
        super().__init__(FakeTeacherSettings(template=template))
        self.asked: list[Request] = []
        self.batches: list[int] = []
        self.say = say

    @property
    def tokenizer(self) -> Any:
        """With a token that ends a turn, without which nothing can be learned."""
        made = super().tokenizer
        made.backend_tokenizer.add_special_tokens(["<|im_end|>"])
        return made

    def generate(self, requests: Sequence[Request], *, seed: int, wrote: Any = None) -> list[Answer]:
        self.asked.extend(requests)
        self.batches.append(len(requests))
        return [self.say(request) for request in requests]


class Written(NamedTuple):
    records: list[Record]
    rejects: list[Reject]
    order: list[tuple[int, int]]
    counts: Counter[str]
    facts: dict[str, Any]


def problem(text: str, reference: str | None = "4", row: int = 1) -> Record:
    metadata = {} if reference is None else {"reference": reference}
    source = Provenance(source="sums.jsonl")
    return Record(prompt=text, group=group_of(text), row=row, provenance=source, metadata=metadata)


def said(text: str, finish: str = "stop", tokens: int = 6, reasoning: str | None = None) -> Answer:
    return Answer(text, finish, 5, tokens, reasoning)  # type: ignore[arg-type]


def asked_of(request: Request) -> str:
    return str(request.messages[-1]["content"]) if request.messages is not None else request.prompt or ""


def right_from(sample: int) -> Say:
    """Wrong until this sample, and right from there on."""
    return lambda r: said(f"Way {r.sample}: the answer is {4 if r.sample >= sample else 5}")


def write(tmp_path: Path, records: Sequence[Record | Reject], teacher: FakeTeacher, **settings: Any) -> Written:
    work = Work(tmp_path, resumed=False)
    program = ReasoningProgram(**({"verify": {"kind": "numeric"}, "max_new_tokens": 32} | settings))
    with Journal(tmp_path / "journal.sqlite") as journal:
        budget = TokenBudget(program.token_budget)
        journaled = JournaledTeacher(teacher, journal, budget=budget, seed=0, console=Console("quiet"))
        answering = LocalAnswering(journaled, batch_size=program.batch_size)
        came = list(Reasoning(program).write(records, answering, side_of=lambda record: "train", work=work))
    kept = [item for item in came if isinstance(item, Record)]
    rejects = [item for item in came if isinstance(item, Reject)]
    return Written(kept, rejects, [(r.row, r.sample) for r in kept], Counter(work.counts), work.facts)


def reasons(written: Written) -> dict[str, int]:
    return dict(Counter(reject.reason for reject in written.rejects))


def test_only_right_chains_are_kept_and_each_of_the_others_is_in_the_ledger(tmp_path: Path) -> None:
    teacher = Solver(right_from(2))
    written = write(tmp_path, [problem("2 + 2", row=1), problem("1 + 3", row=2)], teacher, samples=4)
    assert written.order == [(1, 2), (1, 3), (2, 2), (2, 3)]
    assert reasons(written) == {"wrong answer": 4}
    (verdict,) = written.records[0].verdicts
    assert verdict.outcome == "accept" and verdict.verifier.startswith("numeric@")
    assert written.records[0].metadata["chain"] == {"tokens": 6, "passed": 2, "answered": 4}
    assert written.facts["chains"]["pass_rate"] == 0.5 and written.facts["verifier"]["name"] == "numeric"
    assert written.rejects[0].detail.startswith("sample 0: ")


def test_a_problem_is_asked_until_enough_are_accepted_and_no_further(tmp_path: Path) -> None:
    easy, hard, hopeless = "1 + 3", "2 + 2", "4 + 0"
    first = {easy: 0, hard: 3, hopeless: 99}
    teacher = Solver(lambda r: right_from(first[asked_of(r)])(r))
    records = [problem(text, row=row) for row, text in enumerate(first, 1)]
    written = write(tmp_path, records, teacher, samples=8, samples_at_once=2, stop_at=2)
    assert Counter(asked_of(r) for r in teacher.asked) == {easy: 2, hard: 6, hopeless: 8}
    assert written.order == [(1, 0), (1, 1), (2, 3), (2, 4), (2, 5)]
    assert written.counts["samples not needed"] == 6 + 2 and written.counts["problems without a chain"] == 1


def test_a_truncated_chain_with_a_lucky_answer_does_not_pass(tmp_path: Path) -> None:
    lucky = Solver(lambda r: said("2 and 2. The answer is 4", "length"))
    for settings in ({}, {"accept_all": True}):
        written = write(tmp_path, [problem("2 + 2")], lucky, samples=1, **settings)
        assert not written.records and reasons(written) == {"truncated chain": 1}


def test_an_answer_inside_unended_reasoning_does_not_pass(tmp_path: Path) -> None:
    written = write(tmp_path, [problem("2 + 2")], Solver(lambda r: said("<think>The answer is 4")), samples=1)
    assert not written.records and reasons(written) == {"reasoning without an end": 1}


def test_another_verifier_filter_or_target_sends_nothing(tmp_path: Path) -> None:
    records = [problem(f"{n} + {4 - n}", row=n + 1) for n in range(4)]
    teacher = Solver(right_from(1))
    write(tmp_path, records, teacher, samples=3)
    asked = len(teacher.asked)
    assert asked == 12
    exact = {"kind": "all", "of": [{"kind": "numeric"}, {"kind": "length", "least": 99}]}
    others: list[dict[str, Any]] = [
        {"verify": exact},
        {"accept_all": True},
        {"target": "answer"},
        {"filters": {"least_words": 50}},
        {"keep": "shortest"},
        {"pass_rate": (0.9, 1.0)},
    ]
    for other in others:
        write(tmp_path, records, teacher, **({"samples": 3} | other))
    assert len(teacher.asked) == asked


def test_accept_all_keeps_the_wrong_ones_with_their_verdicts(tmp_path: Path) -> None:
    written = write(tmp_path, [problem("2 + 2")], Solver(right_from(1)), samples=2, accept_all=True)
    assert [r.verdicts[0].outcome for r in written.records] == ["reject", "accept"]
    assert written.facts["chains"]["pass_rate"] == 0.5


def test_what_cannot_be_judged_is_kept_only_where_that_is_said(tmp_path: Path) -> None:
    teacher = Solver(right_from(0))
    records = [problem("2 + 2", reference=None), problem("1 + 3", row=2)]
    written = write(tmp_path, records, teacher, samples=1)
    assert written.order == [(2, 0)] and reasons(written) == {"cannot be judged": 1}
    (record,) = write(tmp_path, records[:1], teacher, samples=1, unjudged="accept").records
    assert record.verdicts[0].outcome == "cannot_judge"


def test_problems_too_easy_or_too_hard_are_left_out(tmp_path: Path) -> None:
    first = {"1 + 3": 0, "2 + 2": 2, "4 + 0": 9}
    teacher = Solver(lambda r: right_from(first[asked_of(r)])(r))
    records = [problem(text, row=row) for row, text in enumerate(first, 1)]
    written = write(tmp_path, records, teacher, samples=4, pass_rate=(0.25, 0.75))
    assert written.order == [(2, 2), (2, 3)]
    assert reasons(written) == {"pass rate outside the window": 4, "wrong answer": 2 + 4}


def test_what_the_budget_left_unasked_says_nothing_of_difficulty(tmp_path: Path) -> None:
    teacher = Solver(right_from(0))
    written = write(tmp_path, [problem("2 + 2")], teacher, samples=4, token_budget=40, pass_rate=(1.0, 1.0))
    # The worst case of one is 32 tokens, and what is answered has 6: two fit.
    assert reasons(written) == {"token budget": 2} and len(written.records) == 2
    assert written.records[0].metadata["chain"] == {"tokens": 6, "passed": 2, "answered": 2}


def test_the_same_chain_is_kept_once_and_counts_once_towards_enough(tmp_path: Path) -> None:
    teacher = Solver(lambda r: said(f"Way {r.sample // 4}: the answer is 4"))
    written = write(tmp_path, [problem("2 + 2")], teacher, samples=8, samples_at_once=1, stop_at=2)
    assert written.order == [(1, 0), (1, 4)] and len(teacher.asked) == 5
    assert reasons(written) == {"same chain as an earlier sample": 3}


def test_the_shortest_is_kept_and_the_others_are_in_the_ledger(tmp_path: Path) -> None:
    lengths = [9, 5, 7]
    teacher = Solver(lambda r: said(f"Way {r.sample}: the answer is 4", tokens=lengths[r.sample]))
    written = write(tmp_path, [problem("2 + 2")], teacher, samples=3, keep="shortest")
    assert written.order == [(1, 1)] and reasons(written) == {"not chosen": 2}


def test_where_none_is_right_the_answer_is_a_hint_that_is_not_learned(tmp_path: Path) -> None:
    def say(request: Request) -> Answer:
        if "(it is 4)" not in asked_of(request):
            return said(f"Way {request.sample}: the answer is {4 if asked_of(request) == '1 + 3' else 5}")
        told = ["By the hint, the answer is 4", "Two more is four. The answer is 4"]
        return said(told[request.sample - 2])

    teacher = Solver(say)
    records = [problem("1 + 3", row=1), problem("2 + 2", row=2), problem("x + y", reference=None, row=3)]
    written = write(tmp_path, records, teacher, samples=2, hint="{problem} (it is {reference})", hint_samples=2)
    assert [asked_of(r) for r in teacher.asked if r.sample >= 2] == ["2 + 2 (it is 4)"] * 2
    hinted = written.records[-1]
    assert (hinted.row, hinted.sample) == (2, 3)
    assert hinted.messages is not None and hinted.messages[0]["content"] == "2 + 2"
    assert hinted.group == records[1].group
    # How hard it is does not depend on the hint.
    assert hinted.metadata["chain"] == {"tokens": 6, "hinted": True, "passed": 0, "answered": 2}
    assert reasons(written)["speaks of the hint"] == 1 and written.counts["problems solved with a hint"] == 1


def test_a_problem_is_put_by_the_instruction_and_learned_without_it(tmp_path: Path) -> None:
    teacher = Solver(right_from(0))
    text = "What is {reference} in {problem}?"
    written = write(tmp_path, [problem(text)], teacher, samples=1, instruction="Think. {problem} End with a number.")
    assert asked_of(teacher.asked[0]) == f"Think. {text} End with a number."
    assert (written.records[0].messages or ())[0]["content"] == text


def test_the_answer_of_a_record_is_its_reference(tmp_path: Path) -> None:
    pair = Record(prompt="2 + 2", completion="Two more than two.\n#### 4", group="g", row=1)
    turns = ({"role": "user", "content": "1 + 3"}, {"role": "assistant", "content": "4"})
    written = write(tmp_path, [pair, Record(messages=turns, group="h", row=2)], Solver(right_from(1)), samples=2)
    assert written.order == [(1, 1), (2, 1)]
    assert "Two more" not in str(written.records[0].messages)


def test_only_the_final_answer_is_learned_where_that_is_wanted_and_once(tmp_path: Path) -> None:
    written = write(tmp_path, [problem("2 + 2")], Solver(right_from(0)), samples=3, target="answer")
    assert [(r.messages or ())[-1] for r in written.records] == [{"role": "assistant", "content": "4"}]
    assert reasons(written) == {"same answer as an earlier sample": 2}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (KEEPS, {"role": "assistant", "content": "It is 4", "reasoning_content": "Two twice."}),
        (CHATML, {"role": "assistant", "content": "<think>\nTwo twice.\n</think>\n\nIt is 4"}),
    ],
)
def test_reasoning_goes_where_the_chat_template_keeps_it(
    tmp_path: Path, template: str, message: dict[str, str]
) -> None:
    teacher = Solver(lambda r: said("<think>Two twice.</think>It is 4"), template=template)
    (record,) = write(tmp_path, [problem("2 + 2")], teacher, samples=1).records
    assert (record.messages or ())[-1] == message


def test_without_a_chat_template_reasoning_stays_in_the_text(tmp_path: Path) -> None:
    teacher = Solver(lambda r: said("<think>Two twice.</think>It is 4"), template=None)
    (record,) = write(tmp_path, [problem("2 + 2 =")], teacher, samples=1).records
    assert (record.prompt, record.completion) == ("2 + 2 =", "<think>\nTwo twice.\n</think>\n\nIt is 4")


def test_a_template_that_drops_all_reasoning_is_said(tmp_path: Path) -> None:
    drops = CHATML.replace("m.content", "(m.content.split('</think>')|last)")
    teacher = Solver(lambda r: said("<think>Two twice.</think>It is 4"), template=drops)
    work = Work(tmp_path, resumed=False)
    program = Reasoning(ReasoningProgram(verify={"kind": "numeric"}, samples=1, max_new_tokens=32))
    with Journal(tmp_path / "journal.sqlite") as journal:
        journaled = JournaledTeacher(teacher, journal, budget=TokenBudget(None), seed=0, console=Console("quiet"))
        answering = LocalAnswering(journaled, batch_size=4)
        list(program.write([problem("2 + 2")], answering, side_of=lambda record: "train", work=work))
    assert any("drops reasoning" in warning for warning in work.warnings)


def test_a_judge_asks_through_the_same_journal_many_at_a_time(tmp_path: Path) -> None:
    def say(request: Request) -> Answer:
        text = asked_of(request)
        if "You judge an answer" in text:
            return said("Well.\nMark: 5" if "Way 1" in text else "Poor.\nMark: 1")
        return said(f"Way {request.sample}: the answer is 4")

    teacher = Solver(say)
    batches = teacher.batches
    judge = {"kind": "all", "of": [{"kind": "numeric"}, {"kind": "judge"}]}
    records = [problem(f"{n} + {4 - n}", row=n + 1) for n in range(5)]
    written = write(tmp_path, records, teacher, samples=2, verify=judge)
    assert written.order == [(row, 1) for row in range(1, 6)] and reasons(written) == {"wrong answer": 5}
    assert batches == [10, 10]
    again = write(tmp_path, records, teacher, samples=2, verify=judge)
    assert again.order == written.order and batches == [10, 10]  # nothing was sent


def test_questions_of_judges_are_gathered_in_an_order_and_in_groups_that_repeat() -> None:
    """A thread that is slow, or done without a question, changes neither."""
    groups: list[list[str]] = []

    def ask(teacher: str | None, requests: Sequence[Request]) -> list[Answer]:
        groups.append([asked_of(r).split("Criterion")[0].split("No. ")[1].split("\n")[0] for r in requests])
        return [said("Mark: 5") for _ in requests]

    answers = [said(f"No. {n}\nThe answer is {4 if n % 3 else 5}") for n in range(200)]
    verify = AllOf(kind="all", of=(Numeric(kind="numeric"), Judge(kind="judge")))
    with Verification(verify, ask) as verification:
        outcomes = [v.outcome for v in verification.verdicts((problem("2 + 2"), answer) for answer in answers)]
    assert outcomes == ["accept" if n % 3 else "reject" for n in range(200)]
    asked = [n for n in range(200) if n % 3]
    assert groups == [[str(n) for n in asked[at : at + 64]] for at in range(0, len(asked), 64)]


def test_a_failing_judge_ends_the_program_and_leaves_no_thread_waiting(tmp_path: Path) -> None:
    def say(request: Request) -> Answer:
        if "You judge an answer" in asked_of(request):
            raise RuntimeError("gone")
        return said("The answer is 4")

    with pytest.raises(RuntimeError, match="gone"):
        write(tmp_path, [problem("2 + 2")], Solver(say), samples=1, verify={"kind": "judge"})


def test_blocks_change_neither_order_nor_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[Record | Reject] = [problem(f"{n} + {4 - n}", row=n + 1) for n in range(9)]
    records.insert(4, Reject("malformed", "sums.jsonl", 99))
    (tmp_path / "whole").mkdir()
    (tmp_path / "blocks").mkdir()
    whole = write(tmp_path / "whole", records, Solver(right_from(1)), samples=3, samples_at_once=1, stop_at=1)
    monkeypatch.setattr(program_module, "_AT_ONCE", 2)
    blocks = write(tmp_path / "blocks", records, Solver(right_from(1)), samples=3, samples_at_once=1, stop_at=1)
    assert blocks.order == whole.order == [(row, 1) for row in range(1, 10)]
    assert [r.id for r in blocks.records] == [r.id for r in whole.records] and blocks.rejects == whole.rejects


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"stop_at": 5}, "never give 5 accepted"),
        ({"samples_at_once": 9}, "above samples"),
        ({"keep": "diverse"}, "kept: 2"),
        ({"pass_rate": (0.8, 0.2)}, "no rate"),
        ({"pass_rate": (0.2, 0.8), "stop_at": 1}, "leaves some unasked"),
        ({"temperature": 0.0}, "all the same"),
        ({"hint": "{problem}"}, "no {reference}"),
        ({"instruction": "Think."}, "no {problem}"),
        ({"reference": "gold"}, "verify compares with reference"),
        ({"hint": "{problem} ({reference})", "verify": {"kind": "math", "reference": "gold"}}, "compares with gold"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_the_fix(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says.replace("{", r"\{")):
        ReasoningProgram(**({"verify": {"kind": "numeric"}} | settings))


def test_an_unknown_key_of_a_verifier_is_told_with_the_nearest(tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "name": "sums",
        "teacher": {"kind": "local", "model": "smollm2-135m-instruct"},
        "data": {"kind": "jsonl", "path": "sums.jsonl"},
        "generate": {"kind": "reasoning", "verify": {"kind": "any", "of": [{"kind": "math", "referense": "a"}]}},
    }
    with pytest.raises(RecipeError, match="did you mean 'reference'"):
        parse_recipe(document, base=tmp_path)

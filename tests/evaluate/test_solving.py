"""Which share of the held-out problems models solve: of all of them, whatever was generated, and by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from potstill.artifacts import Work
from potstill.console import Console
from potstill.data import load_records, prompt_ids, save_records, split_of
from potstill.errors import DataError, RecipeError
from potstill.evaluate.held_out import of_tokens
from potstill.evaluate.measures.base import Asked, Setting
from potstill.evaluate.measures.solved import Solvers, read_problems
from potstill.evaluate.stage import stage
from potstill.measures import Measures
from potstill.recipe import parse_recipe
from potstill.recipe.evaluate import SolveSettings
from potstill.verify.text import NumericVerifier
from small_run import CHAT, InMemory, SmallRun
from tiny_models import TURN_END, tiny_model

COUNT = 24
NEVER_ENDS = "1 1 1 1 1 1 1 1"
LIMIT = 8
SOLVE = {"verify": {"kind": "numeric"}, "max_new_tokens": LIMIT}


def problem(number: int) -> str:
    return f"Add {number} and {number}."


def run_of(folder: Path, *, unknown: int = -1, **changes: Any) -> SmallRun:
    """A run whose data are sums, with their answers; of problem number `unknown` the answer is no number."""
    folder.mkdir(exist_ok=True)
    file = folder / "sums.jsonl"
    answers = ["a few" if n == unknown else str(2 * n) for n in range(COUNT)]
    rows = [
        {"messages": [{"role": "user", "content": problem(n)}, {"role": "assistant", "content": answers[n]}]}
        for n in range(COUNT)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    evaluate = {"resamples": 100, "samples_shown": 0, "speed": False, "solve": SOLVE} | changes.pop("evaluate", {})
    data = {"kind": "jsonl", "path": str(file), "held_out": 0.5}
    return SmallRun(folder, data=data, evaluate=evaluate, **changes)


def solve_of(run: SmallRun) -> SolveSettings:
    settings = run.recipe.required_evaluate.solve
    assert settings is not None
    return settings


def solvers_of(run: SmallRun, work: Work, console: Console | None = None) -> Solvers:
    """The problems of a run, before any model was asked."""
    none = of_tokens([], [], 0)
    setting = Setting(run.recipe, CHAT, work, console or Console("quiet"), none, Path(), Path())
    problems = read_problems(run.recipe, solve_of(run), CHAT, work)
    return Solvers(solve_of(run), setting, problems)


def solve(solvers: Solvers, name: str, model: InMemory, positions: int) -> None:
    answers = solvers.ask(Asked(name, model, positions))
    if answers is not None:
        solvers.take(name, answers)


class Counting(Console):
    """A console that adds up what progress is reported."""

    def __init__(self) -> None:
        super().__init__("quiet")
        self.done = 0.0

    @contextmanager
    def task(self, *_: Any, **__: Any) -> Iterator[Any]:
        counting = self

        class Bar:
            def advance(self, amount: float) -> None:
                counting.done += amount

        yield Bar()


def numbers(run: SmallRun) -> list[int]:
    """The held-out problems, by their number."""
    return [int(str((r.messages or ())[0]["content"]).split()[1]) for r in run.held_out_records]


def teach(folder: Path, says: dict[int, str]) -> None:
    """Make a model say exactly this to these problems. What begins as `NEVER_ENDS` does so without an end."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows, labels = [], []
    for number, answer in says.items():
        prompt = prompt_ids([{"role": "user", "content": problem(number)}], CHAT)
        said = CHAT.encode(answer if answer == NEVER_ENDS else answer + TURN_END).ids
        rows.append([*prompt, *said])
        labels.append([-100] * len(prompt) + said)
    width = max(map(len, rows))
    ids = torch.tensor([row + [2] * (width - len(row)) for row in rows])
    targets = torch.tensor([row + [-100] * (width - len(row)) for row in labels])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(400):
        loss = model(input_ids=ids, labels=targets).loss
        if loss < 0.01:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01
    model.save_pretrained(folder)


class Outcome:
    """What an evaluation wrote."""

    def __init__(self, run: SmallRun) -> None:
        context = run.context()
        stage(run.recipe).write(context)
        self.work = context.work
        self.measures = Measures.load(context.out / "measures.json")
        self.table = pq.read_table(context.out / "solved.parquet").to_pydict()
        self.lines = [json.loads(line) for line in (context.out / "solutions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallRun, list[int], Outcome]:
    """A student that says known things: right but for one wrong answer, one without end, and one to a problem whose
    reference is no number. Its control is right only once."""
    first = run_of(tmp_path_factory.mktemp("first"), text_only=False)
    held_out = numbers(first)
    wrong, endless, unknown = held_out[0], held_out[1], held_out[2]
    run = run_of(tmp_path_factory.mktemp("run"), unknown=unknown)
    says = {n: str(2 * n) for n in held_out} | {wrong: "7", endless: NEVER_ENDS, unknown: "5"}
    teach(run.folder / "train" / "model", says)
    teach(run.folder / "train.text_only" / "model", dict.fromkeys(held_out, "7") | {held_out[3]: f"{2 * held_out[3]}"})
    return run, held_out, Outcome(run)


def test_the_share_is_that_of_the_right_answers_among_all_held_out_problems(scripted: Any) -> None:
    run, held_out, found = scripted
    many, solving = len(held_out), found.measures.solving
    assert (solving.problems, solving.groups, solving.verifier) == (many, many, f"numeric@{NumericVerifier.contract}")
    student = found.measures.models["student"].get("solved")
    assert student.value == pytest.approx((many - 3) / many)
    assert student.low < student.value < student.high
    assert found.measures.models["text_only"].get("solved").value == pytest.approx(1 / many)
    assert found.table["record_id"] == [record.id for record in run.held_out_records]
    assert found.table["solved_student"] == [False, False, False, *[True] * (many - 3)]
    assert found.table["solved_text_only"] == [False, False, False, True, *[False] * (many - 4)]


def test_the_student_is_held_against_the_others_on_the_same_problems(scripted: Any) -> None:
    _, held_out, found = scripted
    assert {"teacher", "student", "text_only", "untrained"} == {c.removeprefix("solved_") for c in found.table} - {
        "record_id",
        "group",
        "confidence_student",
    }
    for other in ("teacher", "text_only", "untrained"):
        c = found.measures.comparison("student", other, "solved")
        models = found.measures.models
        assert c.difference.value == pytest.approx(
            models["student"].get("solved").value - models[other].get("solved").value
        )
    c = found.measures.comparison("student", "text_only", "solved")
    assert found.measures.better(c) and c.excludes_zero
    assert c.difference.value == pytest.approx((len(held_out) - 4) / len(held_out))


def test_what_is_cut_or_cannot_be_judged_is_counted_and_said(scripted: Any) -> None:
    _, held_out, found = scripted
    solving = found.measures.solving
    assert (solving.unfinished["student"], solving.unjudged["student"]) == (1, 1)
    assert (solving.unfinished["text_only"], solving.unjudged["text_only"]) == (0, 1)
    assert solving.too_long == dict.fromkeys(("teacher", "student", "text_only", "untrained"), 0)
    said = [note for note in found.measures.notes if note.startswith(f"Of {len(held_out)} answers")]
    assert any(f"not finished within {LIMIT} tokens" in note and "1 of the student" in note for note in said)
    assert any("could not be judged" in note and "1 of the student" in note for note in said)
    assert set(said) <= set(found.work.warnings)
    assert found.work.counts["problems"] == len(held_out)


def test_a_person_can_read_why(scripted: Any) -> None:
    _, held_out, found = scripted
    wrong, endless, unknown, right = found.lines[:4]
    assert wrong["problem"] == problem(held_out[0])
    assert wrong["reference"] == str(2 * held_out[0])
    assert (wrong["answers"]["student"]["text"], wrong["answers"]["student"]["outcome"]) == ("7", "reject")
    # What was cut is not even judged, whatever stands in it.
    assert endless["answers"]["student"] == {
        "text": NEVER_ENDS[:LIMIT].strip(),
        "outcome": "unfinished",
        "reason": f"cut after {LIMIT} tokens",
        "confidence": 0.0,
    }
    assert unknown["answers"]["student"]["outcome"] == "cannot_judge"
    assert "no number" in unknown["answers"]["student"]["reason"]
    assert right["answers"]["student"]["outcome"] == "accept"
    assert 0 < right["answers"]["student"]["confidence"] <= 1 and right["answers"]["teacher"]["confidence"] == 0.0
    assert found.table["confidence_student"] == [line["answers"]["student"]["confidence"] for line in found.lines]


def test_the_verifier_stands_among_the_facts(scripted: Any) -> None:
    run, _, found = scripted
    solve = run.recipe.evaluate.solve
    facts = found.work.facts["verifier"]
    assert facts == {"name": "numeric", "version": str(NumericVerifier.contract), "settings": solve.verify.key_fields()}


def test_the_problems_are_the_same_whatever_was_generated_from_them(tmp_path: Path) -> None:
    run = run_of(tmp_path, text_only=False)
    everything = [record.id for record in run.held_out_records]
    file = run.folder / "generate" / "records.parquet"
    kept = load_records(file, side="held_out")[::3]
    save_records(file, [*load_records(file, side="train"), *kept], split_of(run.recipe.data))
    found = Outcome(run)
    assert found.measures.records == len(kept) < len(everything)
    assert found.table["record_id"] == everything
    assert found.measures.solving is not None and found.measures.solving.problems == len(everything)


def test_a_limit_takes_the_same_problems_in_every_run(tmp_path: Path) -> None:
    chosen = []
    for seed, reverse in ((0, False), (1, True)):
        run = run_of(tmp_path / str(seed), text_only=False, seed=seed, evaluate={"solve": SOLVE | {"limit": 5}})
        if reverse:
            file = run.folder / "sums.jsonl"
            file.write_text("\n".join(reversed(file.read_text().splitlines())))
        work = Work(tmp_path, resumed=False)
        chosen.append({problem.id for problem in read_problems(run.recipe, solve_of(run), CHAT, work)})
        assert work.counts["problems"] == 5
        assert work.counts["problems beyond evaluate.solve.limit"] == len(numbers(run)) - 5
    assert chosen[0] == chosen[1]


def test_prompts_without_room_are_counted_and_do_not_stop_it(tmp_path: Path) -> None:
    run = run_of(tmp_path, text_only=False)
    work = Work(tmp_path, resumed=False)
    console = Counting()
    solvers = solvers_of(run, work, console)
    lengths = [len(p.ids) for p in solvers.problems]
    longest = max(lengths)
    assert min(lengths) < longest
    solve(solvers, "student", InMemory(tiny_model("gpt2", n_positions=longest)), longest)
    outcomes = [solution.outcome for solution in solvers.by_model["student"]]
    assert [outcome == "too_long" for outcome in outcomes] == [length == longest for length in lengths]
    assert round(console.done, 6) == len(lengths)
    # A number of one digit, twice: two tokens less, and two tokens of room.
    cut = [solution.reason for solution in solvers.by_model["student"] if solution.outcome == "unfinished"]
    assert cut and set(cut) == {"cut after 2 tokens"}


def test_reasoning_is_set_apart_before_an_answer_is_judged(tmp_path: Path) -> None:
    run = run_of(tmp_path, text_only=False, evaluate={"solve": {"verify": {"kind": "exact"}, "max_new_tokens": 40}})
    n = numbers(run)
    says = {i: f"<think>so {i}</think>{2 * i}" for i in n} | {n[0]: f"<think>{2 * n[0]}"}
    teach(run.folder / "train" / "model", says)
    solvers = solvers_of(run, Work(tmp_path, resumed=False))
    model = AutoModelForCausalLM.from_pretrained(run.folder / "train" / "model").eval()
    solve(solvers, "student", InMemory(model), 512)
    first, *others = solvers.by_model["student"]
    assert (first.outcome, first.reason) == ("reject", "the reasoning has no end")
    assert others and all(solution.solved for solution in others)


def test_what_does_not_write_by_itself_is_left_out_and_this_is_said(tmp_path: Path) -> None:
    run = run_of(tmp_path, text_only=False)
    solvers = solvers_of(run, Work(tmp_path, resumed=False))
    solve(solvers, "teacher", InMemory(tiny_model(), tiny_model()), 512)
    assert solvers.by_model == {}
    assert solvers.notes == ["What the teacher solves was not measured: it is no single model that writes."]


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_problems_without_any_reference_are_refused_before_a_model_is_opened(tmp_path: Path) -> None:
    run = run_of(tmp_path, text_only=False)
    file = run.folder / "sums.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": problem(n)}) for n in range(COUNT)))
    with pytest.raises(DataError, match=r"no metadata\['reference'\] in the data") as caught:
        solvers_of(run, Work(tmp_path, resumed=False))
    assert "evaluate.solve.reference" in str(caught.value)


def test_texts_are_no_problems(tmp_path: Path) -> None:
    run = run_of(tmp_path, text_only=False)
    (run.folder / "sums.jsonl").write_text("\n".join(json.dumps({"text": f"Text {n}."}) for n in range(COUNT)))
    with pytest.raises(DataError, match="no record is a problem") as caught:
        solvers_of(run, Work(tmp_path, resumed=False))
    assert "(a text has no prompt to answer " in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"solve": {"verify": {"kind": "numeric"}, "max_tokens": 3}}, "unknown key 'evaluate.solve.max_tokens'"),
        ({"solve": {"verify": {"kind": "numeric"}, "max_new_token": 3}}, "did you mean 'max_new_tokens'?"),
        ({"solve": {"verify": {"kind": "numeric", "refrence": "x"}}}, "did you mean 'reference'?"),
        ({"solve": {"verify": {"kind": "numerc"}}}, "did you mean 'numeric'?"),
        ({"solve": {}}, "evaluate.solve.verify is missing"),
        ({"solve": {"verify": {"kind": "judge"}}}, "evaluate.solve: a judge puts its questions to a teacher"),
        ({"solve": {"verify": {"kind": "any", "of": [{"kind": "numeric"}, {"kind": "judge"}]}}}, "a judge puts"),
    ],
)
def test_a_slip_is_answered_with_the_fix(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(plain("causal_lm", changes), base=tmp_path)
    assert said in str(caught.value)


def test_only_what_writes_can_solve(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the task is 'masked_lm': drop it") as caught:
        parse_recipe(plain("masked_lm", {"solve": SOLVE}), base=tmp_path)
    assert "evaluate.solve has models write answers" in str(caught.value)


def plain(task: str, evaluate: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "small",
        "task": task,
        "student": {"kind": "existing", "model": "/nowhere"},
        "data": {"kind": "jsonl", "path": "x.jsonl"},
        "train": {"objectives": [{"kind": "hard_ce"}]},
        "evaluate": evaluate,
    }


# ---- the key -----------------------------------------------------------------------------------------------------


def test_the_key_has_the_settings_and_the_data_only_where_problems_are_put(tmp_path: Path) -> None:
    without = stage(run_of(tmp_path / "a", text_only=False, evaluate={"solve": None}).recipe)
    run = run_of(tmp_path / "b", text_only=False)
    asked = stage(run.recipe)
    assert "solve" not in without.settings["evaluate"]
    assert asked.settings["evaluate"]["solve"]["verify"]["kind"] == "numeric"
    assert sorted(without.sources()) == ["teacher"]
    before = dict(asked.sources())
    assert sorted(before) != ["teacher"]
    file = run.folder / "sums.jsonl"
    file.write_text(file.read_text().replace("Add 1 ", "Add 100 "))
    assert dict(asked.sources()) != before

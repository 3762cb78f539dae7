"""Caps on requests, tokens and money: not exceeded by one request, as the server itself counts."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from generate.endpoint_run import EndpointRun
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_server import mock

from potstill.answering.budget import Budget, Caps, Cost
from potstill.answering.endpoint import EndpointAnswering
from potstill.answering.journal import Journal
from potstill.artifacts import read_artifact
from potstill.console import Console
from potstill.data import load_records
from potstill.errors import RecipeError
from potstill.recipe import EndpointTeacher, load_recipe
from potstill.teachers import EndpointModel
from potstill.teachers.endpoint_client import Call
from potstill.teachers.endpoint_wire import Trouble
from potstill.teachers.prices import UNITS_PER_DOLLAR, check_price, prices_of
from potstill.types import Answer

FAULTS = {"fail": 0.08, "truncate": 0.04, "reset": 0.04, "latency_seconds": 0.01}


def answered_rows(made: EndpointRun) -> list[tuple[int, int]]:
    return [(r.row, r.sample) for r in load_records(made.run / "generate" / "records.parquet")]


@pytest.mark.parametrize(
    ("cap", "counted"),
    [("tokens=2500", "tokens"), ("requests=70", "requests"), ("money=0.0025", "money")],
)
@pytest.mark.parametrize("faults", [{}, FAULTS], ids=["well", "faulty"])
def test_no_cap_is_exceeded_and_what_is_left_would_not_have_held_another(
    cap: str, counted: str, faults: dict[str, float], tmp_path: Path
) -> None:
    price = {"input": 0.5, "output": 2.0}
    with mock(**({"latency_seconds": 0.01} | faults)) as server:
        made = EndpointRun(tmp_path, server.url)
        overrides = (f"generate.budget.{cap}", f"teacher.price={price}")
        assert made.here(*overrides) == 0
        stats = server.stats()
    written = stats["tokens"] - stats["prompt_tokens"]
    used = {
        "tokens": stats["tokens"],
        "requests": stats["requests"],
        "money": (stats["prompt_tokens"] * price["input"] + written * price["output"]) / 1e6,
    }[counted]
    limit = float(cap.partition("=")[2])
    assert used <= limit
    counts = made.manifest["counts"]
    left_out = next(amount for name, amount in counts.items() if name.endswith("budget"))
    assert counts["answers kept"] + left_out == made.requests
    rows = answered_rows(made)
    if not faults:
        assert rows == [(n, s) for n in range(1, 61) for s in range(2)][: len(rows)]  # in order, without a gap
        # The worst case of a prompt here: at most 80 + 64 + 16 bytes and more of a template, and 24 tokens.
        assert limit - used < {"tokens": 190, "requests": 1, "money": (160 * 0.5 + 24 * 2) / 1e6}[counted]


def test_which_requests_a_cap_leaves_out_does_not_depend_on_interruptions(tmp_path: Path) -> None:
    with mock(latency_seconds=0.005) as server:
        whole, parts = EndpointRun(tmp_path / "whole", server.url), EndpointRun(tmp_path / "parts", server.url)
        assert whole.here("generate.budget.tokens=2500") == 0
        # Under a smaller cap first: another artifact, whose answers are then in the journal.
        assert parts.here("generate.budget.tokens=900") == 0
        before = server.stats()["requests"]
        assert parts.here("generate.budget.tokens=2500") == 0
        assert server.stats()["requests"] - before < len(answered_rows(whole))
    assert answered_rows(parts) == answered_rows(whole)


def test_what_a_killed_process_had_under_way_counts(tmp_path: Path) -> None:
    """Three kills under a cap of requests: the server never sees more than the cap."""
    with mock(latency_seconds=0.05) as server:
        made = EndpointRun(tmp_path, server.url, prompts=80)
        overrides = ("generate.budget.requests=110", "teacher.max_in_flight=8")
        for _ in range(3):
            before, deadline = server.stats()["requests"], time.monotonic() + 300
            process = made.start(*overrides)
            while server.stats()["requests"] < before + 9 and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.kill()
            process.communicate()
        made.finish(*overrides)
        stats = server.stats()
    kept = made.manifest["counts"]["answers kept"]
    assert stats["requests"] <= 110
    # What a kill costs: at most half as much again as was under way, each time.
    assert kept >= 110 - 3 * 12


@pytest.mark.long
def test_a_campaign_of_caps_under_faults_and_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty runs, each with a cap drawn at random and a server of every fault, killed up to twice, then completed.

    A kill may cost half as much again as was under way, so that is little beside each cap.
    """
    draw, price, shares, kills = random.Random(os.urandom(8)), {"input": 0.5, "output": 2.0}, list[float](), 0
    for index in range(20):
        counted = ("tokens", "requests", "money")[index % 3]
        # For all of 300 answers: as many requests and a sixth more, 12,000 tokens or so, and 0.0125.
        cap = {"tokens": draw.randrange(3000, 13000), "requests": draw.randrange(50, 360)}.get(counted)
        limit = cap if cap is not None else round(draw.uniform(0.003, 0.014), 6)
        with mock(**FAULTS, hang=0.01, fault_seed=index) as server:
            made = EndpointRun(tmp_path / str(index), server.url, prompts=150, timeout=2.0)
            overrides = (f"generate.budget.{counted}={limit}", f"teacher.price={price}", "teacher.max_in_flight=4")
            for _ in range(draw.randrange(3)):
                before, more = server.stats()["requests"], draw.randrange(1, 100)
                process, deadline = made.start(*overrides), time.monotonic() + 300
                while server.stats()["requests"] < before + more and process.poll() is None:
                    assert time.monotonic() < deadline
                    time.sleep(0.005)
                kills += process.poll() is None
                process.kill()
                process.communicate()
            made.finish(*overrides)
            stats = server.stats()
        written = stats["tokens"] - stats["prompt_tokens"]
        used = {
            "tokens": stats["tokens"],
            "requests": stats["requests"],
            "money": (stats["prompt_tokens"] * price["input"] + written * price["output"]) / 1e6,
        }[counted]
        assert used <= limit
        shares.append(used / limit)
        shutil.rmtree(made.folder)
    with capsys.disabled():
        print(
            f"\n{len(shares)} runs under caps on tokens, requests and money, {kills} processes killed: none exceeded, "
            f"as the server counts; used were {100 * min(shares):.0f} to {100 * max(shares):.1f} % of the cap"
        )


def test_the_ledger_is_never_put_back_to_what_it_was_before(tmp_path: Path) -> None:
    """While the writer's thread commits answers, the client's sends more and meets failures."""
    settings = EndpointTeacher(base_url="http://127.0.0.1:9/v1", model="m")
    with Journal(tmp_path / "journal.sqlite") as journal:
        budget = Budget(Caps(requests=100), journal.ledger("s"))
        asked = EndpointAnswering(EndpointModel(settings), journal, budget=budget, scope="s", console=Console("quiet"))

        def call() -> Call:
            made = Call({}, 1, SimpleNamespace(key=str(id(object())), reserved=Cost(1), begun=False))
            assert asked.budget.reserve(Cost(1)) is None
            return made

        first, others = call(), [call() for _ in range(20)]

        class Slow(Answer):
            def to_dict(self) -> dict[str, object]:  # while it is being written, what other threads do
                for other in others:
                    asked.begin(other)
                asked.again(others[0], Trouble("retry", "no answer in time", billed=True))
                return super().to_dict()

        asked.begin(first)
        asked.keep([(first, Slow("text", "stop", 1, 1))])
        entry = journal.ledger("s")
    assert entry is not None
    # One was lost, and 20 may be out.
    assert entry["lost"]["requests"] + entry["held"]["requests"] >= 21


def test_what_was_paid_for_counts_before_it_comes_up_again() -> None:
    """Ten requests may go out. One is under way, and nine behind it are answered, when the process is killed: the next
    one has no room for a second try of the first."""
    entry = {"lost": Cost().to_dict(), "held": Cost(1).to_dict(), "paid": Cost(9).to_dict()}
    after = Budget(Caps(requests=10), entry)
    assert after.reserve(Cost(1)) == "request budget"
    # Answers of the journal are not sent, and were paid for.
    assert after.reserve(Cost(9), to_send=False) is None


@settings(max_examples=60)
@given(
    cap=st.integers(1, 400),
    costs=st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1), st.booleans()), max_size=60),
    seed=st.integers(0, 9),
)
def test_a_budget_keeps_its_caps_whatever_comes_of_requests(
    cap: int, costs: list[tuple[int, float, bool]], seed: int
) -> None:
    """Reservations, attempts that fail (billed or not), answers, in any order."""
    draw, budget = random.Random(seed), Budget(Caps(tokens=cap, requests=30))
    billed, sent, under_way = 0, 0, list[Cost]()

    def end_one() -> None:
        nonlocal billed, sent
        worst = under_way.pop(draw.randrange(len(under_way)))
        really = int(worst.tokens * draw.random())
        while draw.random() < 0.3:
            lost = draw.random() < 0.5
            billed += really if lost else 0
            if not budget.fail(worst, worst if lost else Cost(requests=1)):
                if budget.reserve(worst) is not None:
                    return
                budget.begin(worst)
            sent += 1
        billed += really
        budget.settle(worst, Cost(1, 0, really, 0))

    for tokens, chance, _ in costs:
        worst = Cost(1, tokens, tokens, 0)
        if budget.reserve(worst) is None:
            sent += 1
            under_way.append(worst)
            if budget.begin(worst):
                assert budget.entry()["held"]["tokens"] >= budget.reserved.tokens
            assert budget.held.tokens >= budget.out.tokens
        if under_way and draw.random() < chance:
            end_one()
        assert budget.spent.tokens + budget.reserved.tokens <= cap
    while under_way:
        end_one()
    assert billed <= cap and sent <= 30 and budget.reserved == Cost()


def test_a_budget_is_safe_to_use_from_several_threads() -> None:
    budget, granted = Budget(Caps(requests=500)), [0] * 4

    def work(index: int) -> None:
        for _ in range(400):
            if budget.reserve(Cost(1)) is None:
                granted[index] += 1
                budget.settle(Cost(1), Cost(1))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sum(granted) == 500 == budget.spent.requests


def teacher(url: str, model: str, **more: object) -> EndpointTeacher:
    return EndpointTeacher(base_url=url, model=model, **more)  # type: ignore[arg-type]


def test_prices_are_the_recipes_or_those_of_the_table_for_the_address() -> None:
    listed = prices_of(teacher("https://api.openai.com/v1", "gpt-4o-mini"))
    assert listed is not None and "openai" in listed.source
    # Its list price of July 2024: 0.15 and 0.60 dollars per million tokens.
    assert listed.of(1_000_000, 1_000_000) == int(0.75 * UNITS_PER_DOLLAR)
    stated = prices_of(teacher("https://api.openai.com/v1", "gpt-4o-mini", price={"input": 1, "output": 0}))
    assert stated is not None and stated.of(3_000_000, 5) == 3 * UNITS_PER_DOLLAR
    named = prices_of(teacher("http://127.0.0.1:4000/v1", "gpt-4o-mini", price_provider="openai"))
    assert named is not None and named.read == listed.read


def test_an_unknown_price_is_unknown_and_never_nothing() -> None:
    own = teacher("http://127.0.0.1:8000/v1", "gpt-4o-mini")  # the name alone says nothing
    assert prices_of(own) is None and check_price(own, capped=False) is None
    assert prices_of(teacher("https://api.openai.com/v1", "no-such-model-at-all")) is None
    with pytest.raises(RecipeError, match=r"nobody knows what 'gpt-4o-mini' at 127.0.0.1 costs[\s\S]*teacher.price"):
        check_price(own, capped=True)


def test_caps_for_endpoints_are_refused_of_a_teacher_on_this_machine_and_beams_the_other_way(tmp_path: Path) -> None:
    made = EndpointRun(tmp_path, "http://127.0.0.1:1/v1")
    recipe = made.folder / "recipe.yaml"
    with pytest.raises(RecipeError, match=r"budget.money: a cap for endpoints; a 'local' teacher takes token_budget"):
        load_recipe(recipe, ["teacher={kind: local, model: smollm2-135m-instruct}", "generate.budget.money=1"])
    with pytest.raises(RecipeError, match=r"servers give no beam search[\s\S]*beams: 1"):
        load_recipe(recipe, ["generate.beams=4", "generate.temperature=0"])


def test_costs_are_in_the_manifest(tmp_path: Path) -> None:
    with mock() as server:
        made = EndpointRun(tmp_path, server.url, prompts=5, samples=1)
        assert made.here("teacher.price={input: 1, output: 3}") == 0
        stats = server.stats()
    artifact = read_artifact(made.run / "generate")
    assert artifact is not None
    read, written = stats["prompt_tokens"], stats["tokens"] - stats["prompt_tokens"]
    assert artifact.manifest["facts"]["dollars"] == pytest.approx((read + 3 * written) / 1e6)
    assert artifact.manifest["facts"]["price"] == "the recipe"

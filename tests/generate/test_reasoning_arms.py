"""Chains of thought: what is asked does not depend on what is kept; what cannot be judged or put is not paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from generate.test_reasoning import Solver, asked_of, problem, reasons, right_from, said, write

from potstill.errors import DataError
from potstill.generate import reasoning as program_module
from potstill.recipe import parse_recipe
from potstill.recipe.verify import VerifierSettings
from potstill.types import Answer, Record, Request
from potstill.verify.preconditions import refuse_unjudgeable

HINT = "{problem} (it is {reference})"


def asked_with(folder: Path, records: list[Record], **settings: Any) -> tuple[list[Request], Any]:
    def say(request: Request) -> Answer:
        hopeless = asked_of(request).startswith("4 + 0") and "it is" not in asked_of(request)
        return right_from(9 if hopeless else 2)(request)

    teacher = Solver(say)
    folder.mkdir()
    written = write(folder, records, teacher, **settings)
    return sorted(teacher.asked, key=lambda request: request.key({})), written


def test_the_arm_that_keeps_wrong_chains_asks_the_same_samples(tmp_path: Path) -> None:
    records = [problem("2 + 2", row=1), problem("4 + 0", row=2)]
    settings = {"samples": 4, "samples_at_once": 1, "stop_at": 1, "hint": HINT}
    asked, verified = asked_with(tmp_path / "verified", records, **settings)
    same, everything = asked_with(tmp_path / "all", records, accept_all=True, **settings)
    assert asked == same and len(asked) == 3 + 4 + 1
    assert everything.counts["problems solved with a hint"] == verified.counts["problems solved with a hint"] == 1
    assert verified.order == [(1, 2), (2, 4)] and len(everything.records) == len(asked)


def test_a_hint_that_fills_the_context_is_counted_and_not_asked(tmp_path: Path) -> None:
    class Short(Solver):
        context_length = 120

        def generate(self, requests: Any, *, seed: int, wrote: Any = None) -> list[Answer]:
            for request in requests:
                assert len(asked_of(request)) < 60, "the prompt fills the context"
            return super().generate(requests, seed=seed)

    teacher = Short(lambda r: said("The answer is 4" if "it is" in asked_of(r) else "The answer is 5"))
    long = problem("1 + 3", reference=["4", "four"], row=2)
    records = [problem("2 + 2", row=1), long, problem("4 + 0", reference="4" + "0" * 99, row=3)]
    written = write(tmp_path, records, teacher, samples=1, hint=HINT)
    assert written.order == [(1, 1), (2, 1)] and reasons(written) == {"wrong answer": 3}
    assert written.counts["hints that fill the teacher's context"] == 1


@pytest.mark.needs("a sandbox")
def test_problems_without_any_reference_are_refused_before_one_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Solver(right_from(0))
    records = [problem(f"{n} + 1", reference=None, row=n) for n in range(1, 5)]
    with pytest.raises(DataError, match=r"none of the 4 problems has a reference answer: no metadata\['reference'\]"):
        write(tmp_path, records, teacher)
    with pytest.raises(DataError, match=r"no metadata\['tests'\]"):
        write(tmp_path, records, teacher, verify={"kind": "python_tests"})
    assert not teacher.asked
    # Of one that has a reference only later, nothing is said once asking has begun.
    monkeypatch.setattr(program_module, "_AT_ONCE", 2)
    written = write(tmp_path, [problem("2 + 2", row=9), *records], teacher, samples=1)
    assert written.order == [(9, 0)] and reasons(written) == {"cannot be judged": 4}


@pytest.mark.parametrize(
    ("verify", "lacks"),
    [
        ({"kind": "length"}, None),
        ({"kind": "judge"}, None),
        ({"kind": "judge", "form": "pairwise"}, "reference"),
        ({"kind": "regex", "pattern": "4"}, None),
        ({"kind": "regex"}, "pattern"),
        ({"kind": "json_schema"}, "schema"),
        ({"kind": "all", "of": [{"kind": "length"}, {"kind": "math", "reference": "gold"}]}, "gold"),
        ({"kind": "any", "of": [{"kind": "length"}, {"kind": "math"}]}, None),
        ({"kind": "first", "of": [{"kind": "exact"}, {"kind": "python_tests"}]}, "reference"),
    ],
)
def test_what_a_verifier_cannot_do_without(tmp_path: Path, verify: dict[str, Any], lacks: str | None) -> None:
    document = {
        "name": "sums",
        "teacher": {"kind": "local", "model": "smollm2-135m-instruct"},
        "data": {"kind": "jsonl", "path": "sums.jsonl"},
        "generate": {"kind": "reasoning", "verify": verify},
    }
    settings = parse_recipe(document, base=tmp_path).generate.verify  # type: ignore[union-attr]
    assert isinstance(settings, VerifierSettings)
    bare = [Record(prompt="2 + 2")]
    if lacks is None:
        refuse_unjudgeable(settings, bare, called="1 problem", where="generate")
        return
    with pytest.raises(DataError, match=rf"no metadata\['{lacks}'\]"):
        refuse_unjudgeable(settings, bare, called="1 problem", where="generate")
    has_it = [*bare, Record(prompt="1 + 3", metadata={lacks: "4"})]
    refuse_unjudgeable(settings, has_it, called="2 problems", where="generate")

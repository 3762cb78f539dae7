"""What all verifiers have in common, how they compose, and what needs more than a text."""

from __future__ import annotations

import importlib.util
from itertools import product
from typing import Any

import pytest
from pydantic import ValidationError

from potstill.data import read_records
from potstill.errors import MissingExtra, RecipeError
from potstill.recipe.data import ReasoningGymData
from potstill.recipe.verify import (
    AllOf,
    AnyOf,
    Exact,
    FirstOf,
    JSONSchema,
    Judge,
    Language,
    Length,
    Math,
    ReasoningGym,
    Regex,
    VerifierSettings,
)
from potstill.types import Answer, Record
from potstill.verify import Decontaminator, open_verifier, verdicts
from potstill.verify.composite import AllVerifier, AnyVerifier, FirstVerifier
from potstill.verify.judge import JudgeVerifier

OUTCOMES = ("accept", "reject", "cannot_judge")


def answered(text: str, reasoning: str | None = None, tokens: int = 1) -> Answer:
    return Answer(text, "stop", 1, tokens, reasoning)


def leaf(outcome: str) -> VerifierSettings:
    """A verifier that gives an outcome to the answer "x"."""
    return {"accept": Regex(pattern="x"), "reject": Regex(pattern="y"), "cannot_judge": Regex(key="nothing")}[outcome]


def expected(kind: str, outcomes: tuple[str, ...]) -> str:
    if kind == "first":
        return next((o for o in outcomes if o != "cannot_judge"), "cannot_judge")
    decisive = "reject" if kind == "all" else "accept"
    if decisive in outcomes:
        return decisive
    return "cannot_judge" if "cannot_judge" in outcomes else outcomes[0]


@pytest.mark.parametrize(("kind", "settings"), [("all", AllOf), ("any", AnyOf), ("first", FirstOf)])
def test_composites_of_every_combination(kind: str, settings: Any) -> None:
    for outcomes in product(OUTCOMES, repeat=3):
        with open_verifier(settings(of=tuple(map(leaf, outcomes)))) as verifier:
            verdict = verifier.verify(Record(prompt="?"), "x")
        assert verdict.outcome == expected(kind, outcomes), outcomes
        assert verdict.verifier.startswith(f"{kind}@1(regex@1+")
        assert verdict.reason.startswith("regex: ")


def test_composites_nest_and_say_what_they_are_made_of() -> None:
    nested = AllOf(of=(Length(), AnyOf(of=(Exact(), leaf("accept")))))
    with open_verifier(nested) as verifier:
        assert verifier.verify(Record(prompt="?", metadata={"reference": "z"}), "x").outcome == "accept"
        identity = verifier.identity
    assert identity["name"] == "all" and identity["settings"]["of"][1]["of"][0]["kind"] == "exact"
    assert {AllVerifier, AnyVerifier, FirstVerifier, JudgeVerifier}  # importing the room binds them


def test_identity_follows_the_settings_and_not_the_number_of_workers() -> None:
    with (
        open_verifier(Math()) as one,
        open_verifier(Math(workers=3)) as three,
        open_verifier(Math(reference="r")) as other,
    ):
        assert one.identity == three.identity != other.identity
        assert "math-verify" in one.version


@pytest.mark.parametrize(
    ("package", "settings", "extra"),
    [
        ("math_verify", Math(), "math"),
        ("jsonschema", JSONSchema(), "verify"),
        ("py3langid", Language(), "verify"),
        ("reasoning_gym", ReasoningGym(), "reasoning"),
    ],
)
def test_a_missing_package_is_named_with_its_install_line(
    monkeypatch: pytest.MonkeyPatch, package: str, settings: VerifierSettings, extra: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(MissingExtra, match=rf'pip install "potstill\[{extra}\]"'):
        open_verifier(settings)
    with pytest.raises(MissingExtra):
        open_verifier(AllOf(of=(Length(), settings)))


def test_decontamination_names_its_package_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.recipe.verify import Decontamination

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"potstill\[verify\]"):
        Decontaminator({}, Decontamination(against={}))


@pytest.mark.parametrize(
    ("settings", "document", "why"),
    [
        (Regex, {"pattern": "("}, "cannot be read"),
        (Length, {"least": 5, "most": 3}, "below least"),
        (Length, {"unit": "tokens"}, "of: both"),
        (Judge, {"accept_from": 6}, "above the highest mark"),
        (AllOf, {"of": []}, "at least 1"),
        (AllOf, {"of": [{"kind": "maths"}]}, "did you mean 'math'"),
    ],
)
def test_impossible_settings_are_refused(settings: Any, document: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        settings.model_validate(document)


def test_an_unknown_language_is_named() -> None:
    with (
        open_verifier(Language(languages=("eng",))) as verifier,
        pytest.raises(RecipeError, match="knows no language 'eng'"),
    ):
        verifier.verify(Record(prompt="?"), "Some words.")


def test_tokens_and_reasoning_are_judged_of_whole_answers() -> None:
    record = Record(prompt="?")
    with open_verifier(Length(unit="tokens", of="both", most=10)) as verifier:
        assert verifier.verify_answer(record, answered("x", tokens=10)).outcome == "accept"
        assert verifier.verify_answer(record, answered("x", tokens=11)).outcome == "reject"
    with open_verifier(Length(of="reasoning", most=3)) as verifier:
        assert verifier.verify_answer(record, answered("one two three four", "one two")).outcome == "accept"
        assert verifier.verify_answer(record, answered("x", "one two three four")).outcome == "reject"
        assert verifier.verify(record, "x").outcome == "cannot_judge"
    english = "First we add the numbers together, and then we take away what is left over."
    with open_verifier(Language(of="both")) as verifier:
        assert verifier.verify_answer(record, answered("So it is twelve.", english)).outcome == "accept"
        mixed = f"{english}\n\nDann ziehen wir die übrigen Zahlen ab und erhalten das richtige Ergebnis."
        assert verifier.verify_answer(record, answered("So it is twelve.", mixed)).outcome == "reject"


def test_a_pattern_that_backtracks_without_end_is_stopped() -> None:
    for pattern in (r"^(a+)+$", r"^(a|aa)+$", r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)b\1\2\3"):
        with open_verifier(Regex(pattern=pattern, deadline_seconds=0.3)) as verifier:
            assert verifier.verify(Record(prompt="?"), "a" * 60 + "!").outcome != "accept"


def test_verdicts_come_in_order_and_read_no_farther_ahead_than_asked() -> None:
    read = []

    def stream() -> Any:
        for number in range(20):
            read.append(number)
            yield Record(prompt="?", metadata={"reference": str(number)}), answered(str(number if number % 3 else "no"))

    with open_verifier(Exact()) as verifier:
        coming = verdicts(verifier, stream(), at_once=4)
        assert next(coming).outcome == "reject" and len(read) <= 6
        outcomes = ["reject", *(v.outcome for v in coming)]
    assert outcomes == ["accept" if n % 3 else "reject" for n in range(20)]


GENERATORS = ("chain_sum", "gcd", "leg_counting", "calendar_arithmetic", "number_sorting", "word_ladder", "rearc")


def test_problems_as_they_are_read_are_judged_by_their_own_scorer() -> None:
    with open_verifier(ReasoningGym(deadline_seconds=20.0)) as verifier:
        for name in GENERATORS:
            for record in read_records(ReasoningGymData(kind="reasoning_gym", name=name, size=2)).records:
                answer = record.metadata["reference"]
                assert verifier.verify(record, f"  {answer}\n").outcome == "accept", name
                wrong = verifier.verify(record, f"x{answer}x")
                assert wrong.outcome == "reject" and wrong.score is not None and wrong.score < 1.0, name
                assert verifier.verify(record, f"{answer} or not").outcome == "cannot_judge", name

"""Problems of reasoning-gym: the same whatever the hash seed, with answers that its own scorers accept."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import reasoning_gym

from potstill.data import ReadResult, read_records, source_digests
from potstill.errors import DataError, MissingExtra
from potstill.recipe.data import ReasoningGymData, expand_data
from potstill.verify.gym import REFUSED


def problems(name: str, **settings: Any) -> ReadResult:
    return read_records(ReasoningGymData(kind="reasoning_gym", name=name, **{"size": 4, **settings}))


def test_a_frozen_answer_gets_full_marks_from_the_generators_own_scorer() -> None:
    result = problems("gcd", seed=3, config={"max_numbers": 3})
    assert len(result.records) == 4
    scorer = reasoning_gym.create_dataset("gcd", seed=0, size=1)
    for record in result.records:
        assert record.is_prompt and record.provenance.source.startswith("reasoning-gym:gcd@")
        entry = record.metadata["reasoning_gym"]["entry"]
        assert entry["question"] == record.prompt
        assert scorer.score_answer(record.metadata["reference"], entry=entry) == 1.0
        assert scorer.score_answer("no", entry=entry) < 1.0


def test_a_generator_that_follows_the_hash_seed_gives_the_same_problems_under_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for hash_seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        found.append(problems("ransom_note", size=8).records)
    assert found[0] == found[1] != problems("ransom_note", size=8, seed=1).records


@pytest.mark.parametrize("name", REFUSED)
def test_generators_that_cannot_be_judged_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(DataError, match=REFUSED[name]):
        problems(name)


def test_unknown_names_and_settings_are_named() -> None:
    with pytest.raises(DataError, match=r"no such generator; did you mean 'chain_sum'\?"):
        problems("chainsum")
    with pytest.raises(DataError, match=r"does not take its settings: .*'colour'"):
        problems("gcd", config={"colour": 1})


def test_without_the_package_the_install_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings = ReasoningGymData(kind="reasoning_gym", name="gcd")
    for call in (read_records, source_digests):
        with pytest.raises(MissingExtra, match=r'pip install "potstill\[reasoning\]"'):
            call(settings)


def test_the_short_form_of_a_recipe_names_the_generator() -> None:
    assert expand_data("reasoning-gym:gcd") == {"kind": "reasoning_gym", "name": "gcd"}

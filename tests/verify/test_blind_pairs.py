"""Pairs that were written before the code was read: no wrong answer is accepted, and hardly any right one is not."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from potstill.recipe.base import one_of
from potstill.recipe.verify import VerifierSettings
from potstill.types import Answer, Record, Request
from potstill.verify import Verifier, open_verifier
from potstill.verify.sandbox import why_not

PAIRS = [json.loads(line) for line in Path(__file__).with_name("blind_pairs.jsonl").read_text("utf-8").splitlines()]
MOST_WRONG_REJECTIONS = 0.02
SETTINGS: TypeAdapter[VerifierSettings] = TypeAdapter(one_of(VerifierSettings))
KINDS = sorted({pair["verifier"]["kind"] for pair in PAIRS})


class Replies:
    """A judge's teacher that says the text of the pair."""

    text = ""

    def __call__(self, teacher: str | None, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(self.text, "stop", 1, 1) for _ in requests]


def outcomes(kind: str) -> Iterator[tuple[str, Any, str, str]]:
    """Expectation, reference, text and outcome of each pair of a kind. The texts for a judge are its own replies."""
    replies = Replies()
    with ExitStack() as opened:
        verifiers: dict[str, Verifier] = {}
        for pair in [pair for pair in PAIRS if pair["verifier"]["kind"] == kind]:
            key = json.dumps(pair["verifier"])
            if key not in verifiers:
                asked = SETTINGS.validate_python(pair["verifier"])
                verifiers[key] = opened.enter_context(open_verifier(asked, replies if kind == "judge" else None))
            record = Record(prompt=pair.get("prompt", "?"), metadata=pair["metadata"])
            for expected in ("accept", "refuse"):
                for text in pair[expected]:
                    replies.text = text
                    verdict = verifiers[key].verify(record, "4" if kind == "judge" else text)
                    yield expected, pair["metadata"].get("reference"), text, verdict.outcome


@pytest.mark.parametrize("kind", KINDS)
def test_no_wrong_answer_is_accepted_and_hardly_any_right_one_is_not(kind: str) -> None:
    if kind == "python_tests" and why_not("bubblewrap") is not None and why_not("unshare") is not None:
        pytest.skip("no sandbox works here")
    figures: Counter[tuple[str, str]] = Counter()
    wrong = defaultdict(list)
    for expected, reference, text, outcome in outcomes(kind):
        figures[expected, outcome] += 1
        if (expected == "accept") != (outcome == "accept"):
            wrong[expected].append((reference, text, outcome))
    print(kind, dict(figures))
    assert wrong["refuse"] == []
    assert len(wrong["accept"]) <= MOST_WRONG_REJECTIONS * sum(n for (e, _), n in figures.items() if e == "accept"), (
        wrong
    )


def test_the_pairs_are_many_and_a_third_of_them_are_traps() -> None:
    right, wrong = (sum(len(pair[side]) for pair in PAIRS) for side in ("accept", "refuse"))
    assert right + wrong >= 600 and wrong >= (right + wrong) / 3

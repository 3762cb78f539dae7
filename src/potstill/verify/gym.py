"""Verifier of reasoning-gym problems, by the scorer of the generator that made the problem."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from potstill.recipe.verify import ReasoningGym
from potstill.registry import implements
from potstill.types import Record, Verdict
from potstill.verify.answer_extraction import final_answer, without_reasoning
from potstill.verify.base import shown
from potstill.verify.workers import WorkerVerifier

_NO_OWN_ANSWER = "its scorer does not give its own stored answer full marks"
REFUSED: Mapping[str, str] = {
    "game_of_life_halting": "its scorer gives full marks to any text",
    "boxnet": _NO_OWN_ANSWER,
    "graph_color": _NO_OWN_ANSWER,
    "propositional_logic": _NO_OWN_ANSWER,
    "rubiks_cube": _NO_OWN_ANSWER,
    "rush_hour": _NO_OWN_ANSWER,
    "composite": "it only mixes other generators: name one of them",
}
"""Generators (of version 0.1.25) whose answers cannot be judged, and why."""

OF_TUPLES = frozenset({"arc_agi", "rearc"})
"""Generators whose scorers compare with a grid of tuples, which JSON turns into lists."""


@implements(ReasoningGym)
class ReasoningGymVerifier(WorkerVerifier[ReasoningGym]):
    """Accepts full marks only: scorers give partial marks for white space, for some correct digits, or for any text at
    all. The problem's entry is in `metadata["reasoning_gym"]`, as the data source writes it. Scorers evaluate the
    model's text, so they run in a worker."""

    contract = 4
    function = "potstill.verify.gym:score"
    package = ("reasoning_gym", "reasoning-gym", "reasoning")

    def judge(self, record: Record, completion: str) -> Verdict:
        facts = record.metadata.get(self._settings.key)
        if not isinstance(facts, dict) or not {"name", "entry"} <= facts.keys():
            return self.cannot_judge(f"the record has no problem in metadata[{self._settings.key!r}]")
        if facts["name"] in REFUSED:
            return self.cannot_judge(f"{facts['name']} cannot be judged: {REFUSED[facts['name']]}")
        said = final_answer(completion) if self._settings.answer == "final" else without_reasoning(completion)
        said = said.strip()
        if not said:
            return self.reject("no answer, or one that is taken back", 0.0)
        if _hedged(said) and not _hedged(str(facts["entry"].get("answer", ""))):
            return self.cannot_judge(f"{shown(said)} denies an answer, or names more than one")
        found = self.ask({"name": facts["name"], "entry": facts["entry"], "answer": said})
        if isinstance(found, Verdict):
            return found
        if found == 1.0:
            return self.accept(f"{shown(said)} has full marks", 1.0)
        right = str(facts["entry"].get("answer") or "").strip()
        if right and right != said and re.search(rf"(?<!\w){re.escape(right)}(?!\w)", said):
            return self.cannot_judge(f"{shown(said)} has the answer among other words, which the scorer reads too")
        return self.reject(f"{shown(said)} has {found:g} of 1 from the scorer of {facts['name']}", found)


_HEDGES = re.compile(
    r"\b(?:not|isn['’]t|never|neither|nor|or|either|maybe|perhaps|possibly|except|instead)\b", re.IGNORECASE
)


def _hedged(text: str) -> bool:
    """Whether a short answer denies or hedges: some scorers search it for the right words and ignore the rest. Long
    answers (a story, a program) legitimately contain such words."""
    return len(text) <= 200 and bool(_HEDGES.search(text))


def score(item: dict[str, Any]) -> float:
    """Runs in the worker: the marks (0 to 1) of `{name, entry, answer}`."""
    import reasoning_gym

    entry = dict(item["entry"])
    if item["name"] in OF_TUPLES:
        facts = entry["metadata"]
        entry["metadata"] = {**facts, "output": tuple(tuple(row) for row in facts["output"])}
    return float(reasoning_gym.get_score_answer_fn(item["name"])(item["answer"], entry))

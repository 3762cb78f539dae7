"""The gate: the table's answers for a recipe, before anything is sent, fetched or trained.

A *ruling* is the answer to one use, under one licence, for one purpose. A blocked one stops the run with exit code 3,
unless a person overrides it in the recipe; the override then stands in the card, the bill of materials and the
manifests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from potstill.errors import RefusedError
from potstill.policy.provenance import RECORDED, Made, Provenance, Use, provenance_of, recorded_in
from potstill.policy.table import Answer, Decision, Duty, decide, table, worst_of
from potstill.recipe import Override, Recipe
from potstill.recipe.policy import PolicySettings, Purpose

UNKNOWN = "unknown"
"""The source to override where the licence is not known."""


@dataclass(frozen=True)
class Ruling:
    """The answer for one use, under one of its licences, for one purpose. `source` is empty where it is not known."""

    use: Use
    source: str
    purpose: Purpose
    decision: Decision
    override: Override | None = None

    @property
    def answer(self) -> Answer:
        """The answer of the text, or of `policy.unknown`, before any override."""
        return self.decision.answer

    @property
    def stops(self) -> bool:
        """Whether it stops a run."""
        return self.answer == "block" and self.override is None

    @property
    def because(self) -> str:
        """The licence by name and clause, with its date and address; or why there is no answer."""
        known = table().sources.get(self.source)
        if known is None:
            signs = "; ".join(f"{e.how}: {e.stated}" if e.stated else e.how for e in self.use.evidence if not e.source)
            strict = ", and policy.unknown is block" if self.answer == "block" else ""
            return f"its licence is not known ({signs}){strict}"
        where = f", {self.decision.clause}" if self.decision.clause else f": {self.decision.why}"
        read = f" (read {known.read_on})" if known.read_on else ""
        return f"{known.name}{where}{read}"


@dataclass(frozen=True)
class Rulings:
    """All rulings on a recipe, for the purposes that it states, and what it was made from."""

    provenance: Provenance
    purposes: tuple[Purpose, ...]
    rulings: tuple[Ruling, ...]

    @property
    def answer(self) -> Answer:
        """The worst answer."""
        return worst_of([ruling.answer for ruling in self.rulings])

    @property
    def duties(self) -> tuple[Duty, ...]:
        """All duties, each once."""
        return tuple(dict.fromkeys(duty for ruling in self.rulings for duty in ruling.decision.duties))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the provenance, and the answers for the purposes."""
        answers = [
            {
                "role": ruling.use.role,
                "name": ruling.use.name,
                "route": ruling.use.route,
                "source": ruling.source or UNKNOWN,
                "purpose": ruling.purpose,
                "answer": ruling.answer,
                "clause": ruling.decision.clause,
                "overridden": ruling.override is not None,
            }
            for ruling in self.rulings
        ]
        return {"answer": self.answer, "answers": answers, "provenance": self.provenance.to_dict()}

    def refuse(self) -> None:
        """Raises RefusedError if any ruling stops a run."""
        stopped = [ruling for ruling in self.rulings if ruling.stops]
        if len(stopped) == 1:
            raise refusal(stopped[0])
        if stopped:
            listed = "\n".join(f"- {refusal(ruling)}".replace("\n", "\n  ") for ruling in stopped)
            raise RefusedError(f"{len(stopped)} uses are not allowed:\n{listed}")


def rulings_on(recipe: Recipe, made: Made = "all", purposes: tuple[Purpose, ...] | None = None) -> Rulings:
    """The rulings on what a recipe makes, by default for the purposes that it states. Only its own overrides lift a
    block: those that a model or data set was made under stand in its provenance, and were for another purpose."""
    purposes = purposes or recipe.policy.purpose
    return judge(provenance_of(recipe, made), recipe.policy, purposes, recipe.policy.overrides)


def rulings_on_run(recipe: Recipe, manifests: Mapping[str, Mapping[str, Any]]) -> Rulings:
    """The rulings on the student of a run. `manifests` are those of its stages, by name: overrides under which any of
    them ran stand for good."""
    provenance = provenance_of(recipe, "student")
    for name, manifest in manifests.items():
        if name.partition(".")[0] in RECORDED and (recorded := recorded_in(manifest)) is not None:
            provenance = provenance.with_recorded(recorded)
    return judge(provenance, recipe.policy, recipe.policy.purpose, provenance.overrides)


def judge(
    provenance: Provenance, policy: PolicySettings, purposes: tuple[Purpose, ...], overrides: tuple[Override, ...]
) -> Rulings:
    """The rulings on what something is made from, where `overrides` lift blocks."""
    begins = {source for use in provenance.uses if use.route == "weights" for source in use.sources}
    rulings = tuple(
        _ruling(use, source, purpose, policy, overrides, source if source in begins else None)
        for use in provenance.uses
        for source in use.sources
        for purpose in purposes
    )
    return Rulings(provenance, purposes, rulings)


def _ruling(
    use: Use,
    source: str,
    purpose: Purpose,
    policy: PolicySettings,
    overrides: tuple[Override, ...],
    student_of: str | None,
) -> Ruling:
    decision = decide(source, use.route, purpose, student_of)
    if decision.why and policy.unknown == "block":
        decision = Decision("block", decision.clause, decision.duties, f"{decision.why}, and policy.unknown is block")
    override = None
    if decision.answer == "block":
        override = next((o for o in overrides if o.source == (source or UNKNOWN)), None)
    return Ruling(use, source, purpose, decision, override)


def not_for(recipe: Recipe) -> Iterator[Ruling]:
    """The rulings that would stop the run for purposes that the recipe does not state."""
    others = tuple(purpose for purpose in get_args(Purpose) if purpose not in recipe.policy.purpose)
    if others:
        yield from (ruling for ruling in rulings_on(recipe, purposes=others).rulings if ruling.stops)


def unused_overrides(rulings: Rulings, policy: PolicySettings) -> list[Override]:
    """Overrides of the recipe that override nothing."""
    used = {ruling.override for ruling in rulings.rulings}
    return [override for override in policy.overrides if override not in used]


ROUTES_IN_WORDS = {
    "outputs": "training on what it writes",
    "logits": "training on its distributions or hidden states",
    "weights": "starting from its weights",
    "data": "training on it",
}
PURPOSES_IN_WORDS = {
    "research": "research",
    "commercial": "commercial use",
    "publish": "publishing the weights",
}


def described(ruling: Ruling) -> str:
    """A ruling as a sentence's beginning: what is used, how, and for what."""
    use = ruling.use
    through = f" (through {', '.join(use.through)})" if use.through else ""
    return f"{use.name}{through}: {ROUTES_IN_WORDS[use.route]}, for {PURPOSES_IN_WORDS[ruling.purpose]}"


def refusal(ruling: Ruling) -> RefusedError:
    """The error for a ruling that stops a run."""
    known = table().sources.get(ruling.source)
    where = f", {known.address}" if known is not None and known.address else ""
    id_ = ruling.source or UNKNOWN
    return RefusedError(
        f"{described(ruling)}, is not allowed: {ruling.because}{where}",
        where=ruling.use.role,
        fix=f"use another model or data; or, where you know better, policy.overrides: [{{source: {id_}, reason: …, "
        "by: …, on: …}], which stands in the card for good",
    )

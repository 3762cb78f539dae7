"""Preconditions on licences and terms: the gate, as findings."""

from __future__ import annotations

from collections.abc import Iterator

from potstill.check.findings import Finding, warning
from potstill.check.inputs import Inputs
from potstill.policy.duties import conflicts, copies
from potstill.policy.gate import (
    PURPOSES_IN_WORDS,
    Ruling,
    Rulings,
    described,
    not_for,
    refusal,
    rulings_on,
    unused_overrides,
)
from potstill.policy.terms import ANSWERS_IN_WORDS


def licences_allow_it(inputs: Inputs) -> Iterator[Finding]:
    """What each licence says of the purposes that the recipe states, and its duties."""
    recipe = inputs.recipe
    rulings = rulings_on(recipe)
    inputs.figures["policy"] = rulings.to_dict()
    for ruling in rulings.rulings:
        if ruling.stops:
            yield Finding.of("policy", refusal(ruling))
        elif ruling.override is not None:
            by = f"{ruling.override.by}, {ruling.override.on}: {ruling.override.reason}"
            yield warning("policy", f"{described(ruling)}, is blocked ({ruling.because}) and overridden by {by}")
        elif ruling.answer == "warn" and ruling.source:
            yield warning("policy", f"{described(ruling)}: {ruling.because}; read it")
        elif ruling.source:
            yield Finding("policy", f"{described(ruling)}: {ANSWERS_IN_WORDS[ruling.answer]} by {ruling.because}")
    yield from _unknown(rulings)
    yield from _duties_that_stay_undone(inputs, rulings)
    yield from _other_purposes(inputs)
    for override in unused_overrides(rulings, recipe.policy):
        yield warning("policy", f"policy.overrides: nothing here is blocked by {override.source}")


def _unknown(rulings: Rulings) -> Iterator[Finding]:
    """One warning for everything whose licence is not known."""
    names = dict.fromkeys(
        f"{ruling.use.role} ({ruling.use.name})" for ruling in rulings.rulings if not ruling.source and not ruling.stops
    )
    if names:
        yield warning(
            "policy", f"no licence is known of {', '.join(names)}: state it there (`licence: apache-2.0`, `own`)"
        )


def _duties_that_stay_undone(inputs: Inputs, rulings: Rulings) -> Iterator[Finding]:
    if not inputs.recipe.export:
        return
    for conflict in conflicts(rulings):
        yield warning("policy", conflict)
    for source in copies(inputs.recipe, rulings).missing:
        text = f"a copy of the {source.name} must go along and is not here: policy.texts: {{{source.id}: FILE}}"
        yield warning("policy", text)


def _other_purposes(inputs: Inputs) -> Iterator[Finding]:
    """What the student could not be used for later."""
    blocked: dict[str, list[Ruling]] = {}
    for ruling in not_for(inputs.recipe):
        blocked.setdefault(ruling.purpose, []).append(ruling)
    for by in blocked.values():
        sources = ", ".join(dict.fromkeys(ruling.source or "policy.unknown" for ruling in by))
        yield Finding("policy", f"not for {PURPOSES_IN_WORDS[by[0].purpose]}: {sources}")

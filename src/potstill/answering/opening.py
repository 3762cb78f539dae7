"""Opening teachers that answer: on this machine or behind a server, within one budget and one journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from potstill import registry
from potstill.answering.base import Answering
from potstill.answering.budget import Budget, Caps, Cost, TokenBudget
from potstill.answering.journal import Journal
from potstill.answering.local import JournaledTeacher, LocalAnswering
from potstill.console import Console
from potstill.errors import CapabilityError
from potstill.recipe import BudgetSettings, EndpointTeacher, Recipe

if TYPE_CHECKING:
    from potstill.answering.endpoint import EndpointAnswering


@contextmanager
def open_teachers(
    recipe: Recipe,
    names: Sequence[str],
    journal: Journal,
    *,
    budget: BudgetSettings,
    token_budget: int | None,
    batch_size: int,
    scope: str,
    where: Callable[[str], str],
    console: Console,
) -> Iterator[Answering]:
    """The `Answering` of the first of some teachers, and in its `judges` those of the others.

    Args:
        recipe: with the teachers.
        names: of the teachers, one at least.
        journal: of all of them.
        budget: caps on all of them together.
        token_budget: cap on the tokens that local teachers write.
        batch_size: of local teachers.
        scope: of the budget's ledger in the journal.
        where: the key of the recipe that names a teacher, for errors.
        console: for progress.

    Raises:
        CapabilityError: a teacher cannot generate.
        RecipeError: money is capped, and a price is unknown.
    """
    caps = Caps.of(budget, token_budget)
    whole, tokens = Budget(caps, journal.ledger(scope) if caps else None), TokenBudget(token_budget)

    def open_one(name: str) -> LocalAnswering | EndpointAnswering:
        teacher = registry.build(recipe.teachers[name])
        if "generate" not in teacher.capabilities:
            raise CapabilityError(
                f"the teacher {name!r} cannot generate",
                where=where(name),
                fix="name a teacher that can, or drop what asks it",
            )
        if isinstance(getattr(teacher, "settings", None), EndpointTeacher):
            from potstill.answering.endpoint import EndpointAnswering

            made = EndpointAnswering(teacher, journal, budget=whole, scope=scope, seed=recipe.seed, console=console)
            return opened.enter_context(made)
        journaled = JournaledTeacher(teacher, journal, budget=tokens, seed=recipe.seed, console=console)
        return opened.enter_context(LocalAnswering(journaled, batch_size=batch_size))

    def over() -> None:
        # At the end of the last one: before, requests under way may still be billed.
        if whole.held != Cost():
            journal.put_batch([], ledger=(scope, partial(whole.entry, over=True)))

    with ExitStack() as opened:
        opened.callback(over)
        answering = open_one(names[0])
        answering.judges = {name: open_one(name) for name in names[1:]}
        yield answering

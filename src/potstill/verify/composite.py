"""Verifiers that combine others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from potstill import registry
from potstill.recipe.verify import AllOf, AnyOf, Composite, FirstOf
from potstill.registry import implements
from potstill.types import Answer, Record, Verdict
from potstill.verify.base import Ask, BaseVerifier, Verifier

Judging = Callable[[Verifier], Verdict]


class CompositeVerifier(BaseVerifier[Composite]):
    """Applies its members in order, and stops at the first that decides: put the cheap ones first. The verdict carries
    the reason and score of that member."""

    guarded = False  # members handle their own exceptions; a judge that fails concerns the run

    def __init__(self, settings: Composite) -> None:
        super().__init__(settings)
        self.members: list[Verifier] = []
        with ExitStack() as opened:  # if one member cannot be built, close the others
            for member in settings.of:
                self.members.append(registry.build(member))
                opened.push(self.members[-1].__exit__)
            opened.pop_all()

    @property
    def version(self) -> str:
        return f"{self.contract}({', '.join(f'{m.name}@{m.version}' for m in self.members)})"

    def asks_through(self, ask: Ask | None) -> None:
        """Pass the caller's `ask` on to the judges."""
        for member in self.members:
            if hasattr(member, "asks_through"):
                member.asks_through(ask)

    def judge(self, record: Record, completion: str) -> Verdict:
        return self.decide(lambda member: member.verify(record, completion))

    def judge_answer(self, record: Record, answer: Answer) -> Verdict:
        return self.decide(lambda member: member.verify_answer(record, answer))

    def decide(self, judge: Judging) -> Verdict:
        raise NotImplementedError

    def close(self) -> None:
        with ExitStack() as closing:
            for member in self.members:
                closing.push(member.__exit__)

    def _as_ours(self, verdict: Verdict) -> Verdict:
        name = verdict.verifier.partition("@")[0]
        return Verdict(verdict.outcome, f"{name}: {verdict.reason}", verdict.score, self._signature)


@implements(AllOf)
class AllVerifier(CompositeVerifier):
    """Accepts if every member does."""

    def decide(self, judge: Judging) -> Verdict:
        found = list[Verdict]()
        for member in self.members:
            found.append(judge(member))
            if found[-1].outcome == "reject":
                return self._as_ours(found[-1])
        return self._as_ours(next((v for v in found if v.outcome == "cannot_judge"), found[-1]))


@implements(AnyOf)
class AnyVerifier(CompositeVerifier):
    """Accepts if one member does."""

    def decide(self, judge: Judging) -> Verdict:
        found = list[Verdict]()
        for member in self.members:
            found.append(judge(member))
            if found[-1].outcome == "accept":
                return self._as_ours(found[-1])
        return self._as_ours(next((v for v in found if v.outcome == "cannot_judge"), found[-1]))


@implements(FirstOf)
class FirstVerifier(CompositeVerifier):
    """Takes the verdict of the first member that can judge."""

    def decide(self, judge: Judging) -> Verdict:
        first, *others = self.members
        verdict = judge(first)
        for member in others:
            if verdict.outcome != "cannot_judge":
                break
            verdict = judge(member)
        return self._as_ours(verdict)

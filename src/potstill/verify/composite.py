"""Verifiers made of others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from potstill import registry
from potstill.recipe.verify import AllOf, AnyOf, Composite, FirstOf
from potstill.registry import implements
from potstill.types import Answer, Record, Verdict
from potstill.verify.base import Ask, BaseVerifier, Verifier

Judging = Callable[[Verifier], Verdict]


class CompositeVerifier(BaseVerifier):
    """Asks its members in order, and no further than needed: put the cheap ones first. The verdict carries the reason
    and the score of the member that decided."""

    def __init__(self, settings: Composite) -> None:
        super().__init__(settings)
        self.members: list[Verifier] = []
        with ExitStack() as opened:  # a member that cannot be built leaves none open
            for member in settings.of:
                self.members.append(registry.build(member))
                opened.push(self.members[-1].__exit__)
            opened.pop_all()

    @property
    def version(self) -> str:
        return f"{self.contract}({', '.join(f'{m.name}@{m.version}' for m in self.members)})"

    def asks_through(self, ask: Ask | None) -> None:
        """Hand the caller's way of asking on to the judges."""
        for member in self.members:
            if hasattr(member, "asks_through"):
                member.asks_through(ask)

    def verify(self, record: Record, completion: str) -> Verdict:
        return self.decide(lambda member: member.verify(record, completion))

    def verify_answer(self, record: Record, answer: Answer) -> Verdict:
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
    """Every one must accept."""

    def decide(self, judge: Judging) -> Verdict:
        doubts, last = [], None
        for member in self.members:
            last = judge(member)
            if last.outcome == "reject":
                return self._as_ours(last)
            if last.outcome == "cannot_judge":
                doubts.append(last)
        assert last is not None
        return self._as_ours(doubts[0] if doubts else last)


@implements(AnyOf)
class AnyVerifier(CompositeVerifier):
    """One that accepts is enough."""

    def decide(self, judge: Judging) -> Verdict:
        others = []
        for member in self.members:
            verdict = judge(member)
            if verdict.outcome == "accept":
                return self._as_ours(verdict)
            others.append(verdict)
        return self._as_ours(next((v for v in others if v.outcome == "cannot_judge"), others[-1]))


@implements(FirstOf)
class FirstVerifier(CompositeVerifier):
    """The first that can judge decides."""

    def decide(self, judge: Judging) -> Verdict:
        verdict = None
        for member in self.members:
            verdict = judge(member)
            if verdict.outcome != "cannot_judge":
                break
        assert verdict is not None
        return self._as_ours(verdict)

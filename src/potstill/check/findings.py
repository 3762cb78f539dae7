"""The findings of a check: errors, warnings and facts, by topic, and the figures behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from potstill.errors import PotstillError, RefusedError, UserError

Level = Literal["error", "warning", "fact"]
"""An `error` stops a run before it begins; a `warning` is shown; a `fact` is what the run will do, or its cost."""

TOPICS = (
    "data",
    "teachers",
    "student",
    "generate",
    "capture",
    "train",
    "evaluate",
    "speculate",
    "export",
    "policy",
    "cost",
    "probe",
    "stages",
)
"""The topics of a check, in the order in which they are shown."""


@dataclass(frozen=True)
class Finding:
    """One finding of a check.

    Attributes:
        topic: one of `TOPICS`.
        text: the problem, or what the run will do.
        level: an error stops a run.
        error: for an error, the exception that the run would have raised.
    """

    topic: str
    text: str
    level: Level = "fact"
    error: PotstillError | None = None

    @classmethod
    def of(cls, topic: str, error: PotstillError) -> Finding:
        """An error as a finding."""
        return cls(topic, error.what, "error", error)

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON values; `where` and `fix` are null except for errors that have them."""
        where, fix = (getattr(self.error, name, None) for name in ("where", "fix"))
        return {"topic": self.topic, "level": self.level, "text": self.text, "where": where, "fix": fix}


@dataclass(frozen=True)
class Findings:
    """All findings of a check."""

    found: tuple[Finding, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop a run."""
        return tuple(finding for finding in self.found if finding.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings to show before a run."""
        return tuple(finding for finding in self.found if finding.level == "warning")

    @property
    def lines(self) -> dict[str, tuple[str, ...]]:
        """The texts of all findings, by topic."""
        topics = [topic for topic in TOPICS if any(finding.topic == topic for finding in self.found)]
        return {topic: tuple(f.text for f in self.found if f.topic == topic) for topic in topics}

    def refuse(self) -> None:
        """Raise the errors, if any.

        Raises:
            RefusedError: what the gate on licences refuses comes first.
            PotstillError: a single error; for several, a UserError that lists them.
        """
        errors = [finding.error for finding in self.errors if finding.error is not None]
        refused = [error for error in errors if isinstance(error, RefusedError)]
        if len(refused) > 1:
            raise RefusedError(f"{len(refused)} uses are not allowed:\n{_listed(refused)}")
        errors = [*refused] or errors
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise UserError(f"{len(errors)} things must be fixed before this recipe can run:\n{_listed(errors)}")

    @property
    def exit_code(self) -> int:
        """Of `potstill check`: 0; 3 where the gate refuses; 2 for other errors."""
        if any(isinstance(finding.error, RefusedError) for finding in self.errors):
            return RefusedError.exit_code
        return UserError.exit_code if self.errors else 0

    def text(self) -> str:
        """One paragraph per topic; errors and warnings are marked."""
        rows = [(finding.topic, line) for finding in self._in_order() for line in _shown(finding)]
        width = max((len(topic) for topic, _ in rows), default=0)
        before = [None, *(topic for topic, _ in rows)]
        return "\n".join(
            f"{topic if topic != last else '':<{width}}  {line}"
            for (topic, line), last in zip(rows, before, strict=False)
        )

    def to_dict(self) -> dict[str, Any]:
        """The result event of `potstill check --json`."""
        found = [finding.to_dict() for finding in self._in_order()]
        return {"event": "result", "ok": not self.errors, "findings": found, **self.figures}

    def __add__(self, other: Findings) -> Findings:
        return Findings((*self.found, *other.found), {**self.figures, **other.figures})

    def _in_order(self) -> list[Finding]:
        return sorted(self.found, key=lambda finding: TOPICS.index(finding.topic))


def facts(topic: str, lines: Iterable[str]) -> list[Finding]:
    """Lines as facts of one topic."""
    return [Finding(topic, line) for line in lines]


def warning(topic: str, text: str) -> Finding:
    """A warning."""
    return Finding(topic, text, "warning")


def _listed(errors: Sequence[PotstillError]) -> str:
    return "\n".join(f"- {error}".replace("\n", "\n  ") for error in errors)


def _shown(finding: Finding) -> Sequence[str]:
    if finding.level == "fact":
        return (finding.text,)
    text = str(finding.error) if finding.error is not None else finding.text
    return f"{finding.level}: {text}".splitlines()

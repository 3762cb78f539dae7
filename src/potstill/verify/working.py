"""What the verifiers share that judge in worker processes."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from typing import Any, ClassVar

from potstill.errors import MissingExtra
from potstill.recipe.verify import WorkerSettings
from potstill.types import Verdict
from potstill.verify.base import BaseVerifier
from potstill.verify.workers import Died, Failed, Late, WorkerPool


class WorkingVerifier(BaseVerifier):
    """Asks `function` in a worker. A worker that is late, dies, or raises gives `cannot_judge`, with the reason.

    Raises:
        MissingExtra: the package that decides is not installed.
    """

    function: ClassVar[str]
    package: ClassVar[tuple[str, str, str]]
    """Of the package that decides: how it is imported, how it is installed, and by which extra."""

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(settings)
        require(*self.package, f"the verifier {settings.kind!r}")
        self.pool = WorkerPool(self.function, size=settings.workers, deadline_seconds=settings.deadline_seconds)

    @property
    def version(self) -> str:
        return f"{self.contract}+{self.package[1]}-{metadata.version(self.package[1])}"

    def ask(self, item: Any) -> Any | Verdict:
        """What the worker returns, or a verdict that it cannot judge."""
        try:
            return self.pool.call(item)
        except Late as late:
            return self.cannot_judge(str(late))
        except (Died, Failed) as failed:
            return self.cannot_judge(f"judging it failed: {failed}")

    def close(self) -> None:
        self.pool.close()


def require(module: str, package: str, extra: str, needed_for: str) -> None:
    """Raises MissingExtra where a package is not installed. Does not import it."""
    if importlib.util.find_spec(module) is None:
        raise MissingExtra(package, extra, needed_for)
